//! Settings as text, in layers: flags over environment over file over defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::ConfigError;
use super::env::{self, Env};
use super::settings::{FOREIGN, REFUSED, SETTINGS, Setting, foreign_env};
use saltus_core::nearest::nearest;

/// The documentation and every default.
pub const DEFAULTS: &str = include_str!("../../config.toml");

/// A setting's text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The value as it was written; empty means not set.
    pub value: String,
    /// For messages: a flag, a variable, a file.
    pub origin: String,
}

/// Settings from one place, by key.
pub type Layer = BTreeMap<&'static str, Text>;

/// What stands in a file of the form of `config.toml`.
///
/// # Errors
/// It is no TOML, or has a key that is no setting; the nearest one is suggested.
pub fn from_toml(text: &str, origin: &str) -> Result<Layer, ConfigError> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError(format!("{origin}: {}", error.to_string().trim_end())))?;
    let mut layer = Layer::new();
    for (key, value) in table {
        let setting = SETTINGS.iter().find(|s| s.key == key).ok_or_else(|| unknown_key(&key, origin))?;
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(flag) => flag.to_string(),
            other => {
                let kind = other.type_str();
                return Err(ConfigError(format!(
                    "{origin}: {key}: expected a text, a number or true/false, got a {kind}"
                )));
            }
        };
        layer.insert(setting.key, Text { value, origin: origin.to_owned() });
    }
    Ok(layer)
}

/// What stands in a configuration file.
///
/// # Errors
/// It cannot be read; or as [`from_toml`].
pub fn from_file(path: &Path) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("{origin}: the configuration file cannot be read: {error}")))?;
    from_toml(&text, &origin)
}

/// What the environment sets.
pub fn from_env(env: &Env) -> Layer {
    let found = |setting: &'static Setting| {
        let (name, value) = env.first(setting.env)?;
        Some((setting.key, Text { value: value.to_owned(), origin: format!("variable {name}") }))
    };
    SETTINGS.iter().filter_map(found).collect()
}

/// The defaults.
pub fn defaults() -> Layer {
    from_toml(DEFAULTS, "config.toml").expect("the shipped config.toml is valid; a test reads it")
}

/// Notes on foreign variables that are set, one each.
///
/// # Errors
/// One of them must not be ignored.
pub fn foreign_env_notes(env: &Env) -> Result<Vec<String>, ConfigError> {
    for (flag, reason) in REFUSED {
        let name = foreign_env(flag);
        if env.get(&name).is_some() {
            return Err(ConfigError(format!("variable {name}: {reason}")));
        }
    }
    let set = FOREIGN.iter().filter(|flag| env.get(&foreign_env(flag.name)).is_some());
    Ok(set.map(|flag| foreign_note(&format!("variable {}", foreign_env(flag.name)), flag.instead)).collect())
}

/// Notes on variables that look like settings and are none. A warning and no error: the variables of a whole system are not always the
/// server's own.
pub fn unknown_env_notes(env: &Env) -> Vec<String> {
    let ours = SETTINGS.iter().flat_map(|setting| setting.env).chain(env::OTHERS.iter().copied().flatten());
    let known: BTreeSet<String> = ours
        .map(|name| (*name).to_owned())
        .chain(FOREIGN.iter().map(|flag| foreign_env(flag.name)))
        .chain(REFUSED.iter().map(|(flag, _)| foreign_env(flag)))
        .collect();
    let looks_like_one = |name: &&str| name.starts_with("SALTUS_") || name.starts_with("INFLUXDB3_");
    let unknown = env.names().into_iter().filter(looks_like_one).filter(|name| !known.contains(*name));
    let note = |name: &str| match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("variable {name} is no setting and is ignored; did you mean {near}?"),
        None => format!("variable {name} is no setting and is ignored; `saltus serve --help` lists all of them"),
    };
    unknown.map(note).collect()
}

/// The note on something of InfluxDB 3 that is taken and not followed.
pub fn foreign_note(what: &str, instead: &str) -> String {
    match instead {
        "" => format!("{what} has no meaning here and is ignored"),
        instead => format!("{what} has no meaning here and is ignored; see --{instead}"),
    }
}

fn unknown_key(key: &str, origin: &str) -> ConfigError {
    let hint = match nearest(key, SETTINGS.iter().map(|setting| setting.key)) {
        Some(known) => format!("; did you mean '{known}'?"),
        None => "; the shipped config.toml lists all settings".to_owned(),
    };
    ConfigError(format!("{origin}: unknown setting '{key}'{hint}"))
}

/// The comment above each key of `config.toml`, in one line: the help of its flag.
pub fn help_texts() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim());
        } else if let Some((key, value)) = line.split_once(" = ") {
            let default = value.trim_matches('"');
            let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
            texts.insert(key.to_owned(), comment.join(" ") + &default);
        } else {
            comment.clear();
        }
        if line.is_empty() {
            comment.clear();
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_has_every_setting_once_with_a_comment() {
        let keys: Vec<&str> = defaults().into_keys().collect();
        let mut known: Vec<&str> = SETTINGS.iter().map(|s| s.key).collect();
        known.sort_unstable();
        assert_eq!(keys, known);
        let help = help_texts();
        for setting in SETTINGS {
            assert!(help[setting.key].len() > 20, "{} has no comment", setting.key);
        }
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name_with_a_suggestion() {
        let error = from_toml("htp-bind = \"127.0.0.1:1\"\n", "my.toml").unwrap_err();
        assert_eq!(error.0, "my.toml: unknown setting 'htp-bind'; did you mean 'http-bind'?");
        let error = from_toml("colour = 1\n", "my.toml").unwrap_err();
        assert_eq!(error.0, "my.toml: unknown setting 'colour'; the shipped config.toml lists all settings");
        let error = from_toml("shards = [1]\n", "my.toml").unwrap_err();
        assert!(error.0.starts_with("my.toml: shards: expected"));
    }

    #[test]
    fn no_foreign_flag_hides_one_of_ours() {
        let ours = |name: &str| SETTINGS.iter().any(|s| s.key == name || s.aliases.contains(&name));
        for flag in FOREIGN {
            assert!(!ours(flag.name), "{}", flag.name);
            assert!(flag.instead.is_empty() || ours(flag.instead), "{}", flag.instead);
        }
    }

    #[test]
    fn misspelt_variables_are_noted_with_a_suggestion() {
        let env = Env::from([
            ("SALTUS_HTTP_BIND", "x"),
            ("SALTUS_HTTP_BIND_ADDR", "x"),
            ("INFLUXDB3_HOST_URL", "x"),
            ("INFLUXDB3_GEN1_DURATION", "x"),
            ("INFLUXDB3_PLUGINDIR", "x"),
            ("SALTUS_COLOUR", "x"),
            ("PATH", "x"),
        ]);
        assert_eq!(
            unknown_env_notes(&env),
            [
                "variable INFLUXDB3_PLUGINDIR is no setting and is ignored; did you mean INFLUXDB3_PLUGIN_DIR?",
                "variable SALTUS_COLOUR is no setting and is ignored; `saltus serve --help` lists all of them",
                "variable SALTUS_HTTP_BIND is no setting and is ignored; did you mean SALTUS_HTTP_BIND_ADDR?",
            ]
        );
    }

    #[test]
    fn foreign_variables_are_noted_and_tls_is_refused() {
        let notes = foreign_env_notes(&Env::from([("INFLUXDB3_EXEC_MEM_POOL_SIZE", "1gb")])).unwrap();
        assert_eq!(
            notes,
            ["variable INFLUXDB3_EXEC_MEM_POOL_SIZE has no meaning here and is ignored; see --query-memory"]
        );
        let error = foreign_env_notes(&Env::from([("INFLUXDB3_TLS_KEY", "k.pem")])).unwrap_err();
        assert!(error.0.contains("does not speak TLS"));
    }
}
