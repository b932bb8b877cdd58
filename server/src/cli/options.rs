//! Options that many client commands share, and how the environment stands in for them.

use clap::Args;

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
    fn values_may_hold_equal_signs() {
        assert_eq!(key_value("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(key_value("a").is_err());
    }
}
