//! Rows in the shape of TSBS: `cpu-only`, 10 tags, 10 integer fields, a timestamp, about 345 bytes each; and `devops`, nine tables
//! a host, of which that is one.
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

/// Which of the TSBS data sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dataset {
    /// The table `cpu` alone.
    Cpu,
    /// All nine.
    Devops,
}

impl Dataset {
    fn tables(self) -> &'static [Table] {
        match self {
            Self::Cpu => &TABLES[..1],
            Self::Devops => &TABLES,
        }
    }
}

/// A table of TSBS.
struct Table {
    name: &'static str,
    /// Tags beside those of the host.
    more_tags: &'static str,
    /// Integer fields.
    fields: &'static [&'static str],
}

const TABLES: [Table; 9] = [
    Table {
        name: "cpu",
        more_tags: "",
        fields: &[
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
        ],
    },
    Table {
        name: "diskio",
        more_tags: ",serial=694-511-162",
        fields: &["reads", "writes", "read_bytes", "write_bytes", "read_time", "write_time", "io_time"],
    },
    Table {
        name: "disk",
        more_tags: ",path=/dev/sda1,fstype=ext4",
        fields: &["total", "free", "used", "used_percent", "inodes_total", "inodes_free", "inodes_used"],
    },
    Table {
        name: "kernel",
        more_tags: "",
        fields: &["boot_time", "interrupts", "context_switches", "processes_forked", "disk_pages_in", "disk_pages_out"],
    },
    Table {
        name: "mem",
        more_tags: "",
        fields: &[
            "total",
            "available",
            "used",
            "free",
            "cached",
            "buffered",
            "used_percent",
            "available_percent",
            "buffered_percent",
        ],
    },
    Table {
        name: "net",
        more_tags: ",interface=eth3",
        fields: &[
            "bytes_sent",
            "bytes_recv",
            "packets_sent",
            "packets_recv",
            "err_in",
            "err_out",
            "drop_in",
            "drop_out",
        ],
    },
    Table {
        name: "nginx",
        more_tags: ",port=12552,server=nginx_65466",
        fields: &["accepts", "active", "handled", "reading", "requests", "waiting", "writing"],
    },
    Table {
        name: "postgresl",
        more_tags: "",
        fields: &[
            "numbackends",
            "xact_commit",
            "xact_rollback",
            "blks_read",
            "blks_hit",
            "tup_returned",
            "tup_fetched",
            "tup_inserted",
            "tup_updated",
            "tup_deleted",
            "conflicts",
            "temp_files",
            "temp_bytes",
            "deadlocks",
            "blk_read_time",
            "blk_write_time",
        ],
    },
    Table {
        name: "redis",
        more_tags: ",port=19071,server=redis_86258",
        fields: &[
            "uptime_in_seconds",
            "total_connections_received",
            "expired_keys",
            "evicted_keys",
            "keyspace_hits",
            "keyspace_misses",
            "instantaneous_ops_per_sec",
            "instantaneous_input_kbps",
            "instantaneous_output_kbps",
            "connected_clients",
            "used_memory",
            "used_memory_rss",
            "used_memory_peak",
            "used_memory_lua",
            "rdb_changes_since_last_save",
            "sync_full",
            "sync_partial_ok",
            "sync_partial_err",
            "pubsub_channels",
            "pubsub_patterns",
            "latest_fork_usec",
            "connected_slaves",
            "master_repl_offset",
            "repl_backlog_active",
            "repl_backlog_size",
            "repl_backlog_histlen",
            "mem_fragmentation_ratio",
            "used_cpu_sys",
            "used_cpu_user",
            "used_cpu_sys_children",
            "used_cpu_user_children",
        ],
    },
];

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Line protocol.
    Lines,
    /// Columns with tabs between them, for PostgreSQL's `COPY`: the number of the host, whose tags are in a table of their own as TSBS
    /// has them there, the fields, the time.
    Columns,
}

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
    fn new(dataset: Dataset, form: Form, hosts: Range<usize>, ticks: usize) -> Self {
        let mut text = String::new();
        let mut stamps = Vec::with_capacity(hosts.len() * ticks);
        for tick in 0..ticks {
            for (host, table) in hosts.clone().flat_map(|host| dataset.tables().iter().map(move |table| (host, table)))
            {
                render_row(&mut text, form, table, host, tick);
                stamps.push((text.len(), tick as u64));
                text.push_str("0000000000000000000\n");
            }
        }
        Self { text: text.into_bytes(), rows: stamps.len(), stamps, ticks: ticks as u64 }
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
    /// For a range of hosts, with about `rows` rows of each table a body, starting after `start_ns`.
    pub fn new(dataset: Dataset, form: Form, hosts: Range<usize>, rows: usize, start_ns: u64) -> Self {
        let bodies = if rows > hosts.len() {
            vec![Body::new(dataset, form, hosts.clone(), rows / hosts.len())]
        } else {
            let body = |first: usize| Body::new(dataset, form, first..(first + rows).min(hosts.end), 1);
            hosts.clone().step_by(rows).map(body).collect()
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
fn render_row(text: &mut String, form: Form, table: &Table, host: usize, tick: usize) {
    match form {
        Form::Lines => render_tags(text, table, host),
        Form::Columns => {
            let _ = write!(text, "{host}");
        }
    }
    // A small mixing function instead of a random generator: the same options give the same bytes.
    let mut state = (host as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (tick as u64);
    for (index, field) in table.fields.iter().enumerate() {
        state = (state ^ (state >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (state >> 40) % 101;
        let _ = match (form, index) {
            (Form::Lines, 0) => write!(text, " {field}={value}i"),
            (Form::Lines, _) => write!(text, ",{field}={value}i"),
            (Form::Columns, _) => write!(text, "\t{value}"),
        };
    }
    text.push(if form == Form::Lines { ' ' } else { '\t' });
}

/// Table and tags of a row.
fn render_tags(text: &mut String, table: &Table, host: usize) {
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
    let region = REGIONS[host % REGIONS.len()];
    let _ = write!(
        text,
        "{},hostname=host_{host},region={region},datacenter={region}{},rack={},os={},arch={},team={},service={},\
         service_version={},service_environment={}{}",
        table.name,
        ["a", "b", "c"][host % 3],
        host % 100,
        SYSTEMS[host % SYSTEMS.len()],
        ["x64", "x86"][host % 2],
        TEAMS[host % TEAMS.len()],
        host % 20,
        host % 2,
        ENVIRONMENTS[host % ENVIRONMENTS.len()],
        table.more_tags,
    );
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
            let mut source = Source::new(Dataset::Cpu, Form::Lines, hosts.clone(), rows, 1_700_000_000_000_000_000);
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
        let body = Body::new(Dataset::Cpu, Form::Lines, 0..1000, 1);
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

    #[test]
    fn columns_hold_what_lines_hold() {
        let mut lines = Body::new(Dataset::Cpu, Form::Lines, 3..4, 1);
        let mut columns = Body::new(Dataset::Cpu, Form::Columns, 3..4, 1);
        lines.stamp(1_700_000_000_000_000_000);
        columns.stamp(1_700_000_000_000_000_000);
        let (lines, columns) = (String::from_utf8(lines.text).unwrap(), String::from_utf8(columns.text).unwrap());
        let parts: Vec<&str> = lines.trim().split(' ').collect();
        let fields = parts[1].split(',').map(|field| field.split('=').nth(1).unwrap().trim_end_matches('i'));
        let wanted: Vec<&str> = std::iter::once("3").chain(fields).chain([parts[2]]).collect();
        assert_eq!(columns.trim().split('\t').collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn devops_has_nine_rows_and_101_fields_a_host() {
        let body = Body::new(Dataset::Devops, Form::Lines, 0..5, 1);
        assert_eq!(body.rows, 45);
        let text = std::str::from_utf8(&body.text).unwrap();
        let fields: usize = text.lines().map(|line| line.split(' ').nth(1).unwrap().matches('=').count()).sum();
        assert_eq!(fields, 5 * 101);
    }
}
