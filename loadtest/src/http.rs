//! The least HTTP/1.1 that a load generator needs: one kept-alive connection, blocking, no allocation per request.
//!
//! Why not a client library: its pools, timers and threads would be part of what is measured. What this is *not*: a
//! general client. It knows no redirects, no TLS, no proxies, no pipelining; it understands the two body framings
//! that servers answer with, `Content-Length` and `chunked`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// Longest time one reply may take before the run is given up.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest reply head that is accepted.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Where the server listens, from `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `HOST:PORT`, as it stands in the `Host` header.
    pub authority: String,
    /// Sent as `Authorization: Bearer ...`, if the server wants one.
    pub token: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let rest = text.strip_prefix("http://").context("the target must start with http://")?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        ensure!(!authority.is_empty() && !authority.contains('/'), "the target must be http://HOST:PORT");
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { authority, token: None })
    }
}

impl Target {
    /// Whether it is this machine, so that its processes have the same monotonic clock.
    pub fn is_here(&self) -> bool {
        let addresses = self.authority.to_socket_addrs();
        addresses.is_ok_and(|mut addresses| addresses.any(|address| address.ip().is_loopback()))
    }
}

/// What the server said.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Seconds of `Retry-After`, if given.
    pub retry_after_s: Option<u64>,
    /// The body, decoded from its framing.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

/// One kept-alive connection. Its buffers live as long as it does and are reused by every request.
pub struct Connection {
    stream: TcpStream,
    authority: String,
    /// The line of the head that says who asks; empty if nobody has to.
    authorization: String,
    /// Request head (and, for small bodies, the body) on its way out.
    outgoing: Vec<u8>,
    /// Bytes received and not yet consumed.
    incoming: Vec<u8>,
    /// Set by `Connection: close`: the next request needs a new connection.
    closed: bool,
}

impl Connection {
    /// Connects, with Nagle's algorithm off.
    pub fn open(target: &Target) -> anyhow::Result<Self> {
        Ok(Self {
            stream: connect(&target.authority)?,
            authority: target.authority.clone(),
            authorization: target
                .token
                .as_ref()
                .map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n")),
            outgoing: Vec::with_capacity(4096),
            incoming: Vec::with_capacity(4096),
            closed: false,
        })
    }

    /// Sends a GET and waits for the reply.
    pub fn get(&mut self, path_and_query: &str) -> anyhow::Result<Reply> {
        self.request("GET", path_and_query, "", &[])
    }

    /// Sends a POST with a body and waits for the reply.
    pub fn post(&mut self, path_and_query: &str, body: &[u8]) -> anyhow::Result<Reply> {
        self.request("POST", path_and_query, "", body)
    }

    /// Sends a POST with a JSON body and waits for the reply.
    pub fn post_json(&mut self, path_and_query: &str, body: &serde_json::Value) -> anyhow::Result<Reply> {
        let text = body.to_string();
        self.request("POST", path_and_query, "Content-Type: application/json\r\n", text.as_bytes())
    }

    /// Sends a DELETE and waits for the reply.
    pub fn delete(&mut self, path_and_query: &str) -> anyhow::Result<Reply> {
        self.request("DELETE", path_and_query, "", &[])
    }

    fn request(&mut self, method: &str, path_and_query: &str, extra_head: &str, body: &[u8]) -> anyhow::Result<Reply> {
        let reply = self.exchange(method, path_and_query, extra_head, body);
        // After half an answer nobody knows where the next one begins.
        self.closed |= reply.is_err();
        reply
    }

    fn exchange(&mut self, method: &str, path_and_query: &str, extra_head: &str, body: &[u8]) -> anyhow::Result<Reply> {
        /// Bodies up to this size travel in the same segment as their head.
        const INLINE_BODY_BYTES_MAX: usize = 2048;
        if self.closed {
            self.stream = connect(&self.authority)?;
            self.incoming.clear();
            self.closed = false;
        }
        self.outgoing.clear();
        write!(
            self.outgoing,
            "{method} {path_and_query} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n{}{extra_head}\r\n",
            self.authority,
            body.len(),
            self.authorization
        )?;
        if body.len() <= INLINE_BODY_BYTES_MAX {
            self.outgoing.extend_from_slice(body);
            self.stream.write_all(&self.outgoing).context("sending a request")?;
        } else {
            self.stream.write_all(&self.outgoing).context("sending a request head")?;
            self.stream.write_all(body).context("sending a request body")?;
        }
        self.reply()
    }

    fn reply(&mut self) -> anyhow::Result<Reply> {
        let head_bytes = loop {
            if let Some(position) = self.incoming.windows(4).position(|four| four == b"\r\n\r\n") {
                break position + 4;
            }
            ensure!(self.incoming.len() < HEAD_BYTES_MAX, "the reply's head is too long");
            self.receive()?;
        };
        let head = Head::parse(&self.incoming[..head_bytes])?;
        self.incoming.drain(..head_bytes);
        self.closed = head.close;
        let body = if head.chunked { self.chunked_body()? } else { self.take(head.content_bytes)? };
        Ok(Reply { status: head.status, retry_after_s: head.retry_after_s, body })
    }

    fn chunked_body(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(digits, 16).context("a chunk size that is not hexadecimal")?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend_from_slice(&self.take(size)?);
            ensure!(self.line()?.is_empty(), "a chunk that does not end where it said");
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(position) = self.incoming.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.incoming[..position]).into_owned();
                self.incoming.drain(..position + 2);
                return Ok(line);
            }
            ensure!(self.incoming.len() < HEAD_BYTES_MAX, "a line of the reply is too long");
            self.receive()?;
        }
    }

    /// The next `bytes` bytes.
    fn take(&mut self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        while self.incoming.len() < bytes {
            self.receive()?;
        }
        Ok(self.incoming.drain(..bytes).collect())
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut block = [0_u8; 16 * 1024];
        loop {
            match self.stream.read(&mut block) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(count) => {
                    self.incoming.extend_from_slice(&block[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("waiting for a reply"),
            }
        }
    }
}

fn connect(authority: &str) -> anyhow::Result<TcpStream> {
    let address = authority
        .to_socket_addrs()
        .with_context(|| format!("resolving {authority}"))?
        .next()
        .with_context(|| format!("{authority} has no address"))?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("connecting to {authority}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    Ok(stream)
}

/// The lines of a reply's head that matter here.
#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    content_bytes: usize,
    chunked: bool,
    close: bool,
    retry_after_s: Option<u64>,
}

impl Head {
    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes).context("a reply head that is not UTF-8")?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ');
        let version = words.next().unwrap_or_default();
        ensure!(version.starts_with("HTTP/1."), "not an HTTP/1 reply: {first:?}");
        let status = words.next().and_then(|word| word.parse().ok()).context("a reply without a status")?;
        let mut head =
            Self { status, content_bytes: 0, chunked: false, close: version == "HTTP/1.0", retry_after_s: None };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                head.content_bytes = value.parse().context("a content-length that is no number")?;
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("retry-after") {
                head.retry_after_s = value.parse().ok();
            }
        }
        if status == 204 || status == 304 {
            head.content_bytes = 0;
            head.chunked = false;
        }
        Ok(head)
    }
}

/// Percent-encodes one value of a query string.
pub fn encode(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers each connection's requests with the given texts and keeps what it was sent.
    fn server(replies: &'static [&'static str]) -> (Target, std::thread::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            for reply in replies {
                let mut block = [0_u8; 4096];
                let count = stream.read(&mut block).unwrap();
                seen.extend_from_slice(&block[..count]);
                stream.write_all(reply.as_bytes()).unwrap();
            }
            seen
        });
        (Target { authority, token: None }, thread)
    }

    #[test]
    fn two_requests_share_a_connection_and_both_framings_are_read() {
        let (target, thread) = server(&[
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nfull",
        ]);
        let mut connection = Connection::open(&target).unwrap();
        assert_eq!(connection.post("/w?db=a", b"m f=1").unwrap().status, 204);
        assert_eq!(connection.get("/q").unwrap().text(), "abcde");
        let refused = connection.get("/q").unwrap();
        assert_eq!((refused.status, refused.retry_after_s, refused.text().as_str()), (503, Some(2), "full"));
        let seen = String::from_utf8(thread.join().unwrap()).unwrap();
        assert!(seen.starts_with("POST /w?db=a HTTP/1.1\r\nHost: 127.0.0.1:"), "{seen}");
        assert!(seen.contains("Content-Length: 5\r\n\r\nm f=1GET /q "), "{seen}");
    }

    #[test]
    fn a_token_goes_along_with_every_request() {
        let (target, thread) = server(&["HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"]);
        let mut connection = Connection::open(&Target { token: Some("secret".to_owned()), ..target }).unwrap();
        connection.get("/q").unwrap();
        connection.delete("/d").unwrap();
        let seen = String::from_utf8(thread.join().unwrap()).unwrap();
        assert_eq!(seen.matches("Authorization: Bearer secret\r\n").count(), 2, "{seen}");
        assert!(seen.contains("DELETE /d HTTP/1.1\r\n"), "{seen}");
    }

    #[test]
    fn a_closed_connection_is_an_error_and_not_an_endless_wait() {
        let (target, thread) = server(&["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"]);
        let mut connection = Connection::open(&target).unwrap();
        assert!(connection.get("/").unwrap_err().to_string().contains("closed"));
        thread.join().unwrap();
    }

    #[test]
    fn targets_are_plain_http_with_a_port() {
        assert_eq!("http://localhost:8181/".parse::<Target>().unwrap().authority, "localhost:8181");
        assert_eq!("http://example".parse::<Target>().unwrap().authority, "example:80");
        assert!("https://localhost".parse::<Target>().is_err());
        assert!("http://localhost/path".parse::<Target>().is_err());
    }

    #[test]
    fn query_values_are_percent_encoded() {
        assert_eq!(encode("SELECT 'a+b'"), "SELECT%20%27a%2Bb%27");
    }
}
