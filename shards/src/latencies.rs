//! Latencies as a histogram that takes no memory before it has one, and no more than they need.

use std::ops::Deref;
use std::sync::OnceLock;

use hdrhistogram::Histogram;

/// Larger ones count as this: a minute and some seconds, in nanoseconds.
const NANOSECONDS_MAX: u64 = 1 << 36;
/// Values are right in so many decimal digits.
const DIGITS: u8 = 3;

/// Latencies of one kind, in nanoseconds. Before the first it takes no memory; with latencies up to a millisecond 90 KB, up to
/// a minute 220 KB.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Option<Box<Histogram<u64>>>);

impl Latencies {
    /// Takes note of one; nothing is below a nanosecond.
    pub fn record(&mut self, nanoseconds: u64) {
        let histogram = self.0.get_or_insert_with(|| Box::new(empty()));
        let recorded = histogram.record(nanoseconds.clamp(1, NANOSECONDS_MAX));
        debug_assert!(recorded.is_ok(), "it grows with its values: {recorded:?}");
    }
}

impl Latencies {
    /// As a histogram of its own.
    pub fn into_histogram(self) -> Histogram<u64> {
        self.0.map_or_else(empty, |histogram| *histogram)
    }
}

/// All there is to ask.
impl Deref for Latencies {
    type Target = Histogram<u64>;

    fn deref(&self) -> &Histogram<u64> {
        static NONE: OnceLock<Histogram<u64>> = OnceLock::new();
        self.0.as_deref().unwrap_or_else(|| NONE.get_or_init(empty))
    }
}

fn empty() -> Histogram<u64> {
    let mut histogram = Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("the digits are a constant that fits"));
    histogram.auto(true);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_there_and_what_is_not_takes_nothing() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.len(), latencies.max(), latencies.value_at_quantile(0.5)), (0, 0, 0));
        assert!(latencies.0.is_none());
        for nanoseconds in [0, 1_000, 1_000_000, u64::MAX] {
            latencies.record(nanoseconds);
        }
        assert_eq!((latencies.len(), latencies.min()), (4, 1));
        assert_eq!(latencies.max(), latencies.highest_equivalent(NANOSECONDS_MAX));
        assert_eq!(latencies.value_at_quantile(0.5), latencies.highest_equivalent(1_000));
    }
}
