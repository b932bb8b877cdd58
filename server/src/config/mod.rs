//! What the operator asked for: from texts in layers ([`layers`]) to one checked value, [`Config`].
//!
//! Precedence: flags, environment, `--config FILE`, `config.toml`. Every error names the setting, where it was set, and
//! the remedy. Lower crates get their own small structs ([`Config::engine`]).

pub mod env;
pub mod layers;
pub mod parse;
pub mod settings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use saltus_core::limits::{QUERIES_AT_ONCE_LIMIT, WAL_RECORD_BYTES_MAX};
use saltus_core::trigger::Limits;
use saltus_shards::api::EngineConfig;

use crate::traces::TraceOptions;
use env::Env;
use layers::{Layer, Text};

/// Why the configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A kind of trigger, as `--restrict-plugin-triggers-to` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerKind {
    /// `table:`, `all_tables`
    Wal,
    /// `every:`, `cron:`
    Schedule,
    /// `request:`
    Request,
}

/// How the server logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Full,
    /// One JSON object per line.
    Json,
}

/// Everything that `serve` was asked for, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node_id: String,
    /// Directory of logs and catalog.
    pub data_dir: PathBuf,
    /// Directory of plugins.
    pub plugin_dir: Option<PathBuf>,
    /// The virtual environment whose packages plugins can import.
    pub virtual_env: Option<PathBuf>,
    /// Where HTTP is served.
    pub http_bind: SocketAddr,
    /// Bytes of a request body.
    pub http_request_bytes_max: usize,
    /// How long a peer may do nothing.
    pub http_idle_timeout: Duration,
    /// How long a client may take to send a request.
    pub http_request_timeout: Duration,
    /// One shard each; `None` leaves it unpinned.
    pub cpus: Vec<Option<usize>>,
    /// Cores that all threads of the process keep to; `None` is all that it may use.
    pub process_cpus: Option<Vec<usize>>,
    /// Whether a shard polls instead of sleeping, for each of `cpus`.
    pub busy_poll: Vec<bool>,
    /// Whether the kernel may give the process huge pages.
    pub huge_pages: bool,
    /// Bytes of batches under way to one shard.
    pub mailbox_bytes: usize,
    /// Bytes of one WAL segment.
    pub wal_segment_bytes: u64,
    /// Start although a part of the log is lost.
    pub accept_loss: bool,
    /// Rows of one run.
    pub run_rows_max: usize,
    /// Deadline of inline runs.
    pub inline_deadline: Duration,
    /// What runs may use, where their triggers do not say.
    pub limits: Limits,
    /// Bytes of events by which a trigger may lag.
    pub lag_bytes: u64,
    /// Keep `ctypes` and its like out of the server's process.
    pub python_hardened: bool,
    /// Whether plain values of plugins' caches are there again after a restart.
    pub restore_caches: bool,
    /// After its deadline and this, a deferred run is left behind.
    pub deferred_grace: Duration,
    /// A task that holds its shard for so long is told, with a backtrace.
    pub loop_stall_limit: Duration,
    /// Whether it is told with a backtrace.
    pub loop_stall_backtrace: bool,
    /// An inline run that goes on so long is a stall.
    pub stall_limit: Duration,
    /// After so long the process is aborted; never, if `None`.
    pub stall_abort: Option<Duration>,
    /// Threads per shard for deferred runs.
    pub deferred_workers: usize,
    /// Interpreters of their own that triggers with long runs may have.
    pub own_interpreters: usize,
    /// Bytes that these may hold.
    pub own_interpreters_memory: u64,
    /// Trigger kinds that may be created; `None` is all.
    pub trigger_kinds: Option<Vec<TriggerKind>>,
    /// Threads that answer queries.
    pub query_threads: usize,
    /// Bytes that queries may use.
    pub query_memory_bytes: u64,
    /// How long a query may take.
    pub query_timeout: Duration,
    /// Queries at once.
    pub query_concurrency: usize,
    /// How long a stop may take.
    pub shutdown_timeout: Duration,
    /// Traces of writes, if they are exported.
    pub traces: Option<TraceOptions>,
    /// What is logged.
    pub log_filter: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// The settings that were given, by flag, variable or file, as they were written.
    pub given: Vec<(&'static str, String)>,
    /// To be logged once at start: what was ignored, what is dangerous.
    pub notes: Vec<String>,
}

/// What the machine offers; a value, so that the rest is a function of it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Cores that this process may use.
    pub cpus: Vec<usize>,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The cores of each NUMA node, by its number; empty where the kernel does not say.
    pub numa: BTreeMap<usize, Vec<usize>>,
    /// It runs under a hypervisor.
    pub is_virtual: bool,
}

impl Machine {
    /// Asks the kernel.
    pub fn look() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let cpus = allowed.and_then(|list| parse::cpus(list.trim()).ok());
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: Option<u64> = total.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok());
        let numa = numa_nodes(Path::new("/sys/devices/system/node"));
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = info.lines().find(|line| line.starts_with("flags"));
        let is_virtual = flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
        let memory_bytes = kib.unwrap_or(1 << 20) * 1024;
        Machine { cpus: cpus.unwrap_or_else(|| vec![0]), memory_bytes, numa, is_virtual }
    }
}

/// The cores of each node, of the kernel's folder for them.
fn numa_nodes(folder: &Path) -> BTreeMap<usize, Vec<usize>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let node = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some((number, parse::cpus(list.trim()).ok()?))
    };
    entries.filter_map(node).collect()
}

impl Config {
    /// The configuration of these flags in this environment on this machine. `file` is the flag `--config`.
    ///
    /// # Errors
    /// The first setting that cannot be followed.
    pub fn resolve(flags: Layer, file: Option<PathBuf>, env: &Env, machine: &Machine) -> Result<Self, ConfigError> {
        let file = file.or_else(|| env.first(env::CONFIG_FILE).map(|(_, path)| path.into()));
        let mut merged = layers::defaults();
        if let Some(path) = file {
            merged.extend(layers::from_file(&path)?);
        }
        merged.extend(layers::from_env(env));
        merged.extend(flags);
        let defaults = layers::defaults();
        let given = merged.iter().filter(|(key, text)| defaults.get(*key) != Some(text));
        let given = given.map(|(key, text)| (*key, text.value.clone())).collect();
        let mut notes = layers::foreign_env_notes(env)?;
        notes.extend(layers::unknown_env_notes(env));
        Reader { layer: merged, env, machine, given, notes }.config()
    }

    /// What the engine has to know.
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            cpus: self.cpus.clone(),
            busy_poll: self.busy_poll.clone(),
            data_dir: self.data_dir.clone(),
            http_bind: self.http_bind,
            mailbox_bytes: self.mailbox_bytes,
            wal_segment_bytes: self.wal_segment_bytes,
            accept_loss: self.accept_loss,
            run_rows_max: self.run_rows_max,
            inline_deadline: self.inline_deadline,
            loop_stall: self.loop_stall_limit,
            limits: self.limits,
            lag_bytes: self.lag_bytes,
        }
    }
}

/// Turns merged texts into values.
struct Reader<'a> {
    layer: Layer,
    env: &'a Env,
    machine: &'a Machine,
    given: Vec<(&'static str, String)>,
    notes: Vec<String>,
}

impl Reader<'_> {
    fn config(mut self) -> Result<Config, ConfigError> {
        self.check_object_store()?;
        let http_bind = self.http_bind()?;
        self.check_auth(http_bind)?;
        let http_request_bytes_max = self.request_bytes()?;
        let process_cpus = self.numa()?;
        let cpus = self.placement(process_cpus.as_deref())?;
        let busy_poll = self.busy_poll(&cpus)?;
        Ok(Config {
            node_id: self.node_id()?,
            data_dir: self.path("data-dir")?.ok_or_else(|| self.error("data-dir", "must be set"))?,
            plugin_dir: self.path("plugin-dir")?,
            virtual_env: self.virtual_env()?,
            http_bind,
            http_request_bytes_max,
            http_idle_timeout: self.positive_time("http-idle-timeout")?,
            http_request_timeout: self.positive_time("http-request-timeout")?,
            cpus,
            process_cpus,
            busy_poll,
            huge_pages: self.huge_pages()?,
            mailbox_bytes: self.bounded_size("mailbox-size", 4 * http_request_bytes_max as u64)? as usize,
            wal_segment_bytes: self.bounded_size("wal-segment-size", 1 << 20)?,
            accept_loss: self.read("accept-loss", parse::flag)?,
            run_rows_max: self.at_least_one("run-rows-max")?,
            inline_deadline: self.positive_time("inline-deadline")?,
            limits: self.limits()?,
            python_hardened: self.read("python-hardened", parse::flag)?,
            restore_caches: self.read("restore-caches", parse::flag)?,
            deferred_grace: self.positive_time("deferred-grace")?,
            loop_stall_limit: self.positive_time("loop-stall-limit")?,
            loop_stall_backtrace: self.read("loop-stall-backtrace", parse::flag)?,
            stall_limit: self.positive_time("stall-limit")?,
            stall_abort: self.stall_abort()?,
            lag_bytes: self.bounded_size("trigger-lag-size", 1)?,
            deferred_workers: self.at_least_one("deferred-workers")?,
            own_interpreters: self.read("own-interpreters", parse::number)?,
            own_interpreters_memory: self.read("own-interpreters-memory", parse::size)?,
            trigger_kinds: self.trigger_kinds()?,
            query_threads: self.query_threads()?,
            query_memory_bytes: self.read("query-memory", |t| parse::size_or_share(t, self.machine.memory_bytes))?,
            query_timeout: self.positive_time("query-timeout")?,
            query_concurrency: self.query_concurrency()?,
            shutdown_timeout: self.read("shutdown-timeout", parse::duration)?,
            traces: self.traces()?,
            log_filter: self.text("log-filter").value.clone(),
            log_format: self.read("log-format", log_format)?,
            given: self.given,
            notes: self.notes,
        })
    }

    fn text(&self, key: &str) -> &Text {
        self.layer.get(key).expect("the defaults have every setting; a test compares them")
    }

    fn error(&self, key: &str, message: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{key} ({}): {message}", self.text(key).origin))
    }

    fn read<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        parse(&self.text(key).value).map_err(|message| self.error(key, message))
    }

    fn at_least_one(&self, key: &str) -> Result<usize, ConfigError> {
        match self.read(key, parse::number)? {
            0 => Err(self.error(key, "must be at least 1")),
            number => Ok(number),
        }
    }

    /// The one that is named must be one; `.venv` in the plugin directory counts if it is there.
    fn virtual_env(&self) -> Result<Option<PathBuf>, ConfigError> {
        const MARK: &str = "pyvenv.cfg";
        match self.path("virtual-env-location")? {
            Some(path) if path.join(MARK).is_file() => Ok(Some(path)),
            Some(path) => {
                let text = format!("{} is no virtual environment; make one with: python3 -m venv {0}", path.display());
                Err(self.error("virtual-env-location", &text))
            }
            None => {
                let usual = self.path("plugin-dir")?.map(|plugins| plugins.join(".venv"));
                Ok(usual.filter(|path| path.join(MARK).is_file()))
            }
        }
    }

    fn limits(&self) -> Result<Limits, ConfigError> {
        let lines = self.at_least_one("trigger-log-rate")?;
        Ok(Limits {
            run_time: self.positive_time("deferred-deadline")?,
            memory_bytes: self.bounded_size("trigger-memory", 1 << 20)?,
            output_rows: self.at_least_one("trigger-output-rows")? as u64,
            log_lines_per_second: u32::try_from(lines).unwrap_or(u32::MAX),
            queue_bytes: self.bounded_size("trigger-queue-size", 1)?,
            concurrency: u32::try_from(self.at_least_one("trigger-concurrency")?).unwrap_or(u32::MAX),
            cpu_share: self.read("trigger-cpu-share", parse::percent)?,
            inline_budget: self.inline_budget()?,
        })
    }

    fn inline_budget(&self) -> Result<Duration, ConfigError> {
        let deadline = self.positive_time("inline-deadline")?;
        match self.read("inline-budget", parse::inline_budget)? {
            budget if budget <= deadline => Ok(budget),
            _ => {
                Err(self.error("inline-budget", "must not be more than inline-deadline, at which a run is interrupted"))
            }
        }
    }

    fn stall_abort(&self) -> Result<Option<Duration>, ConfigError> {
        let (limit, abort) = (self.positive_time("stall-limit")?, self.read("stall-abort", parse::duration)?);
        match abort {
            Duration::ZERO => Ok(None),
            abort if abort <= limit => Err(self.error("stall-abort", "must be more than stall-limit, or 0s for never")),
            abort => Ok(Some(abort)),
        }
    }

    fn positive_time(&self, key: &str) -> Result<Duration, ConfigError> {
        match self.read(key, parse::duration)? {
            Duration::ZERO => Err(self.error(key, "must be more than 0s")),
            time => Ok(time),
        }
    }

    fn bounded_size(&self, key: &str, least: u64) -> Result<u64, ConfigError> {
        match self.read(key, parse::size)? {
            size if size < least => Err(self.error(key, format_args!("must be at least {least} bytes"))),
            size => Ok(size),
        }
    }

    fn check_object_store(&self) -> Result<(), ConfigError> {
        match self.text("object-store").value.as_str() {
            "file" => Ok(()),
            other => Err(self.error("object-store", format_args!("'{other}' is not in this version; use file"))),
        }
    }

    fn check_auth(&mut self, bind: SocketAddr) -> Result<(), ConfigError> {
        if !self.read("without-auth", parse::flag)? {
            return Err(ConfigError(
                "authentication by tokens is not in this version: start with --without-auth, and keep --http-bind on \
                 loopback or behind a proxy that authenticates"
                    .to_owned(),
            ));
        }
        if !bind.ip().is_loopback() {
            self.notes.push(format!(
                "http-bind {bind} is not loopback: whoever reaches it can write, delete and run plugins"
            ));
        }
        Ok(())
    }

    fn http_bind(&self) -> Result<SocketAddr, ConfigError> {
        self.read("http-bind", |text| {
            let text = text.strip_prefix("localhost:").map_or(text.to_owned(), |port| format!("127.0.0.1:{port}"));
            text.parse().map_err(|_| format!("'{text}' is no address with port; write for instance 127.0.0.1:8181"))
        })
    }

    /// The one size where a bare number is bytes, as in InfluxDB 3.
    fn request_bytes(&mut self) -> Result<usize, ConfigError> {
        let text = self.text("max-http-request-size").value.trim().to_owned();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            self.layer.entry("max-http-request-size").and_modify(|t| t.value.push('b'));
        }
        let size = self.bounded_size("max-http-request-size", 1)?;
        match usize::try_from(size) {
            Ok(size) if size < WAL_RECORD_BYTES_MAX => Ok(size),
            _ => {
                Err(self.error("max-http-request-size", format_args!("must be less than {WAL_RECORD_BYTES_MAX} bytes")))
            }
        }
    }

    fn node_id(&self) -> Result<String, ConfigError> {
        let variable = &self.text("node-id-from-env").value;
        if variable.is_empty() {
            return Ok(self.text("node-id").value.clone());
        }
        let set = self.env.get(variable).map(str::to_owned);
        set.ok_or_else(|| self.error("node-id-from-env", format_args!("the variable {variable} is not set")))
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let text = self.text(key).value.trim();
        let Some(rest) = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
            return Ok((!text.is_empty()).then(|| text.into()));
        };
        let home = self.env.get("HOME").ok_or_else(|| self.error(key, "HOME is not set, so '~' leads nowhere"))?;
        Ok(Some(PathBuf::from(format!("{home}{rest}"))))
    }

    /// Which core each shard is pinned to: those named, or the first that this process may use. More shards than cores
    /// leaves all unpinned: two pinned to one core would stall each other.
    fn huge_pages(&self) -> Result<bool, ConfigError> {
        match self.text("huge-pages").value.trim() {
            "auto" => Ok(!self.machine.is_virtual),
            "on" => Ok(true),
            "off" => Ok(false),
            other => Err(self.error("huge-pages", format_args!("'{other}' is none of auto, on, off"))),
        }
    }

    /// The cores of the NUMA nodes that were asked for, as far as this process may use them.
    fn numa(&self) -> Result<Option<Vec<usize>>, ConfigError> {
        let text = self.text("numa").value.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let nodes = parse::cpus(text).map_err(|_| {
            self.error("numa", format_args!("'{text}' is no list of NUMA nodes; write for instance 0 or 0,1"))
        })?;
        let mut cpus = Vec::new();
        for node in nodes {
            let Some(of_node) = self.machine.numa.get(&node) else {
                let there: Vec<_> = self.machine.numa.keys().collect();
                return Err(self.error("numa", format_args!("this machine has no NUMA node {node}; it has {there:?}")));
            };
            cpus.extend(of_node.iter().filter(|cpu| self.machine.cpus.contains(cpu)));
        }
        if cpus.is_empty() {
            return Err(self.error("numa", "this process may use none of the cores of these nodes"));
        }
        cpus.sort_unstable();
        Ok(Some(cpus))
    }

    fn placement(&mut self, of_nodes: Option<&[usize]>) -> Result<Vec<Option<usize>>, ConfigError> {
        let shards = self.read("shards", parse::number)?;
        if shards > usize::from(u16::MAX) {
            return Err(self.error("shards", "too many"));
        }
        if !self.text("cpus").value.trim().is_empty() {
            return self.named_placement(shards, of_nodes);
        }
        let allowed = of_nodes.unwrap_or(&self.machine.cpus);
        match shards {
            0 => Ok(allowed.iter().map(|&cpu| Some(cpu)).collect()),
            shards if shards <= allowed.len() => Ok(allowed[..shards].iter().map(|&cpu| Some(cpu)).collect()),
            shards => {
                let note = format!("{shards} shards on {} cores: the shards are not pinned", allowed.len());
                self.notes.push(note);
                Ok(vec![None; shards])
            }
        }
    }

    fn named_placement(&self, shards: usize, of_nodes: Option<&[usize]>) -> Result<Vec<Option<usize>>, ConfigError> {
        let named = self.read("cpus", parse::cpus)?;
        if let Some(cpu) = named.iter().find(|cpu| !self.machine.cpus.contains(cpu)) {
            let allowed = &self.machine.cpus;
            return Err(self.error("cpus", format_args!("this process may not use core {cpu}; it may use {allowed:?}")));
        }
        if let Some(cpu) = named.iter().find(|cpu| of_nodes.is_some_and(|cpus| !cpus.contains(cpu))) {
            return Err(self.error("cpus", format_args!("core {cpu} is on none of the NUMA nodes that numa names")));
        }
        match shards {
            0 => Ok(named.into_iter().map(Some).collect()),
            shards if shards <= named.len() => Ok(named[..shards].iter().map(|&cpu| Some(cpu)).collect()),
            shards => Err(self.error("shards", format_args!("{shards} shards need as many cores in cpus"))),
        }
    }

    /// Which shards poll.
    fn busy_poll(&mut self, cpus: &[Option<usize>]) -> Result<Vec<bool>, ConfigError> {
        let text = self.text("busy-poll").value.trim();
        let shards = match text {
            "" => return Ok(vec![false; cpus.len()]),
            "all" => (0..cpus.len()).collect(),
            numbers => parse::cpus(numbers).map_err(|_| {
                self.error(
                    "busy-poll",
                    format_args!("'{numbers}' is no list of shards; write all, or for instance 0,2-3"),
                )
            })?,
        };
        if let Some(shard) = shards.iter().find(|shard| **shard >= cpus.len()) {
            let last = cpus.len() - 1;
            return Err(self.error("busy-poll", format_args!("there is no shard {shard}; the last one is {last}")));
        }
        if let Some(shard) = shards.iter().find(|shard| cpus[**shard].is_none()) {
            let remedy = "name cores with cpus, or start fewer shards";
            return Err(
                self.error("busy-poll", format_args!("shard {shard} has no core of its own to poll on: {remedy}"))
            );
        }
        let usable = self.numa()?.unwrap_or_else(|| self.machine.cpus.clone());
        let taken = |cpu: &usize| shards.iter().any(|shard| cpus[*shard] == Some(*cpu));
        if usable.iter().all(taken) {
            let note = "busy-poll takes every core that this process may use: deferred plugins, queries and the log's disk work wait for what is left";
            self.notes.push(note.to_owned());
        }
        Ok((0..cpus.len()).map(|shard| shards.contains(&shard)).collect())
    }

    fn query_threads(&self) -> Result<usize, ConfigError> {
        match self.read("query-threads", parse::number)? {
            0 => Ok((self.numa()?.map_or(self.machine.cpus.len(), |cpus| cpus.len()) / 2).max(1)),
            threads => Ok(threads),
        }
    }

    fn query_concurrency(&self) -> Result<usize, ConfigError> {
        match self.at_least_one("query-concurrency")? {
            number if number > QUERIES_AT_ONCE_LIMIT => Err(self.error(
                "query-concurrency",
                format_args!("must be at most {QUERIES_AT_ONCE_LIMIT}: each has a thread"),
            )),
            number => Ok(number),
        }
    }

    fn traces(&self) -> Result<Option<TraceOptions>, ConfigError> {
        let ratio = self.read("trace-sample-ratio", parse::ratio)?;
        let endpoint = self.text("otlp-endpoint").value.trim().trim_end_matches('/');
        let Some(rest) = endpoint.strip_prefix("http://") else {
            return match endpoint {
                "" => Ok(None),
                other => Err(self.error("otlp-endpoint", format_args!("'{other}' does not begin with http://; this version does not speak TLS: use a collector on this machine, for instance http://127.0.0.1:4318"))),
            };
        };
        // A bare address stands for the usual path behind it.
        let url = if rest.contains('/') { endpoint.to_owned() } else { format!("{endpoint}/v1/traces") };
        Ok(Some(TraceOptions { url, ratio, node: self.node_id()? }))
    }

    fn trigger_kinds(&self) -> Result<Option<Vec<TriggerKind>>, ConfigError> {
        let text = self.text("restrict-plugin-triggers-to").value.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let kinds =
            text.split(',').map(|name| match name.trim() {
                "wal" | "wal_flush" => Ok(TriggerKind::Wal),
                "schedule" => Ok(TriggerKind::Schedule),
                "request" => Ok(TriggerKind::Request),
                other => Err(self
                    .error("restrict-plugin-triggers-to", format_args!("'{other}' is none of wal, schedule, request"))),
            });
        kinds.collect::<Result<_, _>>().map(Some)
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "full" => Ok(LogFormat::Full),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("'{other}' is neither full nor json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let numa = BTreeMap::from([(0, vec![0, 1, 2]), (1, vec![3, 4]), (2, vec![5])]);
        Machine { cpus: vec![0, 1, 4], memory_bytes: 1000, numa, is_virtual: true }
    }

    fn flags(pairs: &[(&'static str, &str)]) -> Layer {
        let text = |value: &str| Text { value: value.to_owned(), origin: "flag".to_owned() };
        pairs.iter().map(|(key, value)| (*key, text(value))).collect()
    }

    fn resolve(pairs: &[(&'static str, &str)]) -> Result<Config, String> {
        let mut all = vec![("without-auth", "true")];
        all.extend_from_slice(pairs);
        Config::resolve(flags(&all), None, &Env::from([("HOME", "/home/u")]), &machine()).map_err(|e| e.0)
    }

    #[test]
    fn the_defaults_are_whole_but_for_the_consent_to_no_authentication() {
        let error = Config::resolve(Layer::new(), None, &Env::default(), &machine()).unwrap_err();
        assert!(error.0.contains("--without-auth"));
        let config = resolve(&[]).unwrap();
        assert_eq!(config.http_bind.to_string(), "127.0.0.1:8181");
        assert_eq!(config.data_dir, PathBuf::from("/home/u/.saltus"));
        assert_eq!(config.plugin_dir, None);
        assert_eq!(config.cpus, [Some(0), Some(1), Some(4)]);
        assert_eq!(config.query_memory_bytes, 200);
        assert_eq!(config.http_request_bytes_max, 10 * 1024 * 1024);
        assert!(config.notes.is_empty());
    }

    #[test]
    fn the_defaults_are_those_of_the_limits() {
        use saltus_core::limits;
        let config = resolve(&[]).unwrap();
        assert_eq!(config.http_request_bytes_max, limits::HTTP_REQUEST_BYTES_MAX);
        assert_eq!(config.mailbox_bytes, limits::MAILBOX_BYTES_MAX);
        assert_eq!(config.wal_segment_bytes, limits::WAL_SEGMENT_BYTES);
        assert_eq!(config.run_rows_max, limits::RUN_ROWS_MAX);
        assert_eq!(config.query_timeout, Duration::from_secs(limits::QUERY_SECS_MAX));
        assert_eq!(config.query_concurrency, limits::QUERIES_AT_ONCE_MAX);
        assert_eq!(config.inline_deadline, Duration::from_millis(limits::INLINE_DEADLINE_MS));
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn flags_win_over_variables_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "node-id = \"file\"\nlog-filter = \"file\"\nshutdown-timeout = \"1s\"\n").unwrap();
        let env = Env::from([
            ("INFLUXDB3_NODE_IDENTIFIER_PREFIX", "env"),
            ("SALTUS_LOG_FILTER", "env"),
            ("SALTUS_WITHOUT_AUTH", "true"),
            ("HOME", "/h"),
        ]);
        let config = Config::resolve(flags(&[("node-id", "flag")]), Some(file), &env, &machine()).unwrap();
        assert_eq!((&*config.node_id, &*config.log_filter), ("flag", "env"));
        assert_eq!(config.shutdown_timeout, Duration::from_secs(1));
    }

    #[test]
    fn placement_is_named_cores_or_the_first_ones() {
        assert_eq!(resolve(&[("shards", "2")]).unwrap().cpus, [Some(0), Some(1)]);
        assert_eq!(resolve(&[("cpus", "4,0")]).unwrap().cpus, [Some(4), Some(0)]);
        assert_eq!(resolve(&[("cpus", "4,0"), ("shards", "1")]).unwrap().cpus, [Some(4)]);
        let many = resolve(&[("shards", "5")]).unwrap();
        assert_eq!(many.cpus, [None; 5]);
        assert_eq!(many.notes, ["5 shards on 3 cores: the shards are not pinned"]);
        assert!(resolve(&[("cpus", "2")]).unwrap_err().starts_with("cpus (flag): this process may not use core 2"));
        assert!(resolve(&[("cpus", "0"), ("shards", "2")]).is_err());
    }

    #[test]
    fn a_server_keeps_to_the_nodes_that_are_named() {
        let on = |node: &str| resolve(&[("numa", node)]).unwrap();
        assert_eq!((on("0").cpus, on("0").process_cpus), (vec![Some(0), Some(1)], Some(vec![0, 1])));
        assert_eq!(on("1").cpus, [Some(4)]);
        assert_eq!(on("0-1").process_cpus, Some(vec![0, 1, 4]));
        assert_eq!(resolve(&[]).unwrap().process_cpus, None);
        let refused = |pairs: &[(&'static str, &str)]| resolve(pairs).unwrap_err();
        assert!(refused(&[("numa", "7")]).contains("no NUMA node 7; it has [0, 1, 2]"));
        assert!(refused(&[("numa", "2")]).contains("may use none of the cores"));
        assert!(refused(&[("numa", "near")]).contains("'near' is no list of NUMA nodes"));
        assert!(refused(&[("numa", "0"), ("cpus", "4")]).contains("core 4 is on none of the NUMA nodes"));
        assert!(
            resolve(&[("numa", "1"), ("busy-poll", "all")]).unwrap().notes[0].starts_with("busy-poll takes every core")
        );
    }

    #[test]
    fn huge_pages_are_left_alone_on_virtual_machines_unless_they_are_asked_for() {
        let given = |value: &str| resolve(&[("huge-pages", value)]).unwrap().huge_pages;
        assert_eq!((given("auto"), given("on"), given("off")), (false, true, false));
    }

    #[test]
    fn shards_that_poll_are_named_and_have_cores_of_their_own() {
        assert_eq!(resolve(&[]).unwrap().busy_poll, [false; 3]);
        assert_eq!(resolve(&[("shards", "2"), ("busy-poll", "1")]).unwrap().busy_poll, [false, true]);
        let all = resolve(&[("busy-poll", "all")]).unwrap();
        assert_eq!(all.busy_poll, [true; 3]);
        assert!(all.notes[0].starts_with("busy-poll takes every core"), "{:?}", all.notes);
        let refused = |pairs: &[(&'static str, &str)]| resolve(pairs).unwrap_err();
        assert!(refused(&[("busy-poll", "3")]).contains("there is no shard 3; the last one is 2"));
        assert!(refused(&[("busy-poll", "yes")]).contains("'yes' is no list of shards; write all"));
        assert!(refused(&[("shards", "5"), ("busy-poll", "0")]).contains("has no core of its own"));
    }

    #[test]
    fn errors_name_setting_origin_and_remedy() {
        for (key, value, text) in [
            ("mailbox-size", "256", "mailbox-size (flag): '256' is no size; write"),
            ("mailbox-size", "1mb", "mailbox-size (flag): must be at least 41943040 bytes"),
            ("inline-deadline", "fast", "inline-deadline (flag): 'fast' is no time"),
            ("inline-deadline", "0s", "inline-deadline (flag): must be more than 0s"),
            ("inline-budget", "20ms", "inline-budget (flag): must not be more than inline-deadline"),
            ("inline-budget", "2s", "inline-budget (flag): '2s': expected 1us to 1s"),
            ("object-store", "s3", "object-store (flag): 's3' is not in this version; use file"),
            ("http-bind", "8181", "http-bind (flag): '8181' is no address with port"),
            ("own-interpreters", "many", "own-interpreters (flag): 'many' is no whole number"),
            ("own-interpreters-memory", "9", "own-interpreters-memory (flag): '9' is no size; write"),
            ("deferred-workers", "0", "deferred-workers (flag): must be at least 1"),
            ("huge-pages", "yes", "huge-pages (flag): 'yes' is none of auto, on, off"),
            ("node-id-from-env", "NOPE", "node-id-from-env (flag): the variable NOPE is not set"),
            ("restrict-plugin-triggers-to", "wal,x", "restrict-plugin-triggers-to (flag): 'x' is none of"),
        ] {
            let error = resolve(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn an_open_bind_is_noted_and_a_bare_body_size_is_bytes() {
        let config = resolve(&[("http-bind", "0.0.0.0:1"), ("max-http-request-size", "1000")]).unwrap();
        assert!(config.notes[0].contains("is not loopback"));
        assert_eq!(config.http_request_bytes_max, 1000);
    }
}
