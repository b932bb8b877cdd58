//! HTTP to a server: one call, one answer, errors as the reference prints them.

use std::io::Read as _;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::Value;

use super::CliError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one server.
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

/// What is sent.
#[derive(Default)]
pub(crate) struct Call<'a> {
    pub(crate) params: &'a [(&'a str, &'a str)],
    pub(crate) content_type: Option<&'static str>,
    pub(crate) gzip: bool,
    pub(crate) body: &'a [u8],
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(host: &str, token: Option<String>) -> Result<Self, CliError> {
        if host.starts_with("https://") {
            return Err(CliError(format!("{host}: this version does not speak TLS; use an http:// address")));
        }
        let base = if host.starts_with("http://") { host.to_owned() } else { format!("http://{host}") };
        let mut config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT_TIMEOUT));
        if ["http://127.", "http://localhost", "http://[::1]"].iter().any(|local| base.starts_with(local)) {
            config = config.proxy(None);
        }
        Ok(Client { agent: config.build().new_agent(), base: base.trim_end_matches('/').to_owned(), token })
    }

    /// The server's address.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Sends JSON; gives the body of a successful answer.
    pub(crate) fn json(&self, method: Method, path: &str, body: &Value) -> Result<Vec<u8>, CliError> {
        let body = body.to_string();
        let call = Call { content_type: Some("application/json"), body: body.as_bytes(), ..Call::default() };
        self.successful(method, path, &call)
    }

    /// Sends parameters only; gives the body of a successful answer.
    pub(crate) fn params(&self, method: Method, path: &str, params: &[(&str, &str)]) -> Result<Vec<u8>, CliError> {
        self.successful(method, path, &Call { params, ..Call::default() })
    }

    /// One call whose answer must be a success.
    fn successful(&self, method: Method, path: &str, call: &Call<'_>) -> Result<Vec<u8>, CliError> {
        let answer = self.call(method, path, call)?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(answer.error()) }
    }

    /// One call.
    pub(crate) fn call(&self, method: Method, path: &str, call: &Call<'_>) -> Result<Answer, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            CliError(format!("cannot reach {}: {error}; is the server running? (--host names another one)", self.base))
        };
        let mut request = http::Request::builder().method(&method).uri(self.url(path, call.params));
        if let Some(content_type) = call.content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        if call.gzip {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let bad = |error: http::Error| CliError(format!("{}{path}: {error}", self.base));
        let response = if method == Method::GET || method == Method::DELETE {
            self.agent.run(request.body(()).map_err(bad)?)
        } else {
            self.agent.run(request.body(call.body).map_err(bad)?)
        };
        let mut response = response.map_err(|error| failed(&error))?;
        for warning in response.headers().get_all("saltus-warning").iter().filter_map(|value| value.to_str().ok()) {
            eprintln!("Warning: {warning}");
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body).map_err(|error| failed(&error))?;
        Ok(Answer { status: response.status(), retry_after: after.map(Duration::from_secs), body })
    }

    fn url(&self, path: &str, params: &[(&str, &str)]) -> String {
        let mut url = format!("{}{path}", self.base);
        if !params.is_empty() {
            let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
            url.push('?');
            url.push_str(&query);
        }
        url
    }
}

impl Answer {
    /// The error that this answer is: its text, where it is JSON that has nothing else.
    pub(crate) fn error(&self) -> CliError {
        let object: Option<serde_json::Map<String, Value>> = serde_json::from_slice(&self.body).ok();
        let text = object.filter(|object| object.len() == 1).and_then(|object| match object.get("error") {
            Some(Value::String(text)) => Some(text.clone()),
            _ => None,
        });
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim_end().to_owned());
        CliError(format!("server responded with error [{}]: {text}", self.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_encoded_and_tls_is_refused() {
        let client = Client::new("localhost:8181/", None).unwrap();
        assert_eq!(client.url("/write", &[("db", "a b"), ("q", "x&y")]), "http://localhost:8181/write?db=a+b&q=x%26y");
        assert!(Client::new("https://h", None).err().unwrap().0.contains("does not speak TLS"));
    }

    #[test]
    fn errors_carry_the_status_and_the_body() {
        let answer = Answer { status: StatusCode::CONFLICT, retry_after: None, body: b"exists".to_vec() };
        assert_eq!(answer.error().0, "server responded with error [409 Conflict]: exists");
        let answer = Answer { body: br#"{"error":"say \"why\""}"#.to_vec(), ..answer };
        assert_eq!(answer.error().0, "server responded with error [409 Conflict]: say \"why\"");
        let answer = Answer { body: br#"{"error":"partial","data":[1]}"#.to_vec(), ..answer };
        assert_eq!(
            answer.error().0,
            "server responded with error [409 Conflict]: {\"error\":\"partial\",\"data\":[1]}"
        );
    }
}
