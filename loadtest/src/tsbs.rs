//! Rows in the shape of TSBS `cpu-only`: 10 tags, 10 integer fields, a timestamp; about 345 bytes each.
//!
//! Mechanism: rendering costs more than a fast server needs to take a row in, so a body is rendered once and sent many
//! times. Between two sends only its timestamps are overwritten in place (they have a fixed width), so that no row
//! repeats and nothing is an overwrite. The field values of a host therefore repeat; the parser's work is the same.
//!
//! Each connection owns a range of hosts. A *tick* is one timestamp for all of them, 10 seconds after the last. If a
//! range is larger than a body, a tick takes several bodies; if it is smaller, a body holds several ticks.

use std::fmt::Write;
use std::ops::Range;

/// Digits of a nanosecond timestamp of this century.
const TIMESTAMP_DIGITS: usize = 19;
/// Between two ticks.
const TICK_NS: u64 = 10_000_000_000;

/// One body, rendered once, with the places of its timestamps.
pub struct Body {
    /// Line protocol, ready to send.
    pub text: Vec<u8>,
    /// Rows in it.
    pub rows: usize,
    /// For each row where its timestamp starts, and its tick relative to the body's first.
    stamps: Vec<(usize, u64)>,
    /// Timestamps that the body spans.
    ticks: u64,
}

impl Body {
    /// Renders the rows of `hosts`, `ticks` times.
    fn new(hosts: Range<usize>, ticks: usize) -> Self {
        let mut text = String::new();
        let mut stamps = Vec::with_capacity(hosts.len() * ticks);
        for tick in 0..ticks {
            for host in hosts.clone() {
                render_row(&mut text, host, tick);
                stamps.push((text.len(), tick as u64));
                text.push_str("0000000000000000000\n");
            }
        }
        Self { text: text.into_bytes(), rows: hosts.len() * ticks, stamps, ticks: ticks as u64 }
    }

    /// Moves all rows to their places after `first_ns`.
    pub fn stamp(&mut self, first_ns: u64) {
        let mut digits = [0_u8; TIMESTAMP_DIGITS];
        let mut rendered_tick = None;
        for &(position, tick) in &self.stamps {
            if rendered_tick != Some(tick) {
                let mut rest = first_ns + tick * TICK_NS;
                for digit in digits.iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
                rendered_tick = Some(tick);
            }
            self.text[position..position + TIMESTAMP_DIGITS].copy_from_slice(&digits);
        }
    }
}

/// The bodies of one connection, sent round and round.
pub struct Source {
    bodies: Vec<Body>,
    next: usize,
    /// Timestamp of the round under way.
    now_ns: u64,
}

impl Source {
    /// For a range of hosts, with about `rows` rows a body, starting after `start_ns`.
    pub fn new(hosts: Range<usize>, rows: usize, start_ns: u64) -> Self {
        let bodies = if rows > hosts.len() {
            vec![Body::new(hosts.clone(), rows / hosts.len())]
        } else {
            hosts.clone().step_by(rows).map(|first| Body::new(first..(first + rows).min(hosts.end), 1)).collect()
        };
        Self { bodies, next: 0, now_ns: start_ns }
    }

    /// Bytes of all rendered bodies.
    pub fn bytes(&self) -> usize {
        self.bodies.iter().map(|body| body.text.len()).sum()
    }

    /// The next body, with fresh timestamps.
    pub fn next_body(&mut self) -> &Body {
        let index = self.next;
        self.next = (self.next + 1) % self.bodies.len();
        let now_ns = self.now_ns;
        if self.next == 0 {
            self.now_ns += self.bodies[index].ticks * TICK_NS;
        }
        self.bodies[index].stamp(now_ns);
        &self.bodies[index]
    }
}

/// Everything of a row but its timestamp.
fn render_row(text: &mut String, host: usize, tick: usize) {
    const REGIONS: [&str; 9] = [
        "us-east-1",
        "us-west-1",
        "us-west-2",
        "eu-west-1",
        "eu-central-1",
        "ap-southeast-1",
        "ap-southeast-2",
        "ap-northeast-1",
        "sa-east-1",
    ];
    const SYSTEMS: [&str; 3] = ["Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"];
    const TEAMS: [&str; 4] = ["SF", "NYC", "LON", "CHI"];
    const ENVIRONMENTS: [&str; 3] = ["production", "staging", "test"];
    const FIELDS: [&str; 10] = [
        "usage_user",
        "usage_system",
        "usage_idle",
        "usage_nice",
        "usage_iowait",
        "usage_irq",
        "usage_softirq",
        "usage_steal",
        "usage_guest",
        "usage_guest_nice",
    ];
    let region = REGIONS[host % REGIONS.len()];
    let _ = write!(
        text,
        "cpu,hostname=host_{host},region={region},datacenter={region}{},rack={},os={},arch={},team={},service={},\
         service_version={},service_environment={}",
        ["a", "b", "c"][host % 3],
        host % 100,
        SYSTEMS[host % SYSTEMS.len()],
        ["x64", "x86"][host % 2],
        TEAMS[host % TEAMS.len()],
        host % 20,
        host % 2,
        ENVIRONMENTS[host % ENVIRONMENTS.len()],
    );
    // A small mixing function instead of a random generator: the same options give the same bytes.
    let mut state = (host as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (tick as u64);
    for (index, field) in FIELDS.iter().enumerate() {
        state = (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let separator = if index == 0 { ' ' } else { ',' };
        let _ = write!(text, "{separator}{field}={}i", (state >> 40) % 101);
    }
    text.push(' ');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Series and timestamp of every row.
    fn points(body: &Body) -> Vec<(String, u64)> {
        let text = std::str::from_utf8(&body.text).unwrap();
        text.lines()
            .map(|line| {
                let mut parts = line.split(' ');
                let series = parts.next().unwrap().to_owned();
                (series, parts.nth(1).unwrap().parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn no_point_is_ever_sent_twice() {
        for (hosts, rows) in [(0..10, 3), (5..9, 4), (0..4, 10), (0..1, 1)] {
            let mut source = Source::new(hosts.clone(), rows, 1_700_000_000_000_000_000);
            let mut seen = BTreeSet::new();
            let mut count = 0;
            for _ in 0..20 {
                let body = source.next_body();
                count += body.rows;
                seen.extend(points(body));
            }
            assert_eq!(seen.len(), count, "hosts {hosts:?}, {rows} rows a body");
        }
    }

    #[test]
    fn a_row_has_ten_tags_ten_fields_and_about_345_bytes() {
        let body = Body::new(0..1000, 1);
        let text = std::str::from_utf8(&body.text).unwrap();
        for line in text.lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            assert_eq!(parts[0].matches('=').count(), 10);
            assert_eq!(parts[1].matches('=').count(), 10);
            assert_eq!(parts[2].len(), TIMESTAMP_DIGITS);
        }
        let bytes_per_row = body.text.len() / body.rows;
        assert!((320..370).contains(&bytes_per_row), "{bytes_per_row} bytes a row");
    }
}
