//! Options that many client commands share, and how the environment stands in for them.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value};

use super::CliError;
use super::client::Client;
use crate::config::env::{self, Env};

/// Which server, and as whom.
#[derive(Debug, Default, Args)]
pub(crate) struct ServerOptions {
    /// Address of the server [env: SALTUS_HOST_URL or INFLUXDB3_HOST_URL] [default: http://127.0.0.1:8181]
    #[arg(short = 'H', long = "host", value_name = "URL")]
    pub(crate) host: Option<String>,
    /// Token to authenticate with [env: SALTUS_AUTH_TOKEN or INFLUXDB3_AUTH_TOKEN]
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// Taken for compatibility; this version does not speak TLS
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) tls_ca: Option<String>,
    /// Taken for compatibility; this version does not speak TLS
    #[arg(long, hide = true)]
    pub(crate) tls_no_verify: bool,
}

const DEFAULT_HOST: &str = "http://127.0.0.1:8181";

impl ServerOptions {
    /// A client for the server asked for; `other` are variables that come before the common one.
    pub(crate) fn client(self, env: &Env, other: &[&'static str]) -> Result<Client, CliError> {
        let from_env = || env.first(other).or_else(|| env.first(env::HOST_URL)).map(|(_, url)| url.to_owned());
        let host = self.host.or_else(from_env).unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let token = self.token.or_else(|| env.first(env::AUTH_TOKEN).map(|(_, token)| token.to_owned()));
        Client::new(&host, token)
    }
}

/// Which database.
#[derive(Debug, Default, Args)]
pub(crate) struct DatabaseOption {
    /// Name of the database [env: SALTUS_DATABASE_NAME or INFLUXDB3_DATABASE_NAME]
    #[arg(short = 'd', long = "database", value_name = "NAME")]
    pub(crate) database: Option<String>,
}

impl DatabaseOption {
    pub(crate) fn required(self, env: &Env) -> Result<String, CliError> {
        required_database(self.database, env, "--database")
    }
}

/// A database's name from the command line or the environment.
pub(crate) fn required_database(given: Option<String>, env: &Env, what: &str) -> Result<String, CliError> {
    let name = given.or_else(|| env.first(env::DATABASE_NAME).map(|(_, name)| name.to_owned()));
    name.ok_or_else(|| CliError(format!("no database given: use {what} or set {}", env::DATABASE_NAME[0])))
}

/// One `key=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("'{text}' is not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What one `--trigger-arguments`, `--input-arguments` or `--limits` gives: `key=value` pairs between commas as InfluxDB 3 reads them,
/// or a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pairs {
    pairs: Vec<(String, String)>,
    /// There was a comma to split it at.
    split: bool,
}

impl FromStr for Pairs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim_start().starts_with('{') {
            return Ok(Pairs { pairs: json_pairs(text)?, split: false });
        }
        const REMEDY: &str = "a value with a comma in it is given by itself (--trigger-argument, --input-argument), or all of them as JSON: \
                              '{\"key\":\"a,b\"}'";
        if text.contains("\\,") {
            return Err(format!("a backslash does not keep a comma together: {REMEDY}"));
        }
        let pairs: Vec<(String, String)> =
            text.split(',').map(key_value).collect::<Result<_, _>>().map_err(|error| match text.contains(',') {
                true => format!("{error}; {REMEDY}"),
                false => error,
            })?;
        Ok(Pairs { split: pairs.len() > 1, pairs })
    }
}

/// The pairs of a JSON object, whose values are texts.
pub(crate) fn json_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let object: Object = serde_json::from_str(text).map_err(|error| format!("is no JSON object: {error}"))?;
    let text_of = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        other => Err(format!("'{key}' must be a text, as in {{\"{key}\": \"...\"}}, got {other}")),
    };
    object.0.into_iter().map(text_of).collect()
}

/// The entries of a JSON object as they stand there, so that a key that is there twice is seen.
struct Object(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> serde::de::Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// All pairs of an option, and of its singular form, whose pairs are taken as they stand; each key once.
///
/// # Errors
/// A key that is given twice, or none.
pub(crate) fn pairs_of(
    option: &str,
    lists: Vec<Pairs>,
    single: Vec<(String, String)>,
) -> Result<Map<String, Value>, CliError> {
    let split = lists.iter().any(|list| list.split);
    let mut object = Map::new();
    for (key, value) in lists.into_iter().flat_map(|list| list.pairs).chain(single) {
        if key.is_empty() {
            return Err(CliError(format!("--{option}: '={value}' has no key before its equals sign")));
        }
        if object.contains_key(&key) {
            return Err(CliError(format!("--{option}: '{key}' is given twice")));
        }
        object.insert(key, value.into());
    }
    if split {
        // A value with a comma in it may have become two arguments; who sees the list, sees that.
        eprintln!("Note: --{option} was split at its commas; all of them are {}", Value::Object(object.clone()));
    }
    Ok(object)
}

/// Asks for a `yes` at the terminal.
pub(crate) fn confirm(question: &str) -> Result<bool, CliError> {
    eprintln!("{question} Enter 'yes' to confirm");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| CliError(error.to_string()))?;
    Ok(answer.trim() == "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_comes_from_flag_then_variables_then_default() {
        let url = |host: Option<&str>, env: &Env| {
            let options = ServerOptions { host: host.map(str::to_owned), ..ServerOptions::default() };
            options.client(env, env::WRITE_HOST_URL).unwrap().base().to_owned()
        };
        let env = Env::from([("INFLUXDB3_HOST_URL", "http://b:1"), ("INFLUXDB3_WRITE_HOST_URL", "http://w:1/")]);
        assert_eq!(url(Some("http://a:1"), &env), "http://a:1");
        assert_eq!(url(None, &env), "http://w:1");
        assert_eq!(url(None, &Env::from([("INFLUXDB3_HOST_URL", "http://b:1")])), "http://b:1");
        assert_eq!(url(None, &Env::default()), DEFAULT_HOST);
    }

    #[test]
    fn a_missing_database_names_flag_and_variable() {
        let error = DatabaseOption::default().required(&Env::default()).unwrap_err();
        assert_eq!(error.0, "no database given: use --database or set SALTUS_DATABASE_NAME");
        let env = Env::from([("INFLUXDB3_DATABASE_NAME", "x")]);
        assert_eq!(DatabaseOption::default().required(&env).unwrap(), "x");
    }

    #[test]
    fn arguments_are_a_list_or_json_or_one_by_one() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (text, pairs) in [
            ("a=1,b=2", vec![pair("a", "1"), pair("b", "2")]),
            ("a=", vec![pair("a", "")]),
            ("a=x=y", vec![pair("a", "x=y")]),
            ("path=C:\\x", vec![pair("path", "C:\\x")]),
            ("a=\"q\"", vec![pair("a", "\"q\"")]),
            (
                r#"{"a": "x,y=z", "b": "{\"c\":[1,2]}", "d": ""}"#,
                vec![pair("a", "x,y=z"), pair("b", "{\"c\":[1,2]}"), pair("d", "")],
            ),
            (" {} ", vec![]),
        ] {
            assert_eq!(text.parse::<Pairs>().map(|list| list.pairs), Ok(pairs), "{text}");
        }
        for (text, why) in [
            ("a=b,c", "'c' is not of the form key=value; a value with a comma in it is given by itself"),
            ("a", "'a' is not of the form key=value"),
            ("", "'' is not of the form key=value"),
            ("a=1,", "'' is not of the form key=value; a value with a comma"),
            ("a=b\\,c", "a backslash does not keep a comma together"),
            ("{\"a\": 1}", "'a' must be a text, as in {\"a\": \"...\"}, got 1"),
            ("{\"a\"", "is no JSON object"),
        ] {
            let error = text.parse::<Pairs>().unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
        let all = |lists: &[&str], single: &[&str]| {
            let lists = lists.iter().map(|text| text.parse().unwrap()).collect();
            let single = single.iter().map(|text| key_value(text).unwrap()).collect();
            pairs_of("trigger-arguments", lists, single)
                .map(|object| Value::Object(object).to_string())
                .map_err(|error| error.0)
        };
        assert_eq!(
            all(&["a=1,b=2"], &["c=x,y=z", "d=line\none"]).unwrap(),
            r#"{"a":"1","b":"2","c":"x,y=z","d":"line\none"}"#
        );
        assert_eq!(all(&["a=1", "b=2"], &[]).unwrap(), r#"{"a":"1","b":"2"}"#);
        let twice = "--trigger-arguments: 'a' is given twice";
        assert_eq!(all(&["a=1,a=2"], &[]).unwrap_err(), twice);
        assert_eq!(all(&["a=1"], &["a=2"]).unwrap_err(), twice);
        assert_eq!(all(&[r#"{"a":"1","a":"2"}"#], &[]).unwrap_err(), twice);
        assert_eq!(all(&["=1"], &[]).unwrap_err(), "--trigger-arguments: '=1' has no key before its equals sign");
    }

    #[test]
    fn values_may_hold_equal_signs() {
        assert_eq!(key_value("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(key_value("a").is_err());
    }
}
