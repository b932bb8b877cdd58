//! A server with the InfluxDB 3 HTTP API: a private Saltus, or any that is running.
//!
//! What differs between such servers is asked, not configured: one that has `system.trigger_latency` is a Saltus, and gets the
//! `trigger_settings` of the scenario; others get those that InfluxDB 3 knows. Plugins go over HTTP, or into the directory that was
//! given for a server which refuses them.
//!
//! The probe says when it was entered by the monotonic clock, so it is of use only on the machine of the server; elsewhere the server's
//! own histograms are all there is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::super::drive::{Answer, Client};
use super::super::rows::{Generator, Recipe};
use super::super::scenario::{Plugin, Query, Scenario, Stream};
use super::{Entry, System, pairs, process, wall_ns};
use crate::http::{Connection, Reply, Target, encode};
use crate::open_loop::{now_ns, until};
use crate::private::{self, Private, rows};
use crate::server::{self, TriggerLatency};

/// How long the entries of a slice are waited for.
const ENTRIES_WITHIN: Duration = Duration::from_secs(20);
/// How long the answer to one question to a probe.
const FLUSH_WITHIN: Duration = Duration::from_secs(4);
/// Time of the rows that make the tables: before all others.
const FIRST_NS: u64 = 1_000_000_000_000_000_000;
/// How long a row that was written may be missing from queries.
const VISIBLE_WITHIN_NS: u64 = 30_000_000_000;

/// The server.
pub struct Influx3 {
    name: String,
    target: Target,
    private: Option<Private>,
    plugin_dir: Option<PathBuf>,
    keep: bool,
    is_saltus: bool,
    database: String,
    triggers: Vec<String>,
    /// The number of the next question to a probe.
    flush: u64,
    /// Per stream, how many samples its probe has handed over.
    have: HashMap<String, usize>,
    /// Per stream, up to which scheduled time its samples were read.
    scheduled_until_ns: HashMap<String, u64>,
}

impl Influx3 {
    /// A private server for a scenario.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(options: &private::Options, scenario: &Scenario) -> anyhow::Result<Self> {
        let shards = scenario.server.shards;
        let mut settings = vec!["--shards".to_owned(), shards.to_string()];
        if scenario.is_apart() {
            let cpus: Vec<String> = (0..shards).map(|cpu| cpu.to_string()).collect();
            settings.extend(["--cpus".to_owned(), cpus.join(",")]);
        }
        settings.extend(scenario.server.options.iter().cloned());
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let private = Private::start(options, &settings, &[])?;
        let target = private.target.clone();
        let mut started = Self::new("saltus", target, None, false);
        started.private = Some(private);
        Ok(started)
    }

    /// A server that is running.
    ///
    /// # Errors
    /// It is not.
    pub fn connect(name: &str, target: Target, plugin_dir: Option<PathBuf>, keep: bool) -> anyhow::Result<Self> {
        let health = Connection::open(&target)?.get("/health")?;
        ensure!(
            (200..300).contains(&health.status),
            "{} is not ready: GET /health gave {}: {}{}",
            target.authority,
            health.status,
            health.text(),
            if health.status == 401 { "; give --token" } else { "" }
        );
        Ok(Self::new(name, target, plugin_dir, keep))
    }

    fn new(name: &str, target: Target, plugin_dir: Option<PathBuf>, keep: bool) -> Self {
        Self {
            name: name.to_owned(),
            target,
            private: None,
            plugin_dir,
            keep,
            is_saltus: false,
            database: String::new(),
            triggers: Vec::new(),
            flush: 0,
            have: HashMap::new(),
            scheduled_until_ns: HashMap::new(),
        }
    }

    fn upload(&self, file: &str, plugin: &Plugin) -> anyhow::Result<()> {
        if let Some(folder) = &self.plugin_dir {
            let path = folder.join(file);
            return std::fs::write(&path, &plugin.text).with_context(|| format!("writing {}", path.display()));
        }
        let body = json!({"plugin_name": file, "content": plugin.text});
        let reply = Connection::open(&self.target)?.post_json("/api/v3/plugins/files", &body)?;
        ensure!(
            (200..300).contains(&reply.status),
            "the server takes no plugins over HTTP ({}: {}); give its plugin directory with --plugin-dir",
            reply.status,
            reply.text()
        );
        Ok(())
    }

    fn create_trigger(&mut self, stream: &Stream, plugin: &Plugin) -> anyhow::Result<()> {
        // A name for each source, so that a server which keeps files does not run another's.
        let own = Path::new(&plugin.source).file_stem().and_then(|stem| stem.to_str()).unwrap_or("plugin");
        let file = format!("loadtest_{own}.py");
        self.upload(&file, plugin)?;
        let specification = match (&stream.schedule, &stream.request) {
            (Some(schedule), _) => format!("every:{}", schedule.every),
            (_, Some(_)) => format!("request:{}", self.route(stream)),
            _ => format!("table:{}", stream.trigger_table()),
        };
        let mut arguments = plugin.arguments.clone();
        arguments.entry("samples").or_insert_with(|| samples_table(stream).into());
        let settings = if self.is_saltus {
            Value::from(plugin.settings.clone())
        } else {
            json!({"run_async": false, "error_behavior": "log"})
        };
        let body = json!({
            "db": self.database, "plugin_filename": file, "trigger_name": stream.name,
            "trigger_specification": specification, "trigger_settings": settings, "trigger_arguments": arguments,
            "disabled": false,
        });
        let path = "/api/v3/configure/processing_engine_trigger";
        let reply = Connection::open(&self.target)?.post_json(path, &body)?;
        ensure!((200..300).contains(&reply.status), "creating the trigger: {}: {}", reply.status, reply.text());
        self.triggers.push(stream.name.clone());
        Ok(())
    }

    /// One path has one trigger in the whole server, so the database is part of it.
    fn route(&self, stream: &Stream) -> String {
        format!("{}_{}", self.database, stream.name)
    }

    fn write_path(&self, no_sync: bool) -> String {
        format!("/api/v3/write_lp?db={}&precision=nanosecond&no_sync={no_sync}", encode(&self.database))
    }

    fn query_path(&self, sql: &str) -> String {
        format!("/api/v3/query_sql?db={}&format=json&q={}", encode(&self.database), encode(sql))
    }

    /// Asks the probe for its oldest samples, and how many there are still; `None` if they did not come.
    fn flushed(&mut self, stream: &Stream) -> anyhow::Result<Option<(Vec<Entry>, u64)>> {
        self.flush += 1;
        let (flush, table) = (self.flush, samples_table(stream));
        let have = self.have.get(&stream.name).copied().unwrap_or(0);
        let line = format!("{} flush={flush}i,have={have}i", stream.trigger_table());
        answered(&Connection::open(&self.target)?.post(&self.write_path(true), line.as_bytes())?)?;
        let sql = format!("SELECT parts, rest, samples FROM {table} WHERE flush = {flush}");
        let what = format!("the probe of {} hands over its samples", stream.name);
        let parts = until(&what, FLUSH_WITHIN, || {
            // The table is made by the first answer.
            let parts = rows(&self.target, &self.database, &sql).unwrap_or_default();
            let whole = parts.first().is_some_and(|row| row["parts"].as_u64() == Some(parts.len() as u64));
            Ok(whole.then_some(parts))
        });
        let Ok(parts) = parts else { return Ok(None) };
        let mut entries = Vec::new();
        for part in &parts {
            let samples = pairs(part["samples"].as_str().unwrap_or_default())?;
            entries.extend(
                samples.iter().map(|(due_ns, after)| Entry { due_ns: *due_ns, after_ns: (*after).max(1) as u64 }),
            );
        }
        *self.have.entry(stream.name.clone()).or_insert(0) += entries.len();
        let rest = parts.first().and_then(|row| row["rest"].as_u64()).unwrap_or(0);
        Ok(Some((entries, rest)))
    }

    fn probed(&mut self, stream: &Stream, wanted: usize) -> anyhow::Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let end_ns = now_ns() + ENTRIES_WITHIN.as_nanos() as u64;
        while now_ns() < end_ns {
            // A question whose run came to no good is asked again.
            let Some((some, rest)) = self.flushed(stream)? else { continue };
            entries.extend(some);
            // An event that is given twice was entered the first time.
            entries.sort_unstable_by_key(|entry| (entry.due_ns, entry.after_ns));
            entries.dedup_by_key(|entry| entry.due_ns);
            if rest == 0 {
                if entries.len() >= wanted {
                    break;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(entries)
    }

    /// What a scheduled plugin wrote since the last time. Its times are those of the wall clock.
    fn ticked(&mut self, stream: &Stream) -> anyhow::Result<Vec<Entry>> {
        // The plugin writes four times a second, and InfluxDB 3 shows what is written within a second.
        std::thread::sleep(Duration::from_millis(if self.is_saltus { 400 } else { 2500 }));
        let table = samples_table(stream);
        let all = rows(&self.target, &self.database, &format!("SELECT samples FROM {table}"))
            .with_context(|| format!("the plugin of {} wrote nothing; its log may say why", stream.name))?;
        let mut samples = Vec::new();
        for row in &all {
            samples.extend(pairs(row["samples"].as_str().unwrap_or_default())?);
        }
        let until_ns = self.scheduled_until_ns.entry(stream.name.clone()).or_insert(0);
        samples.retain(|(due_ns, _)| *due_ns > *until_ns);
        *until_ns = samples.iter().map(|(due, _)| *due).max().unwrap_or(*until_ns);
        let clocks_differ = wall_ns().wrapping_sub(now_ns());
        let entry = |(due, after): &(u64, i64)| Entry {
            due_ns: due.wrapping_sub(clocks_differ),
            after_ns: (*after).max(1) as u64,
        };
        Ok(samples.iter().map(entry).collect())
    }

    fn clean_up(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.target)?;
        for trigger in &self.triggers {
            let path = format!(
                "/api/v3/configure/processing_engine_trigger?db={}&trigger_name={}&force=true",
                encode(&self.database),
                encode(trigger)
            );
            answered(&connection.delete(&path)?)?;
        }
        answered(&connection.delete(&format!("/api/v3/configure/database?db={}", encode(&self.database)))?)
    }
}

impl Drop for Influx3 {
    fn drop(&mut self) {
        let is_left = self.private.is_none() && !self.keep && !self.database.is_empty();
        if is_left && let Err(error) = self.clean_up() {
            eprintln!("database {} could not be removed: {error:#}", self.database);
        }
    }
}

impl System for Influx3 {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn note(&self) -> String {
        let ping = Connection::open(&self.target).and_then(|mut connection| connection.get("/ping"));
        let body = ping.ok().and_then(|reply| serde_json::from_slice::<Value>(&reply.body).ok()).unwrap_or_default();
        let version = |name: &str| body[name].as_str().unwrap_or("of an unknown version");
        if self.is_saltus {
            format!("Saltus {}", version("saltus_version"))
        } else {
            format!("{} {}", body["product_name"].as_str().unwrap_or("InfluxDB 3 API"), version("version"))
        }
    }

    fn prepare(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        self.database = format!("loadtest_{}_{}", scenario.name.replace('-', "_"), wall_ns() / 1_000_000_000);
        server::ensure_database(&self.target, &self.database)?;
        // One row of each table, so that nothing is asked that is not there.
        let mut connection = Connection::open(&self.target)?;
        for stream in &scenario.streams {
            if let Some(write) = &stream.write {
                let mut generator =
                    Generator::new(&Recipe { probe: None, ..Recipe::new(stream, write, FIRST_NS) }, 0, 1);
                generator.prepare(0, 0);
                answered(&connection.post(&self.write_path(false), &generator.text)?)
                    .with_context(|| format!("the first write of stream `{}`", stream.name))?;
            }
            if stream.visible.is_some() {
                answered(&connection.post(&self.write_path(false), format!("{} n=-1i", stream.name).as_bytes())?)?;
            }
        }
        self.is_saltus = server::trigger_latency(&self.target, &self.database, None)?.is_some();
        for stream in &scenario.streams {
            if let Some(plugin) = &stream.plugin {
                self.create_trigger(stream, plugin).with_context(|| format!("stream `{}`", stream.name))?;
            }
        }
        Ok(())
    }

    fn client(&self, stream: &Stream, index: usize, base_ns: u64) -> anyhow::Result<Box<dyn Client>> {
        let connection = Connection::open(&self.target)?;
        Ok(if let Some(write) = &stream.write {
            let generator = Generator::new(&Recipe::new(stream, write, base_ns), index, stream.connections);
            Box::new(Writer { connection, path: self.write_path(stream.no_sync), generator })
        } else if let Some(Query { sql, modulo }) = &stream.query {
            let path = self.query_path("");
            Box::new(Asker { connection, path, sql: sql.clone(), modulo: *modulo, next: String::new() })
        } else if let Some(request) = &stream.request {
            let path = format!("/api/v3/engine/{}", self.route(stream));
            Box::new(Caller { connection, path, body: vec![b'x'; request.body_bytes] })
        } else if stream.visible.is_some() {
            let write_path = self.write_path(stream.no_sync);
            let table = stream.name.clone();
            Box::new(Looker { connection, write_path, query_path: self.query_path(""), table, number: 0 })
        } else {
            bail!("a schedule has no connections")
        })
    }

    fn entries(&mut self, stream: &Stream, wanted: usize) -> anyhow::Result<Vec<Entry>> {
        if stream.schedule.is_some() { self.ticked(stream) } else { self.probed(stream, wanted) }
    }

    fn sees_entries(&self, stream: &Stream) -> bool {
        let ticks = stream.schedule.is_some() && stream.plugin.as_ref().is_some_and(|plugin| plugin.is("tick"));
        (ticks || stream.is_probed()) && self.target.is_here()
    }

    fn complaint(&self, stream: &Stream) -> Option<String> {
        let sql = format!(
            "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{}' AND log_level = 'ERROR'",
            stream.name
        );
        let logged = rows(&self.target, &self.database, &sql).ok()?;
        let text = logged.last()?["log_text"].as_str()?;
        // Of a traceback the last line says what it was.
        text.trim().lines().last().map(str::to_owned)
    }

    fn processor_time(&self) -> Option<Duration> {
        process::time(self.private.as_ref()?.process())
    }

    fn own_latencies(&self) -> anyhow::Result<Vec<TriggerLatency>> {
        Ok(server::trigger_latency(&self.target, &self.database, None)?.unwrap_or_default())
    }
}

fn samples_table(stream: &Stream) -> String {
    format!("{}_samples", stream.name)
}

fn answered(reply: &Reply) -> anyhow::Result<()> {
    ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
    Ok(())
}

fn answer(reply: &Reply) -> Answer {
    match reply.status {
        200..=299 => Answer::Done,
        503 => Answer::Busy(Duration::from_secs(reply.retry_after_s.unwrap_or(0))),
        status => Answer::Refused(format!("{status}: {}", reply.text())),
    }
}

struct Writer {
    connection: Connection,
    path: String,
    generator: Generator,
}

impl Client for Writer {
    fn prepare(&mut self, number: u64, due_ns: u64) -> u32 {
        self.generator.prepare(number, due_ns)
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        Ok(answer(&self.connection.post(&self.path, &self.generator.text)?))
    }
}

struct Asker {
    connection: Connection,
    path: String,
    sql: String,
    modulo: usize,
    next: String,
}

impl Client for Asker {
    fn prepare(&mut self, number: u64, _due_ns: u64) -> u32 {
        let sql = self.sql.replace("{n}", &(number as usize % self.modulo).to_string());
        self.next = format!("{}{}", self.path, encode(&sql));
        0
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        Ok(answer(&self.connection.get(&self.next)?))
    }
}

struct Caller {
    connection: Connection,
    path: String,
    body: Vec<u8>,
}

impl Client for Caller {
    fn prepare(&mut self, _number: u64, _due_ns: u64) -> u32 {
        0
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        let reply = self.connection.post(&self.path, &self.body)?;
        let entered = serde_json::from_slice::<Value>(&reply.body).ok().and_then(|body| body["entered"].as_u64());
        Ok(match (answer(&reply), entered) {
            (Answer::Done, Some(entered_ns)) => Answer::Entered(entered_ns),
            (answer, _) => answer,
        })
    }
}

/// Writes a row and asks for it until it is there.
struct Looker {
    connection: Connection,
    write_path: String,
    query_path: String,
    table: String,
    number: u64,
}

impl Client for Looker {
    fn prepare(&mut self, number: u64, _due_ns: u64) -> u32 {
        // Numbers of this run and of no other slice.
        self.number = (wall_ns() / 1_000_000) * 1000 + number % 1000;
        1
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        let line = format!("{} n={}i", self.table, self.number);
        let written = answer(&self.connection.post(&self.write_path, line.as_bytes())?);
        if written != Answer::Done {
            return Ok(written);
        }
        let sql = format!("SELECT n FROM {} WHERE n = {}", self.table, self.number);
        let path = format!("{}{}", self.query_path, encode(&sql));
        let end_ns = now_ns() + VISIBLE_WITHIN_NS;
        while now_ns() < end_ns {
            let reply = self.connection.get(&path)?;
            let asked = answer(&reply);
            if asked != Answer::Done {
                return Ok(asked);
            }
            if reply.body.contains(&b'{') {
                return Ok(Answer::Done);
            }
        }
        Ok(Answer::Refused(format!("row {} is not to be seen", self.number)))
    }
}
