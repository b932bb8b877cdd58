//! The environment: the process's variables, then those of a file `.env` in the working directory.
//!
//! Read once into a value, so that everything after it is a function of its arguments.

use std::collections::HashMap;

/// Which server the client commands talk to.
pub const HOST_URL: &[&str] = &["SALTUS_HOST_URL", "INFLUXDB3_HOST_URL"];
/// The token that client commands send.
pub const AUTH_TOKEN: &[&str] = &["SALTUS_AUTH_TOKEN", "INFLUXDB3_AUTH_TOKEN"];
/// The database of client commands.
pub const DATABASE_NAME: &[&str] = &["SALTUS_DATABASE_NAME", "INFLUXDB3_DATABASE_NAME"];
/// Which server `write` talks to, if it is another one.
pub const WRITE_HOST_URL: &[&str] = &["SALTUS_WRITE_HOST_URL", "INFLUXDB3_WRITE_HOST_URL"];
/// Which server `query` talks to, if it is another one.
pub const QUERY_HOST_URL: &[&str] = &["SALTUS_QUERY_HOST_URL", "INFLUXDB3_QUERY_HOST_URL"];
/// The configuration file of `serve`.
pub const CONFIG_FILE: &[&str] = &["SALTUS_CONFIG"];

/// Variables that mean something besides those of settings and of flags of InfluxDB 3: those above, those that plugins are given, and those
/// that InfluxDB 3 has for its client commands.
pub const OTHERS: &[&[&str]] = &[
    HOST_URL,
    AUTH_TOKEN,
    DATABASE_NAME,
    WRITE_HOST_URL,
    QUERY_HOST_URL,
    CONFIG_FILE,
    &["INFLUXDB3_TLS_CA", "INFLUXDB3_TLS_NO_VERIFY", "INFLUXDB3_PLUGIN_DIR"],
];

/// Variables by name.
#[derive(Clone, Debug, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    /// The process's variables; what they do not have is taken from `.env`. Names and values that are not UTF-8 are left
    /// out.
    pub fn process() -> Self {
        let file = std::fs::read_to_string(".env").unwrap_or_default();
        let mut all = parse_dotenv(&file);
        all.extend(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))));
        Env(all)
    }

    /// The first of these names that is set to something, with its name.
    pub fn first<'a>(&'a self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        names.iter().find_map(|&name| Some((name, self.get(name)?)))
    }

    /// The names of all variables that are set to something, sorted.
    pub fn names(&self) -> Vec<&str> {
        let set = self.0.iter().filter(|(_, value)| !value.is_empty());
        let mut names: Vec<&str> = set.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }

    /// A variable that is set to something.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(vars: [(&str, &str); N]) -> Self {
        Env(vars.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect())
    }
}

fn parse_dotenv(text: &str) -> HashMap<String, String> {
    let pair = |line: &str| {
        let line = line.trim();
        let (key, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim();
        let quoted = |quote| value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote));
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        (!line.starts_with('#')).then(|| (key.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_names_win_and_the_others_are_taken() {
        let env = Env::from([("INFLUXDB3_HOST_URL", "http://b")]);
        assert_eq!(env.first(HOST_URL), Some(("INFLUXDB3_HOST_URL", "http://b")));
        let env = Env::from([("SALTUS_HOST_URL", "http://a"), ("INFLUXDB3_HOST_URL", "http://b")]);
        assert_eq!(env.first(HOST_URL), Some(("SALTUS_HOST_URL", "http://a")));
        let env = Env::from([("SALTUS_HOST_URL", ""), ("INFLUXDB3_HOST_URL", "http://b")]);
        assert_eq!(env.first(HOST_URL), Some(("INFLUXDB3_HOST_URL", "http://b")));
    }

    #[test]
    fn a_dotenv_file_has_comments_quotes_and_exports() {
        let vars = parse_dotenv("# A=1\nB = two\nexport C=\"3 4\"\nD='x=y'\nnonsense\n");
        assert_eq!(vars.len(), 3);
        assert_eq!((&*vars["B"], &*vars["C"], &*vars["D"]), ("two", "3 4", "x=y"));
    }
}
