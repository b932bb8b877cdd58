//! When request number k is due: fixed before the first one is sent.
//!
//! After `n` seconds of the first rate come `length` seconds in which the rate goes in a straight line from the first to the last.
//! The number of requests that are due until a moment is then a parabola, and the moment at which one is due its inverse.

use std::time::Duration;

/// A rate over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Requests a second at first.
    pub from: f64,
    /// Requests a second at the end.
    pub to: f64,
    /// At the first rate, and not measured.
    pub warm_up: Duration,
    /// What is measured.
    pub length: Duration,
}

impl Pace {
    /// How many requests there are, at least one.
    pub fn requests(&self) -> u64 {
        // A moment's rounding is not to add a request.
        let all = self.warm_requests() + (self.from + self.to) / 2.0 * self.length.as_secs_f64();
        ((all - 1e-6).ceil() as u64).max(1)
    }

    /// When request `number` is due, from the start; `None` if there is no such request.
    pub fn due(&self, number: u64) -> Option<Duration> {
        if number >= self.requests() {
            return None;
        }
        let number = number as f64;
        let warm = self.warm_requests();
        if number < warm {
            return Some(Duration::from_secs_f64(number / self.from));
        }
        let k = number - warm;
        let slope = (self.to - self.from) / self.length.as_secs_f64();
        // The solution of `from t + slope t^2 / 2 = k`, in the form that does not divide by the slope.
        let root = (self.from * self.from + 2.0 * slope * k).max(0.0).sqrt();
        Some(self.warm_up + Duration::from_secs_f64(2.0 * k / (self.from + root)))
    }

    /// How long before it is due a request's thread stops to sleep and watches the clock, so that its own wake-up is no part of
    /// the figures. At most a tenth of a processor goes into that.
    pub fn awake(&self) -> Duration {
        const AWAKE_MAX: f64 = 150e-6;
        Duration::from_secs_f64((0.1 / self.from.max(self.to)).min(AWAKE_MAX))
    }

    fn warm_requests(&self) -> f64 {
        self.from * self.warm_up.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(from: f64, to: f64) -> Pace {
        Pace { from, to, warm_up: Duration::from_secs(2), length: Duration::from_secs(10) }
    }

    #[test]
    fn a_fixed_rate_is_due_at_equal_distances() {
        let pace = pace(50.0, 50.0);
        assert_eq!(pace.requests(), 600);
        for number in 0..600 {
            let due = pace.due(number).unwrap().as_secs_f64();
            assert!((due - number as f64 * 0.02).abs() < 1e-6, "{number}: {due}");
        }
        assert_eq!(pace.due(600), None);
    }

    #[test]
    fn a_ramp_begins_after_the_warm_up_and_ends_with_its_last_rate() {
        for (from, to) in [(10.0, 1000.0), (1000.0, 10.0)] {
            let pace = pace(from, to);
            let due: Vec<f64> = (0..pace.requests()).map(|number| pace.due(number).unwrap().as_secs_f64()).collect();
            assert!(due.is_sorted(), "{from} to {to}");
            let within = |start: f64, end: f64| due.iter().filter(|due| (start..end).contains(*due)).count() as f64;
            assert_eq!(within(0.0, 2.0), 2.0 * from);
            // The middle second of a straight line has the middle rate.
            assert!((within(6.5, 7.5) - (from + to) / 2.0).abs() <= 1.0);
            let last = from + (to - from) * 0.95;
            assert!((within(11.0, 12.0) - last).abs() <= 1.0, "{} in the last second, not {last}", within(11.0, 12.0));
            assert!(due.iter().all(|due| *due < 12.0));
        }
    }

    #[test]
    fn watching_the_clock_costs_a_tenth_of_a_processor_at_most() {
        assert_eq!(pace(100.0, 100.0).awake(), Duration::from_micros(150));
        assert_eq!(pace(100.0, 10_000.0).awake(), Duration::from_micros(10));
    }
}
