//! Identifiers. One type per thing that is counted, so that two numbers cannot be swapped.

use std::fmt;
use std::str::FromStr;

/// A shard's index in this life of the process, `0..shards`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A deferred interpreter of this process, on whichever shard; no number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(pub u32);

/// The number of a start of the process on this data directory; raised durably before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u32);

/// One shard's log in one life of the process (glossary: stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// Which life of the process; compared first, so that streams order by age.
    pub epoch: Epoch,
    /// Which shard's log.
    pub shard: ShardId,
}

/// Position of a record in its stream; 1 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

/// What an event is known by, in this life of the process and in every later one: the place of its write in the log.
/// As text `epoch-shard-sequence`, for instance `3-0-17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    /// Whose log.
    pub stream: Stream,
    /// Where in it.
    pub sequence: Sequence,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stream { epoch, shard } = self.stream;
        write!(f, "{}-{}-{}", epoch.0, shard.0, self.sequence.0)
    }
}

impl FromStr for EventId {
    type Err = String;

    /// # Errors
    /// What is expected.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (epoch, rest) = text.split_once('-')?;
            let (shard, sequence) = rest.split_once('-')?;
            let stream = Stream { epoch: Epoch(epoch.parse().ok()?), shard: ShardId(shard.parse().ok()?) };
            Some(EventId { stream, sequence: Sequence(sequence.parse().ok()?) })
        };
        parse().ok_or_else(|| format!("'{text}' is no id: expected epoch-shard-sequence, such as 3-0-17"))
    }
}

/// A table's identity with its generation in one number: never used again, so a dropped and recreated table
/// never meets old records. Layout: epoch (24 bits), shard (16), counter (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u64);

impl TableId {
    /// The `counter`-th table that `shard` created in `epoch`.
    pub fn new(epoch: Epoch, shard: ShardId, counter: u32) -> Self {
        debug_assert!(counter < 1 << 24, "a shard creates fewer than 2^24 tables in one life");
        TableId(u64::from(epoch.0) << 40 | u64::from(shard.0) << 24 | u64::from(counter))
    }
}

/// A trigger's identity; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TriggerId(pub u64);

impl TriggerId {
    const TEST: u64 = 1 << 63;
    const GLOBAL: u64 = 1 << 62;

    /// What stands in for a trigger in test runs whose cache is known by a name of this hash. No trigger in the catalog has it.
    pub fn of_test(name_hash: u64) -> Self {
        TriggerId(Self::TEST | (name_hash & !Self::GLOBAL))
    }

    /// Whether it stands for test runs.
    pub fn is_test(self) -> bool {
        self.0 & Self::TEST != 0
    }

    /// The cache that stands in for the global one in such test runs.
    pub fn global_of_test(self) -> Self {
        TriggerId(self.0 | Self::GLOBAL)
    }
}

/// One run of a plugin in this life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u64);

/// Nanoseconds of the monotonic clock, comparable within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MonoNs(pub u64);

impl MonoNs {
    /// Nanoseconds from `earlier` to `self`, 0 if `earlier` is later.
    pub fn since(self, earlier: MonoNs) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
