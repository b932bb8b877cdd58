//! The durable key-value state of a trigger: `influxdb3_local.state`.
//!
//! **Contract.** Values are texts that the bridge makes and reads (`saltus._state`); nobody else looks into them. A run is given the
//! state as it was when it began, and what it changes comes back with its report: the shard commits it together with the
//! run's rows, or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What a run does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The key.
    pub key: Arc<str>,
    /// Its new value; `None` deletes it.
    pub value: Option<Arc<str>>,
}

/// The state of one trigger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    entries: BTreeMap<Arc<str>, Arc<str>>,
    bytes: usize,
    /// Rises with every commit; which of two records of a log is the newer.
    pub revision: u64,
}

impl State {
    /// An empty one of that revision.
    pub fn of_revision(revision: u64) -> Self {
        State { revision, ..State::default() }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        self.entries.get(key)
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.entries.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes a change.
    pub fn apply(&mut self, change: &StateChange) {
        let added = change.value.as_ref().map_or(0, |value| change.key.len() + value.len());
        let before = match &change.value {
            Some(value) => self.entries.insert(change.key.clone(), value.clone()),
            None => self.entries.remove(&change.key),
        };
        let removed = before.map_or(0, |before| change.key.len() + before.len());
        self.bytes = self.bytes + added - removed;
    }

    /// All of it as changes of an empty state.
    pub fn as_changes(&self) -> Vec<StateChange> {
        self.iter().map(|(key, value)| StateChange { key: key.clone(), value: Some(value.clone()) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: Option<&str>) -> StateChange {
        StateChange { key: key.into(), value: value.map(Into::into) }
    }

    #[test]
    fn bytes_are_those_of_what_is_there() {
        let mut state = State::default();
        for (key, value) in [("a", Some("12345")), ("bb", Some("1")), ("a", Some("1")), ("bb", None), ("none", None)] {
            state.apply(&change(key, value));
            let counted: usize = state.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert_eq!(state.bytes(), counted, "{key} {value:?}");
        }
        assert_eq!((state.len(), state.get("a").map(|v| &**v)), (1, Some("1")));
        let mut again = State::default();
        state.as_changes().iter().for_each(|change| again.apply(change));
        assert_eq!(again, state);
    }
}
