//! Events that a trigger was not able to take: what is known of them, and where they are in the logs.
//!
//! A dead letter is a record in the log of the trigger's home. It refers to the rows and does not hold them: they are in the log that
//! they were written to, from where a replay reads them. Another record ends it, when it was replayed or discarded.

use std::collections::BTreeMap;
use std::sync::Arc;

use saltus_core::ids::{EventId, Sequence, TriggerId};
use serde::{Deserialize, Serialize};

use crate::cursors::Pending;

/// An event, or a range of them, that a trigger was not able to take.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its own place in the logs: what it is known by.
    pub id: EventId,
    /// The trigger that did not take it.
    pub trigger: TriggerId,
    /// What is known of it.
    pub account: Account,
}

/// Why a trigger did not take an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// All its attempts failed.
    Failed,
    /// It failed, and the trigger was disabled.
    Disabled,
    /// Nothing was attempted: the trigger lagged too far behind, or the log could not be read.
    Lost,
}

impl Reason {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Failed => "failed",
            Reason::Disabled => "disabled",
            Reason::Lost => "lost",
        }
    }
}

/// What is known of a dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// The database of the trigger.
    pub db: String,
    /// The trigger's name.
    pub trigger_name: String,
    /// When it became a dead letter, nanoseconds since 1970.
    pub time_ns: i64,
    /// Why.
    pub reason: Reason,
    /// The last run that failed, in the life of the process in which it did.
    pub run_id: Option<u64>,
    /// How often it was tried.
    pub attempts: u32,
    /// The tables of its rows, if they are known.
    pub tables: Vec<String>,
    /// Its rows, if they were counted.
    pub rows: Option<u64>,
    /// Its first rows as line protocol.
    pub event: String,
    /// What went wrong, in a line.
    pub error: String,
    /// Where, if a plugin raised it.
    pub traceback: String,
    /// Where its rows are.
    pub parts: Vec<Pending>,
}

impl Account {
    /// The first event of it, and how many parts there are; as text.
    pub fn events(&self) -> Vec<String> {
        let id = |part: &Pending, sequence| EventId { stream: part.stream, sequence }.to_string();
        let text = |part: &Pending| match part.to.0 - part.after.0 {
            1 => id(part, part.to),
            _ => format!("{}..{}", id(part, Sequence(part.after.0 + 1)), part.to.0),
        };
        self.parts.iter().map(text).collect()
    }

    /// The record's body.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|_| unreachable!("strings and numbers only"))
    }

    /// Reads what [`Account::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

/// Single events as parts, neighbours together.
pub(crate) fn parts_of(events: impl IntoIterator<Item = EventId>) -> Vec<Pending> {
    let mut parts: Vec<Pending> = Vec::new();
    for EventId { stream, sequence } in events {
        match parts.last_mut() {
            Some(last) if last.stream == stream && last.to.0 + 1 == sequence.0 => last.to = sequence,
            Some(last) if last.stream == stream && last.after < sequence && sequence <= last.to => {}
            _ => parts.push(Pending { stream, after: Sequence(sequence.0 - 1), to: sequence }),
        }
    }
    parts
}

/// The dead letters that a shard has at hand, by their id: oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeadLetters {
    letters: BTreeMap<EventId, Arc<DeadLetter>>,
    bytes: usize,
}

impl DeadLetters {
    pub fn insert(&mut self, letter: Arc<DeadLetter>) {
        self.bytes += bytes_of(&letter);
        if let Some(before) = self.letters.insert(letter.id, letter) {
            self.bytes -= bytes_of(&before);
        }
    }

    pub fn remove(&mut self, id: EventId) -> Option<Arc<DeadLetter>> {
        let letter = self.letters.remove(&id)?;
        self.bytes -= bytes_of(&letter);
        Some(letter)
    }

    /// The oldest, if there are more bytes of them than `bytes_max`; the newest stays.
    pub fn surplus(&self, bytes_max: usize) -> Option<EventId> {
        let oldest = self.letters.keys().next()?;
        (self.bytes > bytes_max && self.letters.len() > 1).then_some(*oldest)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<DeadLetter>> {
        self.letters.values()
    }

    pub fn len(&self) -> usize {
        self.letters.len()
    }
}

fn bytes_of(letter: &DeadLetter) -> usize {
    let Account { event, error, traceback, parts, tables, .. } = &letter.account;
    let texts = event.len() + error.len() + traceback.len();
    size_of::<DeadLetter>() + texts + size_of_val(&parts[..]) + size_of_val(&tables[..])
}

#[cfg(test)]
mod tests {
    use saltus_core::ids::{Epoch, ShardId, Stream};

    use super::*;

    const STREAM: Stream = Stream { epoch: Epoch(4), shard: ShardId(1) };

    fn event(sequence: u64) -> EventId {
        EventId { stream: STREAM, sequence: Sequence(sequence) }
    }

    fn letter(sequence: u64, text: &str) -> Arc<DeadLetter> {
        let account = Account {
            db: "main".into(),
            trigger_name: "t".into(),
            time_ns: 5,
            reason: Reason::Failed,
            run_id: Some(9),
            attempts: 6,
            tables: vec!["cpu".into()],
            rows: Some(3),
            event: text.to_owned(),
            error: "no".to_owned(),
            traceback: String::new(),
            parts: parts_of([3, 4, 4, 7].map(event)),
        };
        Arc::new(DeadLetter { id: event(sequence), trigger: TriggerId(1), account })
    }

    #[test]
    fn an_account_is_read_as_it_was_written() {
        let account = &letter(1, "cpu v=1 1\n").account;
        assert_eq!(Account::decode(&account.encode()).as_ref(), Ok(account));
        assert_eq!(account.events(), ["4-1-3..4", "4-1-7"]);
        assert!(Account::decode(b"{}").is_err_and(|error| error.contains("db")));
    }

    #[test]
    fn the_oldest_is_surplus_when_there_are_too_many_bytes() {
        let mut letters = DeadLetters::default();
        for sequence in [3, 1, 2] {
            letters.insert(letter(sequence, &"x".repeat(1000)));
        }
        letters.insert(letter(2, &"x".repeat(1000)));
        assert_eq!(letters.len(), 3);
        assert_eq!(letters.surplus(100_000), None);
        assert_eq!(letters.surplus(3000), Some(event(1)));
        assert!(letters.remove(event(1)).is_some() && letters.remove(event(1)).is_none());
        assert_eq!(letters.surplus(3000), None);
        letters.remove(event(2));
        assert_eq!((letters.len(), letters.surplus(0)), (1, None), "the newest stays");
        letters.remove(event(3));
        assert_eq!(letters.bytes, 0);
    }
}
