//! `saltus write`: line protocol in bodies that the server takes, each cut between two lines.
//!
//! Bodies are sent one after the other: the last line written wins, so order matters. A server that is busy says when to come
//! again, and the body is sent again then, a bounded number of times.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};

use super::client::{Call, Client};
use super::options::{DatabaseOption, ServerOptions};
use super::{CliError, say};
use crate::config::env::{Env, WRITE_HOST_URL};
use crate::config::parse;

/// How often a body is sent to a server that is busy.
const ATTEMPTS_MAX: usize = 20;
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// `write`.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    database: DatabaseOption,
    /// Server to write to, if it is another one than --host [env: SALTUS_WRITE_HOST_URL or INFLUXDB3_WRITE_HOST_URL]
    #[arg(long, value_name = "URL")]
    write_host: Option<String>,
    /// Read line protocol from a file
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Unit of the timestamps: auto, s, ms, us, ns
    #[arg(short = 'p', long, value_name = "UNIT")]
    precision: Option<String>,
    /// Keep the good lines when some are bad (the server's default)
    #[arg(long)]
    accept_partial: bool,
    /// Return before the data is durable
    #[arg(long)]
    no_sync: bool,
    /// Compress bodies
    #[arg(long)]
    gzip: bool,
    /// Bytes of one body; a bare number is bytes
    #[arg(long, value_name = "SIZE", default_value = "10485760", value_parser = body_size)]
    max_request_size: usize,
    /// Taken for compatibility: bodies are sent one after the other, so that order is kept
    #[arg(long, value_name = "N", hide = true)]
    max_concurrent_requests: Option<usize>,
    /// Print nothing on success
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Line protocol; read from standard input if neither it nor --file is given
    line_protocol: Vec<String>,
}

fn body_size(text: &str) -> Result<usize, String> {
    let bytes = match text.parse() {
        Ok(bytes) => bytes,
        Err(_) => parse::size(text)?,
    };
    usize::try_from(bytes).ok().filter(|&bytes| bytes > 0).ok_or_else(|| format!("'{text}' is out of range"))
}

impl WriteArgs {
    pub(crate) fn run(mut self, env: &Env) -> Result<(), CliError> {
        if self.write_host.is_some() {
            self.server.host = self.write_host.take();
        }
        let db = std::mem::take(&mut self.database).required(env)?;
        let client = std::mem::take(&mut self.server).client(env, WRITE_HOST_URL)?;
        let mut bodies = Bodies::new(self.input()?, self.max_request_size);
        while let Some(body) = bodies.next()? {
            self.send(&client, &db, &body)?;
        }
        if !self.quiet {
            say("success");
        }
        Ok(())
    }

    fn input(&mut self) -> Result<Box<dyn Read>, CliError> {
        if !self.line_protocol.is_empty() {
            let text = std::mem::take(&mut self.line_protocol).join("\n");
            return Ok(Box::new(std::io::Cursor::new(text)));
        }
        if let Some(path) = &self.file {
            return Ok(Box::new(File::open(path).map_err(|error| CliError::file(path, error))?));
        }
        if std::io::stdin().is_terminal() {
            let text = "no line protocol given: use the argument <LINE_PROTOCOL>, --file or standard input";
            return Err(CliError(text.to_owned()));
        }
        Ok(Box::new(std::io::stdin()))
    }

    fn send(&self, client: &Client, db: &str, body: &[u8]) -> Result<(), CliError> {
        let mut params = vec![("db", db)];
        params.extend(self.precision.as_deref().map(|unit| ("precision", unit)));
        params.extend(self.accept_partial.then_some(("accept_partial", "true")));
        params.extend(self.no_sync.then_some(("no_sync", "true")));
        let compressed = if self.gzip { Some(compress(body)?) } else { None };
        let body = compressed.as_deref().unwrap_or(body);
        let call = Call { params: &params, content_type: Some("text/plain"), gzip: self.gzip, body };
        for _ in 1..ATTEMPTS_MAX {
            let answer = client.call(Method::POST, "/api/v3/write_lp", &call)?;
            match answer.status {
                status if status.is_success() => return Ok(()),
                StatusCode::SERVICE_UNAVAILABLE => {
                    std::thread::sleep(answer.retry_after.unwrap_or(RETRY_AFTER_DEFAULT));
                }
                _ => return Err(answer.error()),
            }
        }
        let last = client.call(Method::POST, "/api/v3/write_lp", &call)?;
        if last.status.is_success() { Ok(()) } else { Err(last.error()) }
    }
}

fn compress(body: &[u8]) -> Result<Vec<u8>, CliError> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).map_err(|error| CliError(error.to_string()))
}

/// The input in pieces of whole lines.
struct Bodies {
    input: Box<dyn Read>,
    bytes_max: usize,
    /// Read and not yet given out.
    rest: Vec<u8>,
    ended: bool,
}

impl Bodies {
    fn new(input: Box<dyn Read>, bytes_max: usize) -> Self {
        Bodies { input, bytes_max, rest: Vec::new(), ended: false }
    }

    /// The next body; `None` at the end. Empty input is one empty body, so that the server says what is wrong with it.
    fn next(&mut self) -> Result<Option<Vec<u8>>, CliError> {
        if self.ended && self.rest.is_empty() {
            return Ok(None);
        }
        self.fill()?;
        if self.ended && self.rest.len() <= self.bytes_max {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        match last_line_end(&self.rest[..self.bytes_max]) {
            0 => Err(CliError(format!("a line is longer than --max-request-size ({} bytes)", self.bytes_max))),
            end => Ok(Some(self.rest.drain(..end).collect())),
        }
    }

    /// Reads until there is more than one body's worth, or the input ends.
    fn fill(&mut self) -> Result<(), CliError> {
        if !self.ended {
            let wanted = (self.bytes_max + 1).saturating_sub(self.rest.len()) as u64;
            let read = self.input.by_ref().take(wanted).read_to_end(&mut self.rest);
            self.ended = (read.map_err(|error| CliError(format!("input: {error}")))? as u64) < wanted;
        }
        Ok(())
    }
}

/// Behind the last newline that ends a line; a newline inside a quoted string field does not. 0 if there is none.
fn last_line_end(bytes: &[u8]) -> usize {
    let (mut end, mut at) = (0, 0);
    // Quotes mean something only behind the first unescaped space, in the fields.
    let (mut in_fields, mut in_quotes, mut started) = (false, false, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'"' if in_fields => in_quotes = !in_quotes,
            b'\n' if !in_quotes => {
                end = at + 1;
                (in_fields, started) = (false, false);
            }
            b'#' if !started => {
                let Some(rest) = bytes[at..].iter().position(|&b| b == b'\n') else { return end };
                at += rest;
                continue;
            }
            b' ' if started => in_fields = true,
            b' ' | b'\r' => {}
            _ => started = true,
        }
        at += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(text: &str, bytes_max: usize) -> Result<Vec<String>, CliError> {
        let mut bodies = Bodies::new(Box::new(std::io::Cursor::new(text.to_owned())), bytes_max);
        let mut all = Vec::new();
        while let Some(body) = bodies.next()? {
            all.push(String::from_utf8(body).unwrap());
        }
        Ok(all)
    }

    #[test]
    fn bodies_are_cut_between_lines_and_nothing_is_lost() {
        let text = "a f=1\nb f=2\nc f=3";
        assert_eq!(bodies(text, 100).unwrap(), [text]);
        assert_eq!(bodies(text, 13).unwrap(), ["a f=1\nb f=2\n", "c f=3"]);
        assert_eq!(bodies(text, 6).unwrap(), ["a f=1\n", "b f=2\n", "c f=3"]);
        assert_eq!(bodies("a f=1\nb f=2\n", 6).unwrap(), ["a f=1\n", "b f=2\n"]);
        assert_eq!(bodies("", 6).unwrap(), [""]);
    }

    #[test]
    fn a_newline_inside_a_string_is_no_cut() {
        let text = "a f=\"x\ny\"\nb f=2\n";
        assert_eq!(bodies(text, 12).unwrap(), ["a f=\"x\ny\"\n", "b f=2\n"]);
        assert_eq!(last_line_end(b"# it's \"odd\nm\"x,t=\"y f=1\n"), 25);
        assert_eq!(last_line_end(b"a f=\"x\\\"\n"), 0);
    }

    #[test]
    fn a_line_beyond_the_size_is_an_error() {
        assert!(bodies("abcdefgh f=1\n", 5).unwrap_err().0.contains("longer than --max-request-size (5 bytes)"));
    }
}
