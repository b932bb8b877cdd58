//! `saltus write`: line protocol in bodies that the server takes, each cut between two lines.
//!
//! Bodies are sent one after the other: the last line written wins, so order matters. A server that is busy says when to come
//! again, and the body is sent again then, a bounded number of times. Lines that the server refuses hold up nothing: they are shown
//! with the number that they have in the input, and the rest is written.

use std::fs::File;
use std::io::{IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};
use saltus_core::line_protocol::line_at;
use serde_json::Value;

use super::client::{Answer, Call, Client};
use super::options::{DatabaseOption, ServerOptions};
use super::{CliError, say};
use crate::config::env::{Env, WRITE_HOST_URL};
use crate::config::parse;

/// How often a body is sent to a server that is busy.
const ATTEMPTS_MAX: usize = 20;
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// Refused lines that are shown; the rest is counted.
const LINES_SHOWN_MAX: usize = 100;
/// Bytes that are shown of each.
const LINE_BYTES_SHOWN_MAX: usize = 120;
/// How many bodies long a line may be to be left out by itself; of a longer one the end is not looked for.
const LONG_LINE_BODIES_MAX: usize = 8;

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
    /// Read line protocol from a file; `-` is standard input
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
    /// Line protocol; read from standard input if neither it nor --file is given, or if it is `-`
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
        let mut told = Told::default();
        while let Some(body) = bodies.next()? {
            told.too_long(std::mem::take(&mut bodies.too_long), self.max_request_size);
            if body.lines == 0 && (bodies.has_more() || told.lines > 0) {
                continue;
            }
            self.send(&client, &db, &body, &mut told).map_err(|error| told.broken_off(error, &body))?;
        }
        told.too_long(std::mem::take(&mut bodies.too_long), self.max_request_size);
        told.end(bodies.unsent)?;
        if !self.quiet {
            say("success");
        }
        Ok(())
    }

    fn input(&mut self) -> Result<Box<dyn Read>, CliError> {
        if !self.line_protocol.is_empty() && self.line_protocol != ["-"] {
            let text = std::mem::take(&mut self.line_protocol).join("\n");
            return Ok(Box::new(std::io::Cursor::new(text)));
        }
        match &self.file {
            Some(path) if !is_standard_input(path) => {
                Ok(Box::new(File::open(path).map_err(|error| CliError::file(path, error))?))
            }
            None if self.line_protocol.is_empty() && std::io::stdin().is_terminal() => {
                let text = "no line protocol given: use the argument <LINE_PROTOCOL>, --file or standard input";
                Err(CliError(text.to_owned()))
            }
            _ => Ok(Box::new(std::io::stdin())),
        }
    }

    /// Sends a body. The lines of it that are refused are told; an error is what ends all.
    fn send(&self, client: &Client, db: &str, body: &Piece, told: &mut Told) -> Result<(), CliError> {
        let answer = self.post(client, db, &body.bytes)?;
        if answer.status.is_success() {
            told.lines += body.lines;
            return Ok(());
        }
        if let Some(refused) = Refused::of(&answer) {
            told.refused(body, refused);
            return Ok(());
        }
        if answer.status == StatusCode::PAYLOAD_TOO_LARGE {
            // The server's bound is lower than ours.
            let (first, second) = body.halves().ok_or_else(|| answer.error())?;
            self.send(client, db, &first, told)?;
            return self.send(client, db, &second, told);
        }
        Err(answer.error())
    }

    fn post(&self, client: &Client, db: &str, body: &[u8]) -> Result<Answer, CliError> {
        let mut params = vec![("db", db)];
        params.extend(self.precision.as_deref().map(|unit| ("precision", unit)));
        params.extend(self.accept_partial.then_some(("accept_partial", "true")));
        params.extend(self.no_sync.then_some(("no_sync", "true")));
        let compressed = if self.gzip { Some(compress(body)?) } else { None };
        let body = compressed.as_deref().unwrap_or(body);
        let call = Call { params: &params, content_type: Some("text/plain"), gzip: self.gzip, body };
        for _ in 1..ATTEMPTS_MAX {
            let answer = client.call(Method::POST, "/api/v3/write_lp", &call)?;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return Ok(answer);
            }
            std::thread::sleep(answer.retry_after.unwrap_or(RETRY_AFTER_DEFAULT));
        }
        client.call(Method::POST, "/api/v3/write_lp", &call)
    }
}

/// Whether a file is named as standard input is.
pub(crate) fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Lines of a body that the server did not take.
struct Refused {
    /// Number among the body's lines that count, message.
    lines: Vec<(usize, String)>,
    count: usize,
}

impl Refused {
    /// What an answer says of lines, if it is one that speaks of lines.
    fn of(answer: &Answer) -> Option<Refused> {
        let body: Value = serde_json::from_slice(&answer.body).ok()?;
        let line = |line: &Value| {
            let number = usize::try_from(line["line_number"].as_u64()?).ok()?;
            Some((number, line["error_message"].as_str()?.to_owned()))
        };
        let lines: Vec<_> = body["data"].as_array()?.iter().filter_map(line).collect();
        let count = body["lines_refused"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(lines.len());
        (!lines.is_empty()).then_some(Refused { lines, count })
    }
}

/// What became of the input so far.
#[derive(Default)]
struct Told {
    /// Lines that were sent, refused ones with them.
    lines: usize,
    refused: usize,
    shown: usize,
}

impl Told {
    fn refused(&mut self, body: &Piece, refused: Refused) {
        self.lines += body.lines;
        self.refused += refused.count;
        let room = LINES_SHOWN_MAX.saturating_sub(self.shown).min(refused.lines.len());
        let numbers: Vec<_> = refused.lines[..room].iter().map(|(number, _)| *number).collect();
        for ((at, text), (_, message)) in body.find(&numbers).into_iter().zip(refused.lines) {
            self.shown += 1;
            eprintln!("line {at}: {message}: {text}");
        }
    }

    /// Lines that no body has room for.
    fn too_long(&mut self, lines: Vec<usize>, bytes_max: usize) {
        self.lines += lines.len();
        self.refused += lines.len();
        for line in lines {
            self.shown += 1;
            eprintln!("line {line}: it is longer than --max-request-size ({bytes_max} bytes) and is not sent");
        }
    }

    /// The exit of a command that has gone through all its input. `unsent` is said of what could not be sent.
    fn end(&self, unsent: Option<String>) -> Result<(), CliError> {
        if self.refused > self.shown {
            eprintln!("and {} more lines were refused", self.refused - self.shown);
        }
        let written = self.lines.saturating_sub(self.refused);
        let counts = format!("{written} of {} lines were written, {} were refused", self.lines, self.refused);
        match unsent {
            Some(why) => Err(CliError(format!("{why}; before it, {counts}"))),
            None if self.refused > 0 => Err(CliError(counts)),
            None => Ok(()),
        }
    }

    /// What ends all, with how far it had come.
    fn broken_off(&self, error: CliError, body: &Piece) -> CliError {
        if self.lines == 0 {
            return error;
        }
        let (written, line) = (self.lines - self.refused, body.first_line);
        let refused = if self.refused > 0 { format!(" and {} refused", self.refused) } else { String::new() };
        CliError(format!(
            "{}; {written} lines in front of line {line} were written{refused}, it and what follows not",
            error.0
        ))
    }
}

fn compress(body: &[u8]) -> Result<Vec<u8>, CliError> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).map_err(|error| CliError(error.to_string()))
}

/// A body, and where in the input it stands.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    bytes: Vec<u8>,
    /// Number of its first line in the input, from 1, as an editor counts.
    first_line: usize,
    /// How many lines of line protocol it has.
    lines: usize,
}

impl Piece {
    /// The places in the input and the texts of lines by their numbers, which rise, as the server counts.
    fn find(&self, numbers: &[usize]) -> Vec<(usize, String)> {
        let (mut from, mut at, mut counted) = (0, self.first_line, 0);
        let mut found = Vec::with_capacity(numbers.len());
        while from < self.bytes.len() && found.len() < numbers.len() {
            let line = line_at(&self.bytes, from);
            counted += usize::from(line.counts);
            while line.counts && numbers.get(found.len()) == Some(&counted) {
                let text = String::from_utf8_lossy(&self.bytes[from..line.end.min(from + LINE_BYTES_SHOWN_MAX)]);
                let more = if line.end - from > LINE_BYTES_SHOWN_MAX { "..." } else { "" };
                found.push((at, format!("{}{more}", visible(&text))));
            }
            at += newlines(&self.bytes[from..line.next]);
            from = line.next;
        }
        found
    }

    /// The same in two pieces, if there is more than one line.
    fn halves(&self) -> Option<(Piece, Piece)> {
        let (mut from, mut lines) = (0, 0);
        while from < self.bytes.len() {
            let line = line_at(&self.bytes, from);
            (from, lines) = (line.next, lines + usize::from(line.counts));
            if lines > 0 && from >= self.bytes.len() / 2 && lines < self.lines {
                let (first, second) = self.bytes.split_at(from);
                let behind = self.first_line + newlines(first);
                return Some((
                    Piece { bytes: first.to_vec(), first_line: self.first_line, lines },
                    Piece { bytes: second.to_vec(), first_line: behind, lines: self.lines - lines },
                ));
            }
        }
        None
    }
}

/// A line as it can be shown in one.
fn visible(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The input in pieces of whole lines.
struct Bodies {
    input: Box<dyn Read>,
    bytes_max: usize,
    /// Read and not yet given out.
    rest: Vec<u8>,
    /// The number of its first line.
    line: usize,
    ended: bool,
    begun: bool,
    /// Numbers of lines that are longer than a body, and left out.
    too_long: Vec<usize>,
    /// Why the rest of the input is not sent.
    unsent: Option<String>,
}

impl Bodies {
    fn new(input: Box<dyn Read>, bytes_max: usize) -> Self {
        Bodies {
            input,
            bytes_max,
            rest: Vec::new(),
            line: 1,
            ended: false,
            begun: false,
            too_long: Vec::new(),
            unsent: None,
        }
    }

    fn has_more(&self) -> bool {
        self.unsent.is_none() && !(self.ended && self.rest.is_empty())
    }

    /// The next body; `None` at the end. Empty input is one empty body, so that the server says what is wrong with it.
    fn next(&mut self) -> Result<Option<Piece>, CliError> {
        if self.begun && !self.has_more() {
            return Ok(None);
        }
        self.begun = true;
        self.fill(self.bytes_max)?;
        let (mut end, mut lines) = self.whole_lines();
        while end == 0 && !self.rest.is_empty() {
            if !self.leave_line_out()? {
                self.unsent = Some(format!(
                    "line {} and all that is behind it is not sent: it is longer than --max-request-size ({} bytes); perhaps a string \
                     in it does not end",
                    self.line, self.bytes_max
                ));
                return Ok(None);
            }
            self.fill(self.bytes_max)?;
            (end, lines) = self.whole_lines();
        }
        let bytes: Vec<u8> = self.rest.drain(..end).collect();
        let first_line = self.line;
        self.line += newlines(&bytes);
        Ok(Some(Piece { bytes, first_line, lines }))
    }

    /// Drops a line that is longer than a body; false if it is too long to be looked at.
    fn leave_line_out(&mut self) -> Result<bool, CliError> {
        self.fill(LONG_LINE_BODIES_MAX * self.bytes_max)?;
        let line = line_at(&self.rest, 0);
        if !line.ended && !self.ended {
            return Ok(false);
        }
        self.too_long.push(self.line);
        self.line += newlines(&self.rest[..line.next]);
        self.rest.drain(..line.next);
        Ok(true)
    }

    /// Reads until there is more than `bytes`, or the input ends.
    fn fill(&mut self, bytes: usize) -> Result<(), CliError> {
        if !self.ended {
            let wanted = (bytes + 1).saturating_sub(self.rest.len()) as u64;
            let read = self.input.by_ref().take(wanted).read_to_end(&mut self.rest);
            self.ended = (read.map_err(|error| CliError(format!("input: {error}")))? as u64) < wanted;
        }
        Ok(())
    }

    /// Behind the last line that ends within a body's worth, and how many lines of line protocol there are up to it.
    fn whole_lines(&self) -> (usize, usize) {
        let (mut end, mut lines) = (0, 0);
        while end < self.rest.len() {
            let line = line_at(&self.rest, end);
            let whole = line.ended || self.ended;
            if !whole || line.next > self.bytes_max {
                break;
            }
            (end, lines) = (line.next, lines + usize::from(line.counts));
        }
        (end, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &[u8], bytes_max: usize) -> (Vec<(String, usize, usize)>, Bodies) {
        let mut bodies = Bodies::new(Box::new(std::io::Cursor::new(text.to_vec())), bytes_max);
        let mut all = Vec::new();
        while let Some(body) = bodies.next().unwrap() {
            all.push((String::from_utf8_lossy(&body.bytes).into_owned(), body.first_line, body.lines));
        }
        (all, bodies)
    }

    fn bodies(text: &str, bytes_max: usize) -> Vec<String> {
        let (all, left) = cut(text.as_bytes(), bytes_max);
        assert_eq!((left.unsent, left.too_long.len()), (None, 0));
        all.into_iter().map(|(text, ..)| text).collect()
    }

    #[test]
    fn bodies_are_cut_between_lines_and_nothing_is_lost() {
        let text = "a f=1\nb f=2\nc f=3";
        assert_eq!(bodies(text, 100), [text]);
        assert_eq!(bodies(text, 13), ["a f=1\nb f=2\n", "c f=3"]);
        assert_eq!(bodies(text, 6), ["a f=1\n", "b f=2\n", "c f=3"]);
        assert_eq!(bodies("a f=1\nb f=2\n", 6), ["a f=1\n", "b f=2\n"]);
        assert_eq!(bodies("", 6), [""]);
    }

    #[test]
    fn bodies_are_cut_where_the_server_ends_lines() {
        for (text, bytes_max, expected) in [
            ("a f=\"x\ny\"\nb f=2\n", 12, vec!["a f=\"x\ny\"\n", "b f=2\n"]),
            ("m,h=q k\"ey=1 1\nb f=2\n", 16, vec!["m,h=q k\"ey=1 1\n", "b f=2\n"]),
            ("# it's \"odd\nm\"x,t=\"y f=1\nb f=2\n", 26, vec!["# it's \"odd\nm\"x,t=\"y f=1\n", "b f=2\n"]),
            ("m,p=C:\\\\ s=\"a\n\"\nb f=2", 20, vec!["m,p=C:\\\\ s=\"a\n\"\n", "b f=2"]),
        ] {
            assert_eq!(bodies(text, bytes_max), expected, "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_sent_is_left_out_and_said() {
        let (all, left) = cut(b"m f=1\nabcdefgh f=1\nm f=2\n", 8);
        assert_eq!(all, [("m f=1\n".to_owned(), 1, 1), ("m f=2\n".to_owned(), 3, 1)]);
        assert_eq!((left.unsent, left.too_long), (None, vec![2]));
        let open = [&b"m f=1\nm f=\"open\n"[..], &b"m f=2\n".repeat(40)].concat();
        let (all, left) = cut(&open, 10);
        assert_eq!(all.len(), 1);
        assert!(left.unsent.unwrap().starts_with("line 2 and all that is behind it is not sent"));
        // At the end of the input the server says what is wrong with it.
        assert_eq!(cut(b"m f=1\nm f=\"open\nm f=2\n", 100).0.len(), 1);
    }

    #[test]
    fn numbers_of_a_body_are_lines_of_the_input() {
        let text = b"# c\na f=1\n\nb f=\"x\ny\"\nc f=\xff\n# \xff\nd f=4\n";
        let (all, _) = cut(text, 26);
        assert_eq!(all.iter().map(|(_, line, lines)| (*line, *lines)).collect::<Vec<_>>(), [(1, 2), (6, 3)]);
        let whole = Piece { bytes: text.to_vec(), first_line: 11, lines: 5 };
        let places = whole.find(&[1, 2, 3, 4, 5]);
        assert_eq!(places.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [12, 14, 16, 17, 18]);
        assert_eq!(whole.find(&[3, 5]), [places[2].clone(), places[4].clone()]);
        assert_eq!((places[1].1.as_str(), places[4].1.as_str()), ("b f=\"x\\ny\"", "d f=4"));
        let (first, second) = whole.halves().unwrap();
        assert_eq!([&first.bytes[..], &second.bytes[..]].concat(), text);
        assert_eq!((first.lines + second.lines, second.find(&[second.lines])[0].0), (5, 18));
        let one = Piece { bytes: b"# c\nm f=1\n# d\n".to_vec(), first_line: 1, lines: 1 };
        assert_eq!(one.halves(), None);
    }

    #[test]
    fn answers_that_speak_of_lines_are_told_from_others() {
        let answer = |status, body: &str| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            body: body.as_bytes().to_vec(),
        };
        let line = r#"{"error_message":"no","line_number":3,"original_line":"x"}"#;
        let refused =
            Refused::of(&answer(400, &format!(r#"{{"error":"p","data":[{line}],"lines_refused":9}}"#))).unwrap();
        assert_eq!((refused.lines, refused.count), (vec![(3, "no".to_owned())], 9));
        for other in
            [r#"{"error":"db name cannot be empty"}"#, "incoming write was empty", r#"{"error":"x","data":[]}"#]
        {
            assert!(Refused::of(&answer(400, other)).is_none(), "{other}");
        }
    }
}
