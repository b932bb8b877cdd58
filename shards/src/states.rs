//! The durable states of triggers (`influxdb3_local.state`): how they are written, found again, and handed from shard to shard.
//!
//! # In the log
//! A `State` record holds what one run has changed, or, as a checkpoint, all of a trigger's state. Each has a revision, one higher
//! than the one before: where in which log a record stands says nothing, since a trigger may have had another home. Recovery needs
//! the newest checkpoint and what is newer. Each life begins with a checkpoint of a state that changes, and there is another one
//! when the changes since are long ([`checkpoint_due`]), so that logs of earlier lives, and the beginning of a long one, may go.
//! `StateEnd` ends the state of a deleted trigger, whose id is never used again.
//!
//! # In memory
//! A state is with its trigger on the trigger's home, or else on the [`Shelf`]: that of a disabled trigger, or of one whose home is
//! changing. Who wants a state that another shard still has waits for it. The shelf has a lock, which is taken when triggers come into
//! force and go, never for a run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use saltus_core::ids::TriggerId;
use saltus_core::limits::STATE_CHECKPOINT_BYTES_MIN;
use saltus_core::state::{State, StateChange};

/// What a record of the log says of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Of the state that results.
    pub revision: u64,
    /// The changes are the whole state.
    pub whole: bool,
    /// What changes.
    pub changes: Vec<StateChange>,
}

impl Commit {
    /// As bytes: revision `u64`, whole `u8`, then per change the key (`u32` length, text) and its value (`u8` 0: deleted; 1: `u32`
    /// length, text).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend(self.revision.to_le_bytes());
        out.push(u8::from(self.whole));
        let put = |text: &str, out: &mut Vec<u8>| {
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for StateChange { key, value } in &self.changes {
            put(key, &mut out);
            out.push(u8::from(value.is_some()));
            if let Some(value) = value {
                put(value, &mut out);
            }
        }
        out
    }

    /// Reads what [`Commit::encode`] wrote; trusts no length. `None` if it is something else.
    pub fn decode(bytes: &[u8]) -> Option<Commit> {
        let (revision, rest) = bytes.split_first_chunk::<8>()?;
        let (&whole, mut rest) = rest.split_first()?;
        let mut changes = Vec::new();
        while !rest.is_empty() {
            let key = text(&mut rest)?;
            let (&has_value, after) = rest.split_first()?;
            rest = after;
            let value = if has_value == 1 { Some(text(&mut rest)?) } else { None };
            changes.push(StateChange { key, value });
        }
        Some(Commit { revision: u64::from_le_bytes(*revision), whole: whole == 1, changes })
    }
}

fn text(bytes: &mut &[u8]) -> Option<Arc<str>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    std::str::from_utf8(text).ok().map(Arc::from)
}

/// Whether so many bytes of changes are a reason to write all of a state, which has `state_bytes`.
pub fn checkpoint_due(changed_bytes: usize, state_bytes: usize) -> bool {
    changed_bytes > STATE_CHECKPOINT_BYTES_MIN.max(4 * state_bytes)
}

/// States as recovery finds them, in whatever order.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    commits: HashMap<TriggerId, BTreeMap<u64, Commit>>,
    ended: HashSet<TriggerId>,
}

impl Recovered {
    /// A `State` record.
    pub fn commit(&mut self, trigger: TriggerId, commit: Commit) {
        let commits = self.commits.entry(trigger).or_default();
        if commits.values().any(|newer| newer.whole && newer.revision >= commit.revision) {
            return;
        }
        if commit.whole {
            commits.retain(|revision, _| *revision > commit.revision);
        }
        commits.insert(commit.revision, commit);
    }

    /// A `StateEnd` record.
    pub fn end(&mut self, trigger: TriggerId) {
        self.ended.insert(trigger);
        self.commits.remove(&trigger);
    }

    /// The states that result.
    pub fn states(self) -> HashMap<TriggerId, State> {
        let ended = self.ended;
        let live = self.commits.into_iter().filter(|(trigger, _)| !ended.contains(trigger));
        live.map(|(trigger, commits)| {
            let mut state = State::default();
            for (revision, commit) in commits {
                commit.changes.iter().for_each(|change| state.apply(change));
                state.revision = revision;
            }
            (trigger, state)
        })
        .collect()
    }
}

/// Where the state of a trigger is that may be on the shelf.
#[derive(Debug)]
enum Place {
    /// On the shelf.
    Here(Arc<State>),
    /// A shard has it.
    Away,
}

/// See the header.
#[derive(Debug, Default)]
pub struct Shelf {
    places: Mutex<HashMap<TriggerId, Place>>,
}

impl Shelf {
    /// Recovery has found these.
    pub fn fill(&self, states: HashMap<TriggerId, State>) {
        let places = states.into_iter().map(|(trigger, state)| (trigger, Place::Here(Arc::new(state))));
        self.places.lock().extend(places);
    }

    /// Takes a state, an empty one if there is none; `None` as long as another shard has it.
    pub fn take(&self, trigger: TriggerId) -> Option<Arc<State>> {
        let mut places = self.places.lock();
        if let Some(Place::Away) = places.get(&trigger) {
            return None;
        }
        match places.insert(trigger, Place::Away) {
            Some(Place::Here(state)) => Some(state),
            _ => Some(Arc::default()),
        }
    }

    /// Puts a state back.
    pub fn put(&self, trigger: TriggerId, state: Arc<State>) {
        self.places.lock().insert(trigger, Place::Here(state));
    }

    /// Removes the state of a deleted trigger; `None` as long as a shard has it, else whether there was one.
    pub fn remove(&self, trigger: TriggerId) -> Option<bool> {
        let mut places = self.places.lock();
        match places.get(&trigger) {
            Some(Place::Away) => None,
            None => Some(false),
            Some(Place::Here(state)) => {
                let existed = state.revision > 0;
                places.remove(&trigger);
                Some(existed)
            }
        }
    }

    /// Forgets the states of triggers that do not exist any more.
    pub fn retain(&self, exists: impl Fn(TriggerId) -> bool) {
        self.places.lock().retain(|trigger, place| matches!(place, Place::Away) || exists(*trigger));
    }

    /// The states that are on it.
    pub fn all(&self) -> Vec<(TriggerId, Arc<State>)> {
        let places = self.places.lock();
        let here = places.iter().filter_map(|(trigger, place)| match place {
            Place::Here(state) => Some((*trigger, state.clone())),
            Place::Away => None,
        });
        here.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRIGGER: TriggerId = TriggerId(7);

    fn change(key: &str, value: Option<&str>) -> StateChange {
        StateChange { key: key.into(), value: value.map(Into::into) }
    }

    fn commit(revision: u64, whole: bool, changes: &[(&str, Option<&str>)]) -> Commit {
        Commit { revision, whole, changes: changes.iter().map(|(key, value)| change(key, *value)).collect() }
    }

    fn recovered(commits: impl IntoIterator<Item = Commit>) -> Vec<(String, String)> {
        let mut recovered = Recovered::default();
        commits.into_iter().for_each(|commit| recovered.commit(TRIGGER, commit));
        let states = recovered.states();
        let state = states.get(&TRIGGER).cloned().unwrap_or_default();
        state.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_commit_comes_back_as_it_was_and_nothing_else_is_taken_for_one() {
        let commit = commit(3, false, &[("a", Some("1")), ("\u{e4}", None), ("", Some(""))]);
        let bytes = commit.encode();
        assert_eq!(Commit::decode(&bytes), Some(commit));
        for length in 0..bytes.len() {
            // What is cut between two changes is a shorter commit; the frame's checksum is what tells.
            if let Some(shorter) = Commit::decode(&bytes[..length]) {
                assert_eq!(shorter.encode(), bytes[..length]);
            }
        }
        assert_eq!(Commit::decode(&[0; 8]), None);
    }

    #[test]
    fn an_ended_state_is_gone_whatever_comes_before_or_after() {
        let mut recovered = Recovered::default();
        recovered.commit(TRIGGER, commit(1, true, &[("a", Some("1"))]));
        recovered.end(TRIGGER);
        recovered.commit(TRIGGER, commit(2, false, &[("b", Some("1"))]));
        assert!(recovered.states().is_empty());
    }

    #[test]
    fn the_shelf_gives_a_state_to_one_shard_at_a_time() {
        let shelf = Shelf::default();
        let mut state = State::of_revision(4);
        state.apply(&change("k", Some("v")));
        shelf.fill(HashMap::from([(TRIGGER, state.clone())]));
        assert_eq!(shelf.take(TRIGGER).as_deref(), Some(&state));
        assert_eq!(shelf.take(TRIGGER), None);
        assert_eq!((shelf.remove(TRIGGER), shelf.all().len()), (None, 0));
        shelf.retain(|_| false);
        assert_eq!(shelf.take(TRIGGER), None, "who has it will bring it back");
        shelf.put(TRIGGER, Arc::new(state));
        assert_eq!((shelf.remove(TRIGGER), shelf.remove(TRIGGER)), (Some(true), Some(false)));
        assert_eq!(shelf.take(TriggerId(8)), Some(Arc::default()), "a trigger that has none yet");
    }

    proptest! {
        #[test]
        fn the_order_of_records_says_nothing(
            changes in prop::collection::vec(("[abc]", prop::option::of("[0-9]")), 1..30),
            checkpoints in prop::collection::vec(any::<bool>(), 30),
            order in Just((0..30_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut state = State::default();
            let mut commits = Vec::new();
            for (at, (key, value)) in changes.iter().enumerate() {
                let change = change(key, value.as_deref());
                state.apply(&change);
                let revision = at as u64 + 1;
                let whole = checkpoints[at];
                let changes = if whole { state.as_changes() } else { vec![change] };
                commits.push(Commit { revision, whole, changes });
            }
            let expected: Vec<_> = state.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            prop_assert_eq!(&recovered(commits.clone()), &expected);
            let shuffled = order.into_iter().filter_map(|at| commits.get(at).cloned());
            prop_assert_eq!(&recovered(shuffled), &expected);
        }
    }
}
