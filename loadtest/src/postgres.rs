//! The least of PostgreSQL's wire protocol (version 3) that a yardstick needs: no password, simple queries for what is set up,
//! one prepared statement for what is measured.
//!
//! Why not a client crate: `postgres` brings tokio's network part into the workspace's features, and with it another build of
//! the query engine; and its own threads and buffers would be part of what is measured.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// Longest message that is accepted.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest time one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The name of the prepared statement; one without a name would not outlive the next simple query.
const STATEMENT: &str = "row";

/// A session.
pub struct Session {
    stream: TcpStream,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    body: Vec<u8>,
}

impl Session {
    /// Connects to a server that trusts whoever comes.
    ///
    /// # Errors
    /// Nobody listens there, or it asks for a password.
    pub fn open(authority: &str, user: &str, database: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(authority).with_context(|| format!("connecting to PostgreSQL at {authority}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut session = Self { stream, outgoing: Vec::new(), incoming: Vec::new(), body: Vec::new() };
        /// Protocol 3.0.
        const VERSION: u32 = 3 << 16;
        let mut start = VERSION.to_be_bytes().to_vec();
        for text in ["user", user, "database", database, ""] {
            start.extend_from_slice(text.as_bytes());
            start.push(0);
        }
        session.outgoing.extend_from_slice(&(start.len() as u32 + 4).to_be_bytes());
        session.outgoing.extend_from_slice(&start);
        session.flush()?;
        session.answer()?;
        Ok(session)
    }

    /// Runs statements; the rows of the last one that gave any, as texts (`None` is null).
    ///
    /// # Errors
    /// What the server said.
    pub fn query(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.message(b'Q', |body| text(body, sql));
        self.flush()?;
        self.answer().with_context(|| format!("PostgreSQL: {sql}"))
    }

    /// Prepares the session's one statement: parsed and planned once, as a good client does it.
    ///
    /// # Errors
    /// What the server said.
    pub fn prepare(&mut self, sql: &str) -> anyhow::Result<()> {
        self.message(b'P', |body| {
            text(body, STATEMENT);
            text(body, sql);
            body.extend_from_slice(&0_u16.to_be_bytes());
        });
        self.message(b'S', |_| {});
        self.flush()?;
        self.answer().with_context(|| format!("PostgreSQL: {sql}")).map(drop)
    }

    /// Runs the prepared statement and waits until it is committed.
    ///
    /// # Errors
    /// What the server said.
    pub fn execute(&mut self, values: &[i64]) -> anyhow::Result<()> {
        self.fetch(values).map(drop)
    }

    /// Runs the prepared statement; its rows as texts.
    ///
    /// # Errors
    /// What the server said.
    pub fn fetch(&mut self, values: &[i64]) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        self.message(b'B', |body| {
            text(body, "");
            text(body, STATEMENT);
            // All values in binary form.
            body.extend_from_slice(&1_u16.to_be_bytes());
            body.extend_from_slice(&1_u16.to_be_bytes());
            body.extend_from_slice(&(values.len() as u16).to_be_bytes());
            for value in values {
                body.extend_from_slice(&8_u32.to_be_bytes());
                body.extend_from_slice(&value.to_be_bytes());
            }
            body.extend_from_slice(&0_u16.to_be_bytes());
        });
        self.message(b'E', |body| {
            text(body, "");
            body.extend_from_slice(&0_u32.to_be_bytes());
        });
        self.message(b'S', |_| {});
        self.flush()?;
        self.answer()
    }

    /// Runs a `COPY ... FROM STDIN` with these rows and waits until it is committed.
    ///
    /// # Errors
    /// What the server said.
    pub fn copy(&mut self, sql: &str, rows: &[u8]) -> anyhow::Result<()> {
        // All at once: a server that refuses the statement passes over the rows.
        self.message(b'Q', |body| text(body, sql));
        self.message(b'd', |body| body.extend_from_slice(rows));
        self.message(b'c', |_| {});
        self.flush()?;
        self.answer().with_context(|| format!("PostgreSQL: {sql}")).map(drop)
    }

    fn message(&mut self, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
        self.body.clear();
        fill(&mut self.body);
        self.outgoing.push(kind);
        self.outgoing.extend_from_slice(&(self.body.len() as u32 + 4).to_be_bytes());
        self.outgoing.extend_from_slice(&self.body);
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.outgoing).context("sending to PostgreSQL")?;
        self.outgoing.clear();
        Ok(())
    }

    /// All messages until the server is ready again.
    fn answer(&mut self) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let head = self.take(5)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            ensure!((4..MESSAGE_BYTES_MAX).contains(&length), "a message of {length} bytes from PostgreSQL");
            let body = self.take(length - 4)?;
            match head[0] {
                b'Z' => return failure.map_or(Ok(rows), |text| Err(anyhow::anyhow!("{text}"))),
                b'D' => rows.push(data_row(&body)?),
                b'T' => rows.clear(),
                b'E' => failure = Some(error_text(&body)),
                b'R' if body.iter().any(|byte| *byte != 0) => bail!("PostgreSQL asks for a password"),
                _ => {}
            }
            // A refused start is not followed by anything.
            if head[0] == b'E' && failure.as_ref().is_some_and(|text: &String| text.starts_with("FATAL")) {
                bail!("{}", failure.unwrap_or_default());
            }
        }
    }

    fn take(&mut self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        let mut block = [0_u8; 16 * 1024];
        while self.incoming.len() < bytes {
            match self.stream.read(&mut block).context("waiting for PostgreSQL")? {
                0 => bail!("PostgreSQL closed the connection"),
                count => self.incoming.extend_from_slice(&block[..count]),
            }
        }
        Ok(self.incoming.drain(..bytes).collect())
    }
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(text.as_bytes());
    body.push(0);
}

fn data_row(body: &[u8]) -> anyhow::Result<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk::<2>().context("a row without a head")?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>().context("a row that is cut off")?;
        rest = tail;
        let length = i32::from_be_bytes(*length);
        let Ok(length) = usize::try_from(length) else {
            row.push(None);
            continue;
        };
        ensure!(length <= rest.len(), "a row that is cut off");
        row.push(Some(String::from_utf8_lossy(&rest[..length]).into_owned()));
        rest = &rest[length..];
    }
    Ok(row)
}

/// `ERROR: what` of an error message's fields.
fn error_text(body: &[u8]) -> String {
    let field = |code: u8| {
        let field = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&code));
        field.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
    };
    format!("{}: {}", field(b'S'), field(b'M'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    /// A server that answers each of the client's sends with the given bytes.
    fn server(replies: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let answer = |reply: Vec<u8>| {
                let mut block = [0_u8; 4096];
                let count = stream.read(&mut block).unwrap();
                stream.write_all(&reply).unwrap();
                block[..count].to_vec()
            };
            replies.into_iter().map(answer).collect()
        });
        (authority, thread)
    }

    #[test]
    fn rows_nulls_and_errors_are_read_and_the_session_goes_on() {
        let ready = message(b'Z', b"I");
        let row = [&2_u16.to_be_bytes()[..], &3_u32.to_be_bytes(), b"abc", &(-1_i32).to_be_bytes()].concat();
        let (authority, thread) = server(vec![
            [message(b'R', &[0, 0, 0, 0]), ready.clone()].concat(),
            [message(b'T', b""), message(b'D', &row), message(b'C', b"SELECT 1\0"), ready.clone()].concat(),
            [message(b'E', b"SERROR\0Mno such table\0\0"), ready.clone()].concat(),
            [message(b'2', b""), message(b'C', b"INSERT 0 1\0"), ready].concat(),
        ]);
        let mut session = Session::open(&authority, "me", "db").unwrap();
        assert_eq!(session.query("SELECT x").unwrap(), [[Some("abc".to_owned()), None]]);
        let error = session.query("SELECT y").unwrap_err();
        assert!(format!("{error:#}").ends_with("SELECT y: ERROR: no such table"), "{error:#}");
        session.execute(&[1, 2]).unwrap();
        let seen = thread.join().unwrap();
        assert!(seen[0].ends_with(b"user\0me\0database\0db\0\0"), "{:?}", seen[0]);
        assert_eq!(seen[1], message(b'Q', b"SELECT x\0"));
        assert!(seen[3].starts_with(b"B") && seen[3].ends_with(&message(b'S', b"")), "{:?}", seen[3]);
    }

    #[test]
    fn a_refused_start_is_an_error_with_the_servers_words() {
        let (authority, thread) = server(vec![message(b'E', b"SFATAL\0Mrole \"me\" does not exist\0\0")]);
        let error = Session::open(&authority, "me", "db").err().unwrap();
        assert!(format!("{error:#}").contains("FATAL: role \"me\" does not exist"), "{error:#}");
        thread.join().unwrap();
    }
}
