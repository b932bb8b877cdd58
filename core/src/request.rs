//! A request to a request trigger, what its plugin answers, and the way of the answer to whoever asked (reference, 1.7).
//!
//! An answer goes one of two ways. *Whole*: it is in the run's report, and the trigger's home gives it to the [`AnswerSlot`] when what
//! the run wrote is durable. *Streamed*: the bridge opens the slot while the plugin runs, and sends pieces, each of which waits
//! for room; the home ends the stream when what the run wrote is durable, or cuts it if the run failed.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// A request as a run gets it.
#[derive(Clone, Debug)]
pub struct PluginRequest {
    /// For instance `POST`.
    pub method: String,
    /// The trigger's path, behind `/api/v3/engine/`.
    pub path: Arc<str>,
    /// What the URI's path has behind the trigger's, without the slash between them; as it was sent, not decoded.
    pub tail: Option<String>,
    /// What stands behind the question mark, as it was sent.
    pub query_string: String,
    /// The decoded parameters in order, repeated ones included.
    pub query: Vec<(String, String)>,
    /// Names in lower case, in order, repeated ones included; without `authorization`.
    pub headers: Vec<(String, String)>,
    /// The whole body, decompressed.
    pub body: Bytes,
    /// Who asks.
    pub peer: Option<SocketAddr>,
    /// Where the answer goes; `None` where nobody waits for one.
    pub answer: Option<Arc<dyn AnswerSlot>>,
}

impl PluginRequest {
    /// Bytes that it holds in memory.
    pub fn bytes(&self) -> usize {
        let pairs = self.query.iter().chain(&self.headers).map(|(name, value)| name.len() + value.len());
        self.body.len() + self.query_string.len() + pairs.sum::<usize>()
    }

    /// The tail without percent-encoding; what is no UTF-8 then becomes U+FFFD.
    pub fn decoded_tail(&self) -> String {
        percent_decoded(self.tail.as_deref().unwrap_or_default())
    }
}

fn percent_decoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16)).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (digit(after.first()), digit(after.get(1))) {
            (Some(high), Some(low)) if *first == b'%' => (high << 4 | low, &after[2..]),
            _ => (*first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Status and headers of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// Names and values in order; a name may come more than once.
    pub headers: Vec<(String, String)>,
}

/// What a plugin answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginResponse {
    /// Status and headers.
    pub head: ResponseHead,
    /// The body; `None` if it was streamed, and the head with it.
    pub body: Option<Bytes>,
}

/// Why a request has no answer of its plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The plugin failed, or what it wanted written could not be.
    #[error("{0}")]
    Failed(String),
    /// The run took longer than its deadline.
    #[error("{0}")]
    TimedOut(String),
    /// It was not run, or not to its end, and may be asked again.
    #[error("{0}")]
    Unavailable(String),
}

/// Where the answer to one request goes. Nothing here blocks but [`PieceSender::send`].
pub trait AnswerSlot: Send + Sync + fmt::Debug {
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;

    /// A part of the answer has been sent: it cannot become another one.
    fn is_begun(&self) -> bool;

    /// Sends the answer; ends it, if it is being streamed. Later calls do nothing.
    fn finish(&self, answer: Result<PluginResponse, RequestError>);

    /// Sends status and headers of an answer whose body follows piece by piece. `None` if nobody waits for it, or if an answer was
    /// sent before.
    fn stream(&self, head: ResponseHead) -> Option<Box<dyn PieceSender>>;
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// There was no room for it in time.
    NoRoom,
    /// Nobody takes it any more.
    ReaderGone,
}

/// The bridge's end of a streamed body.
pub trait PieceSender: Send {
    /// Sends a piece. Blocks while there is no room, at most `within`: not for a shard's thread.
    fn send(&mut self, piece: Bytes, within: Duration) -> Sent;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_decoded_as_far_as_they_are_encoded() {
        for (raw, decoded) in [
            ("", ""),
            ("a/b", "a/b"),
            ("a%20b%2Fc", "a b/c"),
            ("h%C3%A4", "h\u{e4}"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%ff", "\u{fffd}"),
            ("a+b", "a+b"),
        ] {
            assert_eq!(percent_decoded(raw), decoded, "{raw}");
        }
    }
}
