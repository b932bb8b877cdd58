//! Invariants of the memory of last times, which tells rows that are certainly new from rows that may overwrite.
//!
//! - A row that [`SeriesTimes::observe`] calls new is strictly later than every earlier row of its series. The other
//!   answer promises nothing: the row may be a new point that merely came late.
//! - Series are known by their fingerprint alone. Two series with one fingerprint share an entry, which then holds the
//!   later of their times: more rows are suspected, none is missed.
//! - At most two generations of `generation_len_max` entries are held. A full young generation becomes the old one and
//!   the old one is forgotten whole; what is asked for in the old one moves to the young one. So a series in use is not
//!   forgotten, no step walks the table, and no list of use is kept.
//! - `forgotten_time_max` is no earlier than any time of a forgotten series, and only rises. An entry made for a series
//!   that may have been forgotten starts there and not at its row's own time: its true last time may lie between.

use std::mem;

use hashbrown::HashTable;

/// Last time per series, bounded.
pub(super) struct SeriesTimes {
    young: Generation,
    old: Generation,
    /// `None` until a generation with entries is forgotten.
    forgotten_time_max: Option<i64>,
    generation_len_max: usize,
}

#[derive(Default)]
struct Generation {
    last: HashTable<(u64, i64)>,
    /// No entry's time is later; meaningless while `last` is empty.
    time_max: Option<i64>,
}

/// Spreads a fingerprint over the bits that the hash table looks at. Fingerprints are hashes already, but nobody
/// promises which of their bits are good.
fn spread(series: u64) -> u64 {
    let product = series.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ (product >> 32)
}

impl SeriesTimes {
    /// Remembers up to twice `generation_len_max` series.
    pub(super) fn new(generation_len_max: usize) -> Self {
        SeriesTimes {
            young: Generation::default(),
            old: Generation::default(),
            forgotten_time_max: None,
            generation_len_max: generation_len_max.max(1),
        }
    }

    /// Remembers a row and says whether it may be a point that was written before.
    pub(super) fn observe(&mut self, series: u64, time: i64) -> bool {
        match self.young.last.find_mut(spread(series), |entry| entry.0 == series) {
            Some(entry) if time > entry.1 => {
                entry.1 = time;
                self.young.time_max = self.young.time_max.max(Some(time));
                false
            }
            Some(_) => true,
            None => self.observe_unmet(series, time),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.young.last.allocation_size() + self.old.last.allocation_size()
    }

    #[cold]
    fn observe_unmet(&mut self, series: u64, time: i64) -> bool {
        let hash = spread(series);
        let old = self.old.last.find(hash, |entry| entry.0 == series).map(|entry| entry.1);
        let known = old.or(self.forgotten_time_max);
        let last = known.map_or(time, |known| known.max(time));
        if self.young.last.len() >= self.generation_len_max {
            self.forget_old();
        }
        self.young.last.insert_unique(hash, (series, last), |entry| spread(entry.0));
        self.young.time_max = self.young.time_max.max(Some(last));
        known.is_some_and(|known| time <= known)
    }

    fn forget_old(&mut self) {
        self.forgotten_time_max = self.forgotten_time_max.max(self.old.time_max);
        mem::swap(&mut self.young, &mut self.old);
        self.young.last.clear();
        self.young.time_max = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_strictly_later_row_of_a_known_series_is_new() {
        let mut times = SeriesTimes::new(8);
        assert!(!times.observe(1, i64::MIN));
        assert!(times.observe(1, i64::MIN));
        assert!(!times.observe(1, 5));
        assert!(times.observe(1, 5));
        assert!(times.observe(1, 4));
        assert!(!times.observe(1, 6));
    }

    #[test]
    fn an_unknown_series_is_new_while_nothing_was_forgotten() {
        let mut times = SeriesTimes::new(2);
        assert!(!times.observe(1, 100));
        for series in 2..=4 {
            assert!(!times.observe(series, 1), "two generations of two hold four series");
        }
    }

    #[test]
    fn a_forgotten_series_is_compared_with_the_latest_forgotten_time() {
        let mut times = SeriesTimes::new(1);
        times.observe(1, 100);
        times.observe(2, 10);
        times.observe(3, 10); // forgets series 1
        assert!(times.observe(4, 50), "series 4 is unknown and 50 is not after 100");
        assert!(times.observe(4, 60), "its true last time may be up to 100");
        assert!(!times.observe(5, 101));
    }

    #[test]
    fn a_series_in_use_is_not_forgotten() {
        let mut times = SeriesTimes::new(2);
        for time in 0..100 {
            assert!(!times.observe(1, time));
            times.observe(1000 + time as u64, 0);
        }
        assert!(times.observe(1, 99));
        assert!(times.bytes() < 1024);
    }
}
