//! Which events a trigger has finished, and which it has to be given after a crash (design, "Delivery").
//!
//! Four records of the log make it durable. In the stream of the shard on which rows are written: `TriggerBegin`, from here
//! on the trigger sees this stream, by a specification; another one begins where that was changed. `TriggerLeave`: from here
//! on it does not see the stream, and what it has seen is still for it. `TriggerEnd`: it was disabled, and nothing of this
//! stream, or of an earlier life, is for it any more. In the log of the trigger's home: `Cursor`, everything of that stream
//! up to there is finished or given up. So a stream alone says what a trigger sees of it, and how it was specified then,
//! whoever changed it and when; and a cursor may be lost, or read before the rows that it speaks of: it only ever takes away
//! from what is delivered again.
//!
//! **Invariants.**
//! 1. A cursor never passes an event that is not finished: [`Progress::cursor`].
//! 2. What is pending after a crash holds every event that was handed over and not covered by a durable cursor:
//!    [`Ledger::pending`].

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use saltus_core::ids::{Epoch, EventId, Sequence, ShardId, Stream, TableId, TriggerId};
use saltus_core::schedule::Mark;
use saltus_core::trigger::TriggerSpec;
use serde::{Deserialize, Serialize};

use crate::dead_letters::{DeadLetter, DeadLetters};

/// What one trigger has finished of one stream, as its home sees it.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Events in the order of the stream from the first that is not finished; whether each is.
    open: VecDeque<(Sequence, bool)>,
    /// The last event that was handed over.
    last: Sequence,
    /// The cursor that was recorded last.
    recorded: Sequence,
}

impl Progress {
    /// Nothing up to `at` is of interest any more.
    pub fn begin(at: Sequence) -> Self {
        Progress { open: VecDeque::new(), last: at, recorded: at }
    }

    /// An event is the trigger's to run; they come in ascending order. False for one that was handed over before.
    pub fn hand_over(&mut self, event: Sequence) -> bool {
        if event <= self.last {
            return false;
        }
        self.last = event;
        self.open.push_back((event, false));
        true
    }

    /// Nothing up to `to` will be handed over any more.
    pub fn pass(&mut self, to: Sequence) {
        self.last = self.last.max(to);
    }

    /// The event needs no run any more.
    pub fn finish(&mut self, event: Sequence) {
        if let Ok(at) = self.open.binary_search_by_key(&event, |(sequence, _)| *sequence) {
            self.open[at].1 = true;
        }
        while let Some((_, true)) = self.open.front() {
            self.open.pop_front();
        }
    }

    /// The highest sequence such that every event up to it is finished.
    pub fn cursor(&self) -> Sequence {
        match self.open.front() {
            Some((first, _)) => Sequence(first.0 - 1).max(self.recorded),
            None => self.last,
        }
    }

    /// The cursor, if it stands further than the one that was taken before.
    pub fn take_cursor(&mut self) -> Option<Sequence> {
        let cursor = self.cursor();
        (cursor > std::mem::replace(&mut self.recorded, cursor)).then_some(cursor)
    }
}

/// A part of a stream whose events a trigger has to be given: beyond `after`, up to `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Place", into = "Place")]
pub struct Pending {
    /// The stream.
    pub stream: Stream,
    /// The last sequence that is not part of it.
    pub after: Sequence,
    /// The last one that is.
    pub to: Sequence,
}

/// A part of a stream that a trigger has to be given, and by which specification it saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// The part.
    pub part: Pending,
    /// Which of its writes are for the trigger.
    pub spec: Arc<TriggerSpec>,
}

/// A part as it is in a record: epoch, shard, after, to.
type Place = (u32, u16, u64, u64);

impl From<Pending> for Place {
    fn from(Pending { stream, after, to }: Pending) -> Place {
        (stream.epoch.0, stream.shard.0, after.0, to.0)
    }
}

impl From<Place> for Pending {
    fn from((epoch, shard, after, to): Place) -> Pending {
        let stream = Stream { epoch: Epoch(epoch), shard: ShardId(shard) };
        Pending { stream, after: Sequence(after), to: Sequence(to.max(after)) }
    }
}

/// What the logs of earlier lives say of triggers. Filled by recovery, asked when the triggers are known.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    seen: HashMap<TriggerId, BTreeMap<Stream, Vec<Seen>>>,
    cursors: HashMap<(TriggerId, Stream), Sequence>,
    /// The last life in which each trigger was ended.
    ended: HashMap<TriggerId, Epoch>,
    /// The last write of each stream.
    last_write: HashMap<Stream, Sequence>,
    /// The last write of each stream to each table, and to tables that the log does not name.
    last_write_to: HashMap<(Stream, TableId), Sequence>,
    last_write_to_others: HashMap<Stream, Sequence>,
    /// The tables that ever had a name, by database and name.
    tables: HashMap<(Arc<str>, Arc<str>), Vec<TableId>>,
    named: HashSet<TableId>,
    letters: DeadLetters,
    letters_ended: HashSet<EventId>,
    /// How far schedule triggers have come, and in which life they said so.
    marks: HashMap<TriggerId, (Epoch, Mark)>,
}

/// A trigger sees a stream beyond `after`, up to `to` if that was the end.
#[derive(Clone, Debug)]
struct Seen {
    after: Sequence,
    to: Option<Sequence>,
    /// By which specification; that of now, where the log does not say.
    spec: Option<Arc<TriggerSpec>>,
}

impl Ledger {
    /// A `TriggerBegin` at `at`. One that has begun already goes on, if it is by the same specification.
    pub fn begin(&mut self, trigger: TriggerId, stream: Stream, at: Sequence, spec: Option<TriggerSpec>) {
        let seen = self.seen.entry(trigger).or_default().entry(stream).or_default();
        if let Some(last) = seen.last_mut().filter(|last| last.to.is_none()) {
            if last.spec.as_deref() == spec.as_ref() {
                return;
            }
            last.to = Some(at);
        }
        seen.push(Seen { after: at, to: None, spec: spec.map(Arc::new) });
    }

    /// A `TriggerLeave` at `at`.
    pub fn leave(&mut self, trigger: TriggerId, stream: Stream, at: Sequence) {
        let last = self.seen.get_mut(&trigger).and_then(|streams| streams.get_mut(&stream)).and_then(|s| s.last_mut());
        if let Some(last) = last {
            last.to.get_or_insert(at);
        }
    }

    /// A `TriggerEnd`. It ends what the trigger has seen of all earlier lives as well.
    pub fn end(&mut self, trigger: TriggerId, stream: Stream) {
        let ended = self.ended.entry(trigger).or_insert(stream.epoch);
        *ended = stream.epoch.max(*ended);
        if let Some(streams) = self.seen.get_mut(&trigger) {
            streams.remove(&stream);
        }
    }

    /// A `Cursor`; wherever it stands in whichever log, the furthest counts.
    pub fn cursor(&mut self, trigger: TriggerId, stream: Stream, sequence: Sequence) {
        let cursor = self.cursors.entry((trigger, stream)).or_default();
        *cursor = sequence.max(*cursor);
    }

    /// A `ScheduleMark`. A trigger has one home in each life, so of one life the last that is met counts.
    pub fn mark(&mut self, trigger: TriggerId, epoch: Epoch, mark: Mark) {
        let known = self.marks.entry(trigger).or_insert((epoch, mark));
        if known.0 <= epoch {
            *known = (epoch, mark);
        }
    }

    /// How far a schedule trigger has come.
    pub fn mark_of(&self, trigger: TriggerId) -> Option<Mark> {
        self.marks.get(&trigger).map(|(_, mark)| *mark)
    }

    /// A write; they come in the order of their stream.
    pub fn write(&mut self, stream: Stream, at: Sequence) {
        self.last_write.insert(stream, at);
    }

    /// A `CreateTable`.
    pub fn table(&mut self, table: TableId, db: &str, name: &str) {
        self.tables.entry((db.into(), name.into())).or_default().push(table);
        self.named.insert(table);
    }

    /// Likewise, to a table.
    pub fn write_to(&mut self, stream: Stream, at: Sequence, table: TableId) {
        self.write(stream, at);
        if self.named.contains(&table) {
            self.last_write_to.insert((stream, table), at);
        } else {
            self.last_write_to_others.insert(stream, at);
        }
    }

    /// A dead letter.
    pub fn dead_letter(&mut self, letter: DeadLetter) {
        self.letters.insert(Arc::new(letter));
    }

    /// The end of a dead letter; it may be met before the letter.
    pub fn dead_letter_end(&mut self, id: EventId) {
        self.letters_ended.insert(id);
    }

    /// The dead letters that were not ended.
    pub fn dead_letters(&self) -> impl Iterator<Item = &Arc<DeadLetter>> {
        self.letters.iter().filter(|letter| !self.letters_ended.contains(&letter.id))
    }

    /// What the trigger has to be given, oldest life first; `now` is its specification. What it did not see because it was
    /// disabled is no part of it, and neither is what it had not finished when it was: disabled triggers do not accumulate.
    pub fn pending(&self, trigger: TriggerId, now: &TriggerSpec) -> Vec<Left> {
        let mut pending = Vec::new();
        let ended = self.ended.get(&trigger).copied();
        for (stream, seen) in self.seen.get(&trigger).into_iter().flatten() {
            if ended.is_some_and(|ended| stream.epoch < ended) {
                continue;
            }
            let cursor = self.cursors.get(&(trigger, *stream)).copied().unwrap_or_default();
            let last = self.last_write.get(stream).copied().unwrap_or_default();
            for Seen { after, to, spec } in seen {
                let (after, to) = (cursor.max(*after), to.map_or(last, |to| to.min(last)));
                if after < to {
                    let spec = spec.clone().unwrap_or_else(|| Arc::new(now.clone()));
                    pending.push(Left { part: Pending { stream: *stream, after, to }, spec });
                }
            }
        }
        pending
    }

    /// As [`Self::pending`] of a trigger of `db`, less what can hold nothing for it: no writes to its table. Whoever has never had an
    /// event has nothing read for it.
    pub fn pending_in(&self, db: &str, trigger: TriggerId, now: &TriggerSpec) -> Vec<Left> {
        let mut pending = self.pending(trigger, now);
        pending.retain_mut(|left| {
            let part = &mut left.part;
            if let TriggerSpec::Table(name) = &*left.spec {
                part.to = part.to.min(self.last_write_in(part.stream, db, name));
            }
            part.after < part.to
        });
        pending
    }

    fn last_write_in(&self, stream: Stream, db: &str, name: &str) -> Sequence {
        let others = self.last_write_to_others.get(&stream).copied();
        let ids = self.tables.get(&(db.into(), name.into())).into_iter().flatten();
        let last = ids.filter_map(|id| self.last_write_to.get(&(stream, *id)).copied()).chain(others).max();
        last.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use saltus_core::ids::ShardId;

    use super::*;

    const STREAM: Stream = Stream { epoch: Epoch(3), shard: ShardId(1) };
    const TRIGGER: TriggerId = TriggerId(7);

    fn spec(table: &str) -> TriggerSpec {
        TriggerSpec::Table(table.into())
    }

    /// What is pending of a trigger that was always on one table.
    fn pending_of(ledger: &Ledger, trigger: TriggerId) -> Vec<Pending> {
        let left = ledger.pending(trigger, &spec("t"));
        assert!(left.iter().all(|left| *left.spec == spec("t")));
        left.into_iter().map(|left| left.part).collect()
    }

    #[test]
    fn a_cursor_waits_for_the_oldest_event_that_is_not_finished() {
        let mut progress = Progress::begin(Sequence(10));
        assert_eq!(progress.take_cursor(), None);
        for event in [12, 15, 20] {
            assert!(progress.hand_over(Sequence(event)));
        }
        assert!(!progress.hand_over(Sequence(15)), "it has been handed over");
        progress.finish(Sequence(15));
        assert_eq!(progress.take_cursor(), Some(Sequence(11)), "what lies between is nobody's");
        progress.finish(Sequence(12));
        assert_eq!((progress.take_cursor(), progress.take_cursor()), (Some(Sequence(19)), None));
        progress.finish(Sequence(20));
        assert_eq!(progress.take_cursor(), Some(Sequence(20)));
        assert!(progress.open.is_empty());
    }

    #[test]
    fn what_holds_no_writes_to_the_table_of_a_trigger_is_not_pending_for_it() {
        let mut ledger = Ledger::default();
        let (old, new, nameless) = (TableId(1), TableId(2), TableId(9));
        ledger.table(old, "d", "t");
        ledger.begin(TRIGGER, STREAM, Sequence(1), Some(spec("t")));
        let to = |ledger: &Ledger, db: &str| {
            ledger.pending_in(db, TRIGGER, &spec("t")).iter().map(|left| left.part.to.0).collect::<Vec<_>>()
        };
        ledger.table(TableId(3), "d", "other");
        ledger.write_to(STREAM, Sequence(5), TableId(3));
        assert!(to(&ledger, "d").is_empty(), "nothing was written to its table");
        ledger.write_to(STREAM, Sequence(6), old);
        ledger.write_to(STREAM, Sequence(8), TableId(3));
        assert_eq!((to(&ledger, "d"), to(&ledger, "e")), (vec![6], vec![]));
        // It was dropped and made anew.
        ledger.table(new, "d", "t");
        ledger.write_to(STREAM, Sequence(9), new);
        assert_eq!(to(&ledger, "d"), [9]);
        ledger.cursor(TRIGGER, STREAM, Sequence(9));
        assert!(to(&ledger, "d").is_empty());
        ledger.write_to(STREAM, Sequence(11), nameless);
        assert_eq!(to(&ledger, "d"), [11], "nobody knows which table that is");
        assert_eq!(ledger.pending_in("d", TRIGGER, &TriggerSpec::AllTables)[0].part.to, Sequence(11));
    }

    #[test]
    fn what_was_written_while_a_trigger_was_disabled_is_not_pending() {
        let mut ledger = Ledger::default();
        let write = |ledger: &mut Ledger, at| ledger.write(STREAM, Sequence(at));
        write(&mut ledger, 5);
        assert_eq!(pending_of(&ledger, TRIGGER), []);
        ledger.begin(TRIGGER, STREAM, Sequence(6), Some(spec("t")));
        write(&mut ledger, 7);
        let pending = |after, to| [Pending { stream: STREAM, after: Sequence(after), to: Sequence(to) }];
        assert_eq!(pending_of(&ledger, TRIGGER), pending(6, 7));
        ledger.end(TRIGGER, STREAM);
        write(&mut ledger, 9);
        assert_eq!(pending_of(&ledger, TRIGGER), []);
        ledger.begin(TRIGGER, STREAM, Sequence(10), Some(spec("t")));
        assert_eq!(pending_of(&ledger, TRIGGER), []);
        write(&mut ledger, 11);
        assert_eq!(pending_of(&ledger, TRIGGER), pending(10, 11));
        ledger.cursor(TRIGGER, STREAM, Sequence(11));
        ledger.cursor(TRIGGER, STREAM, Sequence(10));
        assert_eq!(pending_of(&ledger, TRIGGER), []);
        assert_eq!(pending_of(&ledger, TriggerId(8)), []);
    }

    #[test]
    fn what_was_not_finished_when_a_trigger_was_disabled_in_a_later_life_is_not_pending() {
        let mut ledger = Ledger::default();
        let stream = |epoch| Stream { epoch: Epoch(epoch), shard: ShardId(0) };
        for epoch in [1, 2] {
            ledger.begin(TRIGGER, stream(epoch), Sequence(1), Some(spec("t")));
            ledger.write(stream(epoch), Sequence(2));
        }
        assert_eq!(pending_of(&ledger, TRIGGER).len(), 2);
        ledger.end(TRIGGER, stream(2));
        assert_eq!(pending_of(&ledger, TRIGGER), []);
        ledger.begin(TRIGGER, stream(2), Sequence(4), Some(spec("t")));
        ledger.write(stream(2), Sequence(5));
        assert_eq!(pending_of(&ledger, TRIGGER), [Pending { stream: stream(2), after: Sequence(4), to: Sequence(5) }]);
    }

    #[test]
    fn what_a_trigger_saw_before_its_specification_was_changed_is_pending_by_the_old_one() {
        let mut ledger = Ledger::default();
        ledger.begin(TRIGGER, STREAM, Sequence(1), Some(spec("a")));
        ledger.write(STREAM, Sequence(5));
        ledger.begin(TRIGGER, STREAM, Sequence(6), Some(spec("b")));
        ledger.begin(TRIGGER, STREAM, Sequence(7), Some(spec("b")));
        ledger.write(STREAM, Sequence(9));
        ledger.leave(TRIGGER, STREAM, Sequence(10));
        ledger.write(STREAM, Sequence(12));
        let left = |after, to, table| Left {
            part: Pending { stream: STREAM, after: Sequence(after), to: Sequence(to) },
            spec: Arc::new(spec(table)),
        };
        assert_eq!(ledger.pending(TRIGGER, &spec("c")), [left(1, 6, "a"), left(6, 10, "b")]);
        ledger.cursor(TRIGGER, STREAM, Sequence(6));
        assert_eq!(ledger.pending(TRIGGER, &spec("c")), [left(6, 10, "b")]);
        ledger.begin(TRIGGER, STREAM, Sequence(11), None);
        assert_eq!(ledger.pending(TRIGGER, &spec("c")), [left(6, 10, "b"), left(11, 12, "c")]);
        ledger.end(TRIGGER, STREAM);
        assert_eq!(ledger.pending(TRIGGER, &spec("c")), []);
    }

    #[test]
    fn the_mark_of_the_latest_life_counts_whatever_log_is_read_first() {
        let mut ledger = Ledger::default();
        let mark = |handled_ns| Mark { handled_ns, last_run_ns: None };
        for (epoch, handled) in [(2, 20), (2, 30), (1, 90), (3, 25), (2, 40)] {
            ledger.mark(TRIGGER, Epoch(epoch), mark(handled));
        }
        assert_eq!(ledger.mark_of(TRIGGER), Some(mark(25)), "a clock that was set back has been written down");
        assert_eq!(ledger.mark_of(TriggerId(8)), None);
    }

    #[test]
    fn streams_are_pending_in_the_order_of_their_lives() {
        let mut ledger = Ledger::default();
        let streams = [(2, 1), (1, 0), (2, 0)].map(|(e, s)| Stream { epoch: Epoch(e), shard: ShardId(s) });
        for stream in streams {
            ledger.begin(TRIGGER, stream, Sequence(1), Some(spec("t")));
            ledger.write(stream, Sequence(2));
        }
        let order: Vec<_> = pending_of(&ledger, TRIGGER).iter().map(|p| (p.stream.epoch.0, p.stream.shard.0)).collect();
        assert_eq!(order, [(1, 0), (2, 0), (2, 1)]);
    }

    /// What may happen to one trigger and one stream.
    #[derive(Clone, Debug)]
    enum Step {
        /// A write, of the trigger's table or of another.
        Write(bool),
        /// The run of one of the open events ends: which, by its place.
        Finish(usize),
        /// The cursor is put into the log.
        Record,
        /// The log is durable up to here.
        Commit,
        /// The process ends and begins again.
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Write),
            4 => (0_usize..8).prop_map(Step::Finish),
            2 => Just(Step::Record),
            2 => Just(Step::Commit),
            1 => Just(Step::Crash),
        ]
    }

    proptest! {
        #[test]
        fn no_event_is_lost_and_none_is_given_again_that_a_durable_cursor_covers(steps in prop::collection::vec(step(), 0..200)) {
            // One life's log: (sequence, is it an event, or the cursor that it holds).
            let mut log: Vec<(Sequence, Option<bool>, Option<Sequence>)> = Vec::new();
            let mut durable = 0;
            let mut progress = Progress::begin(Sequence(0));
            let mut finished = BTreeSet::new();
            let mut next = 1;
            for step in steps.into_iter().chain([Step::Crash]) {
                match step {
                    Step::Write(wanted) => {
                        log.push((Sequence(next), Some(wanted), None));
                        if wanted {
                            prop_assert!(progress.hand_over(Sequence(next)));
                        }
                        next += 1;
                    }
                    Step::Finish(at) => {
                        let open: Vec<_> = progress.open.iter().filter(|(_, done)| !done).map(|(s, _)| *s).collect();
                        if let Some(event) = open.get(at) {
                            progress.finish(*event);
                            finished.insert(*event);
                        }
                    }
                    Step::Record => {
                        if let Some(cursor) = progress.take_cursor() {
                            let passed = log.iter().filter(|(s, wanted, _)| *s <= cursor && *wanted == Some(true));
                            for (event, ..) in passed {
                                prop_assert!(finished.contains(event), "{cursor:?} passes {event:?}");
                            }
                            log.push((Sequence(next), None, Some(cursor)));
                            next += 1;
                        }
                    }
                    Step::Commit => durable = log.len(),
                    Step::Crash => {
                        log.truncate(durable);
                        next = log.last().map_or(1, |(s, ..)| s.0 + 1);
                        let mut ledger = Ledger::default();
                        ledger.begin(TRIGGER, STREAM, Sequence(0), Some(spec("t")));
                        let mut covered = Sequence(0);
                        for (at, write, cursor) in &log {
                            if write.is_some() {
                                ledger.write(STREAM, *at);
                            }
                            if let Some(cursor) = cursor {
                                ledger.cursor(TRIGGER, STREAM, *cursor);
                                covered = covered.max(*cursor);
                            }
                        }
                        let pending = pending_of(&ledger, TRIGGER);
                        progress = Progress::begin(covered);
                        for (at, wanted, _) in &log {
                            let given = pending.iter().any(|p| p.after < *at && *at <= p.to) && *wanted == Some(true);
                            prop_assert_eq!(given, *wanted == Some(true) && *at > covered);
                            if given {
                                prop_assert!(progress.hand_over(*at));
                            } else if *wanted == Some(true) {
                                prop_assert!(finished.contains(at), "{:?} is lost", at);
                            }
                        }
                        // A sequence that was lost with the crash is used again, by another write.
                        finished.retain(|event| *event < Sequence(next));
                    }
                }
            }
        }
    }
}
