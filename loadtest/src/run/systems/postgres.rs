//! PostgreSQL with PL/Python: a table of the same columns, a row trigger or a function in Python, a prepared statement.
//!
//! It is asked in the way that suits it best. A row trigger runs within the transaction, before anything is durable, and the
//! acknowledgement waits for it; so a slow plugin is paid for by the writer.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::super::drive::{Answer, Client};
use super::super::rows::mixed;
use super::super::scenario::{Plugin, Scenario, Shape, Stream, Write};
use super::{Entry, System, process, wall_ns};
use crate::http::Target;
use crate::open_loop::now_ns;
use crate::postgres::Session;
use crate::tsbs::{Dataset, Form, Source};

const USER: &str = "postgres";
/// How long a row that was written may be missing from queries.
const VISIBLE_WITHIN_NS: u64 = 30_000_000_000;

/// Why it is left out of a scenario with this stream.
pub fn refuses(stream: &Stream) -> Option<&'static str> {
    let foreign = stream.plugin.as_ref().is_some_and(|plugin| plugin.source.ends_with(".py"));
    match &stream.write {
        Some(write) if is_copied(write) && stream.plugin.is_none() => None,
        Some(write) if write.rows > 1 || write.shape != Shape::Sensor => {
            Some("written to it are single rows of the shape sensor, and rows of TSBS cpu-only without a plugin")
        }
        Some(write) if write.late > 0.0 || write.overwrite > 0.0 => Some("its rows do not overwrite each other"),
        _ if foreign => Some("the plugin is not written for it"),
        _ if stream.query.is_some() => Some("the question is for other tables"),
        _ if stream.schedule.is_some() => Some("it has no scheduled functions"),
        _ => None,
    }
}

/// Whether rows go in by `COPY`.
fn is_copied(write: &Write) -> bool {
    write.shape == Shape::Cpu
}

/// A server that trusts whoever comes.
pub struct Postgres {
    authority: String,
    session: Session,
    /// The process that all sessions are children of, if it is on this machine.
    postmaster: Option<u32>,
    /// Per stream, the highest due time of the entries that were read.
    read_until_ns: HashMap<String, u64>,
}

impl Postgres {
    /// Connects. If it is on this machine, and may be, it is put on so many of the first processors, or else on all of them.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(authority: &str, processors: Option<usize>) -> anyhow::Result<Self> {
        let mut session = Session::open(authority, USER, USER)?;
        let own = session.query("SELECT pg_backend_pid()")?;
        let own = own.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        let here = Target { authority: authority.to_owned(), token: None }.is_here();
        let postmaster = own.filter(|_| here).and_then(|own| process::parent(own, "postgres"));
        let placed = postmaster.is_some_and(|postmaster| process::place_family(postmaster, processors));
        if !placed {
            eprintln!("PostgreSQL stays on the processors that it was started on");
        }
        Ok(Self { authority: authority.to_owned(), session, postmaster, read_until_ns: HashMap::new() })
    }

    fn session(&self, stream: &Stream) -> anyhow::Result<Session> {
        let mut session = Session::open(&self.authority, USER, USER)?;
        session.query(if stream.no_sync { "SET synchronous_commit = off" } else { "SET synchronous_commit = on" })?;
        Ok(session)
    }
}

/// The table of a stream; `loadtest_` keeps what else is in the database out of harm's way.
fn table(stream: &Stream) -> String {
    format!("loadtest_{}", stream.name)
}

/// The body of the trigger's function.
fn trigger_body(plugin: &Plugin) -> String {
    let argument = |name: &str| {
        let text = plugin.arguments.get(name).and_then(|value| value.as_str()).unwrap_or("0");
        text.parse::<f64>().unwrap_or(0.0)
    };
    if plugin.is("probe") {
        return "import time\nTD['new']['entered'] = time.monotonic_ns()\nreturn 'MODIFY'".to_owned();
    }
    format!(
        "import time\ntime.sleep({} / 1000)\nend = time.perf_counter() + {} / 1000\ntotal = 0\n\
         while time.perf_counter() < end:\n    for number in range(100):\n        total = (total + number * number) % 1000003\n\
         return None",
        argument("sleep_ms"),
        argument("work_ms")
    )
}

impl System for Postgres {
    fn name(&self) -> String {
        "postgres".to_owned()
    }

    fn note(&self) -> String {
        let version = Session::open(&self.authority, USER, USER)
            .and_then(|mut session| session.query("SHOW server_version"))
            .ok()
            .and_then(|rows| rows.first()?.first()?.clone());
        let version = version.unwrap_or_else(|| "of an unknown version".to_owned());
        format!("PostgreSQL {version} with PL/Python: row triggers run within the transaction, before it is durable")
    }

    fn prepare(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        self.session.query("CREATE EXTENSION IF NOT EXISTS plpython3u")?;
        for stream in &scenario.streams {
            let table = table(stream);
            self.session.query(&format!("DROP TABLE IF EXISTS {table}"))?;
            let columns = "time bigint, device bigint, temperature bigint, humidity bigint, due bigint, entered bigint";
            let index = "PRIMARY KEY (device, time)";
            match stream.kind() {
                "write" if stream.write.as_ref().is_some_and(is_copied) => {
                    // The tags are in another table, as TSBS has them here; that is filled before, and does not count.
                    let fields: String = (0..10).map(|field| format!("field_{field} bigint, ")).collect();
                    self.session.query(&format!(
                        "CREATE TABLE {table} (tags_id integer, {fields}time bigint, PRIMARY KEY (tags_id, time))"
                    ))?
                }
                "write" => self.session.query(&format!("CREATE TABLE {table} ({columns}, {index})"))?,
                "visible" => self.session.query(&format!("CREATE TABLE {table} (n bigint PRIMARY KEY)"))?,
                _ => self.session.query(&format!(
                    "CREATE OR REPLACE FUNCTION {table}(body bigint) RETURNS bigint LANGUAGE plpython3u AS \
                     $$import time\nreturn time.monotonic_ns()$$"
                ))?,
            };
            if let (Some(plugin), "write") = (&stream.plugin, stream.kind()) {
                let body = trigger_body(plugin);
                self.session.query(&format!(
                    "CREATE OR REPLACE FUNCTION {table}_trigger() RETURNS trigger LANGUAGE plpython3u AS $${body}$$;\n\
                     CREATE TRIGGER entered BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_trigger()"
                ))?;
            }
        }
        Ok(())
    }

    fn client(&self, stream: &Stream, index: usize, base_ns: u64) -> anyhow::Result<Box<dyn Client>> {
        let mut session = self.session(stream)?;
        let table = table(stream);
        if let Some(write) = stream.write.as_ref().filter(|write| is_copied(write)) {
            let bound = |index: usize| write.series * index / stream.connections;
            let hosts = bound(index)..bound(index + 1);
            let source = Source::new(Dataset::Cpu, Form::Columns, hosts, write.rows, base_ns);
            return Ok(Box::new(Copier { session, sql: format!("COPY {table} FROM STDIN"), source, text: Vec::new() }));
        }
        let series = stream.write.as_ref().map_or(1, |write| write.series) as u64;
        Ok(match stream.kind() {
            "write" => {
                session.prepare(&format!(
                    "INSERT INTO {table} (time, device, temperature, humidity, due) VALUES ($1, $2, $3, $4, $5)"
                ))?;
                Box::new(Inserter { session, series, base_ns, values: [0; 5] })
            }
            "visible" => {
                let other = self.session(stream)?;
                session.prepare(&format!("INSERT INTO {table} (n) VALUES ($1)"))?;
                Box::new(Looker { session, other, table, number: 0 })
            }
            _ => {
                session.prepare(&format!("SELECT {table}($1)"))?;
                Box::new(Caller { session })
            }
        })
    }

    fn entries(&mut self, stream: &Stream, wanted: usize) -> anyhow::Result<Vec<Entry>> {
        let read_until = self.read_until_ns.entry(stream.name.clone()).or_insert(0);
        let sql = format!("SELECT due, entered - due FROM {} WHERE due > {read_until}", table(stream));
        let number = |cell: &Option<String>| cell.as_deref()?.parse().ok();
        let rows = self.session.query(&sql)?;
        let entry =
            |row: &Vec<Option<String>>| Some(Entry { due_ns: number(row.first()?)?, after_ns: number(row.get(1)?)? });
        let entries: Vec<Entry> = rows.iter().filter_map(entry).collect();
        *read_until = entries.iter().map(|entry| entry.due_ns).max().unwrap_or(*read_until);
        ensure!(entries.len() >= wanted, "PostgreSQL has {} of {wanted} rows", entries.len());
        Ok(entries)
    }

    fn sees_entries(&self, stream: &Stream) -> bool {
        stream.is_probed() && Target { authority: self.authority.clone(), token: None }.is_here()
    }

    fn processor_time(&self) -> Option<Duration> {
        process::family_time(self.postmaster?)
    }
}

struct Inserter {
    session: Session,
    series: u64,
    base_ns: u64,
    values: [i64; 5],
}

impl Client for Inserter {
    fn prepare(&mut self, number: u64, due_ns: u64) -> u32 {
        let chance = mixed(number);
        let device = mixed(number ^ 0x5EED) % self.series;
        let time_ns = self.base_ns + number * 1000;
        self.values = [time_ns, device, chance % 50, chance / 50 % 100, due_ns].map(|value| value as i64);
        1
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        self.session.execute(&self.values)?;
        Ok(Answer::Done)
    }
}

/// Rows of TSBS.
struct Copier {
    session: Session,
    sql: String,
    source: Source,
    text: Vec<u8>,
}

impl Client for Copier {
    fn prepare(&mut self, _number: u64, _due_ns: u64) -> u32 {
        let body = self.source.next_body();
        self.text.clear();
        self.text.extend_from_slice(&body.text);
        body.rows as u32
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        self.session.copy(&self.sql, &self.text)?;
        Ok(Answer::Done)
    }
}

struct Caller {
    session: Session,
}

impl Client for Caller {
    fn prepare(&mut self, _number: u64, _due_ns: u64) -> u32 {
        0
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        let rows = self.session.fetch(&[0])?;
        let entered = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        Ok(Answer::Entered(entered.context("the function returned no number")?))
    }
}

/// Inserts a row and asks for it, on another session, until it is there.
struct Looker {
    session: Session,
    other: Session,
    table: String,
    number: i64,
}

impl Client for Looker {
    fn prepare(&mut self, number: u64, _due_ns: u64) -> u32 {
        self.number = ((wall_ns() / 1_000_000) * 1000 + number % 1000) as i64;
        1
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        self.session.execute(&[self.number])?;
        let sql = format!("SELECT n FROM {} WHERE n = {}", self.table, self.number);
        let end_ns = now_ns() + VISIBLE_WITHIN_NS;
        while now_ns() < end_ns {
            if !self.other.query(&sql)?.is_empty() {
                return Ok(Answer::Done);
            }
        }
        Ok(Answer::Refused(format!("row {} is not to be seen", self.number)))
    }
}
