//! Rows as the Time Series Benchmark Suite makes them for its case `cpu-only`: ten tags, ten integer fields, about 345
//! bytes. Deterministic: the same arguments give the same bytes.

use std::fmt::Write;

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
const SYSTEMS: [&str; 3] = ["Ubuntu15.10", "Ubuntu16.10", "Ubuntu16.04LTS"];
const ARCHITECTURES: [&str; 2] = ["x64", "x86"];
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
/// The instant of the first row.
const START_NS: u64 = 1_451_606_400_000_000_000;
/// Between two rows of a host.
const STEP_NS: u64 = 10_000_000_000;

/// The rows of `cpu-only`, host by host and instant by instant, without end.
#[derive(Clone, Debug)]
pub struct CpuOnly {
    series: Vec<String>,
    row: u64,
    random: u64,
}

impl CpuOnly {
    /// Rows of `hosts` hosts, from the first instant on.
    pub fn new(hosts: usize, seed: u64) -> Self {
        let mut random = seed;
        let series = (0..hosts).map(|host| series(host, &mut random)).collect();
        CpuOnly { series, row: 0, random }
    }

    /// The next `rows` rows as the body of one request.
    pub fn body(&mut self, rows: usize) -> String {
        let mut body = String::with_capacity(rows * 350);
        for _ in 0..rows {
            self.push_row(&mut body);
        }
        body
    }

    fn push_row(&mut self, body: &mut String) {
        let hosts = self.series.len() as u64;
        body.push_str(&self.series[(self.row % hosts) as usize]);
        for (at, field) in FIELDS.iter().enumerate() {
            let value = next(&mut self.random) % 101;
            let separator = if at == 0 { ' ' } else { ',' };
            write!(body, "{separator}{field}={value}i").expect("writing to a string");
        }
        let time = START_NS + self.row / hosts * STEP_NS;
        writeln!(body, " {time}").expect("writing to a string");
        self.row += 1;
    }
}

fn series(host: usize, random: &mut u64) -> String {
    let mut pick = |below: usize| (next(random) % below as u64) as usize;
    let region = REGIONS[pick(REGIONS.len())];
    let zone = ["a", "b", "c"][pick(3)];
    format!(
        "cpu,hostname=host_{host},region={region},datacenter={region}{zone},rack={},os={},arch={},team={},service={},\
         service_version={},service_environment={}",
        pick(100),
        SYSTEMS[pick(SYSTEMS.len())],
        ARCHITECTURES[pick(ARCHITECTURES.len())],
        TEAMS[pick(TEAMS.len())],
        pick(20),
        pick(2),
        ENVIRONMENTS[pick(ENVIRONMENTS.len())],
    )
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *state;
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_deterministic_and_rows_have_the_expected_size() {
        let body = CpuOnly::new(4000, 1).body(5000);
        assert_eq!(body, CpuOnly::new(4000, 1).body(5000));
        assert_eq!(body.lines().count(), 5000);
        assert!((320..370).contains(&(body.len() / 5000)), "{} bytes a row", body.len() / 5000);
    }
}
