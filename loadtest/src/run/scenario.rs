//! A scenario: what is sent, how fast, over how many connections, and with which plugin behind it.
//!
//! Mechanism: a scenario is one file of TOML. It has streams, which run at the same time; a stream does one thing, named by the
//! table that it has: `write`, `query`, `request`, `visible` or `schedule`. A misspelt field is refused by name. The shipped
//! scenarios are part of the program, so that a name works where a path does.
//!
//! What it is not: a programming language. Whoever needs more than shapes, shares and rates writes another shape ([`super::rows`]).

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// Where the fields are described.
const MANUAL: &str = "docs/book/src/load-testing.md";

/// The scenarios that are part of the program, in the order in which they are shown.
const SHIPPED: [(&str, &str); 16] = [
    ("single-row", include_str!("../../scenarios/single-row.toml")),
    ("single-row-no-sync", include_str!("../../scenarios/single-row-no-sync.toml")),
    ("many-writers", include_str!("../../scenarios/many-writers.toml")),
    ("ramp", include_str!("../../scenarios/ramp.toml")),
    ("queryable", include_str!("../../scenarios/queryable.toml")),
    ("http-trigger", include_str!("../../scenarios/http-trigger.toml")),
    ("schedule", include_str!("../../scenarios/schedule.toml")),
    ("slow-beside-fast", include_str!("../../scenarios/slow-beside-fast.toml")),
    ("mixed", include_str!("../../scenarios/mixed.toml")),
    ("tsbs-cpu", include_str!("../../scenarios/tsbs-cpu.toml")),
    ("tsbs-devops", include_str!("../../scenarios/tsbs-devops.toml")),
    ("wide-rows", include_str!("../../scenarios/wide-rows.toml")),
    ("high-cardinality", include_str!("../../scenarios/high-cardinality.toml")),
    ("late-data", include_str!("../../scenarios/late-data.toml")),
    ("overwrites", include_str!("../../scenarios/overwrites.toml")),
    ("max-ingest", include_str!("../../scenarios/max-ingest.toml")),
];

/// One scenario.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Of its file, without the ending.
    #[serde(skip_deserializing)]
    pub name: String,
    /// For headings.
    pub title: String,
    /// One line on what it shows.
    pub about: String,
    /// Seconds that are measured on each target, in all rounds together.
    #[serde(default = "ten")]
    pub seconds: f64,
    /// Seconds before them that are sent and not measured.
    #[serde(default = "two")]
    pub warm_up: f64,
    /// Into how many slices the seconds are cut, for taking turns with rivals.
    #[serde(default = "three")]
    pub rounds: usize,
    /// The private server.
    #[serde(default)]
    pub server: Server,
    /// What runs at the same time.
    #[serde(rename = "stream")]
    pub streams: Vec<Stream>,
}

/// How the private server is started; a server that is given with `--target` is taken as it is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Shards.
    pub shards: usize,
    /// Whether the shards have the first processors and the client the others, where there are enough.
    pub apart: bool,
    /// Further options of `saltus serve`, in pairs.
    pub options: Vec<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self { shards: 1, apart: true, options: Vec::new() }
    }
}

/// One thing that is done over and over.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// Its name; also its table's, its trigger's and its path's.
    pub name: String,
    /// Requests a second over all connections; without it every connection sends the next request when it has the answer.
    pub rate: Option<f64>,
    /// The rate at the end, if it is not the same.
    pub rate_to: Option<f64>,
    /// Connections, each on a thread of its own.
    #[serde(default = "one")]
    pub connections: usize,
    /// Ask for an acknowledgement before the rows are durable.
    #[serde(default)]
    pub no_sync: bool,
    /// Sends rows.
    pub write: Option<Write>,
    /// Asks.
    pub query: Option<Query>,
    /// Calls a plugin over HTTP.
    pub request: Option<Request>,
    /// Writes a row and asks until it is there.
    pub visible: Option<Visible>,
    /// Lets a plugin run by the clock.
    pub schedule: Option<Schedule>,
    /// The plugin behind it.
    pub plugin: Option<Plugin>,
}

/// Rows to send.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// What a row looks like.
    pub shape: Shape,
    /// Rows in a request. Of `devops`, where a host has nine rows at a time, this is hosts.
    #[serde(default = "one")]
    pub rows: usize,
    /// Series; hosts of the TSBS shapes.
    #[serde(default = "hundred")]
    pub series: usize,
    /// Fields of a wide row.
    #[serde(default = "hundred")]
    pub fields: usize,
    /// Share of the rows that come late, 0 to 1.
    #[serde(default)]
    pub late: f64,
    /// By how many seconds.
    #[serde(default = "hour")]
    pub late_by_s: u64,
    /// Share of the rows that have series and time of an earlier one, 0 to 1.
    #[serde(default)]
    pub overwrite: f64,
}

/// What a row looks like.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One tag, two integers.
    Sensor,
    /// TSBS `cpu-only`: 10 tags, 10 integers.
    Cpu,
    /// TSBS `devops`: nine tables a host.
    Devops,
    /// One tag, many floats.
    Wide,
}

/// A question in SQL.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The question; `{n}` is replaced by the number of the request modulo `modulo`.
    pub sql: String,
    /// See there.
    #[serde(default = "hundred")]
    pub modulo: usize,
}

/// A call of a plugin.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Bytes of the body.
    #[serde(default = "hundred")]
    pub body_bytes: usize,
}

/// Nothing to choose.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Visible {}

/// When a plugin runs.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Between two runs, as in `every:10ms`.
    pub every: String,
}

/// A plugin and its trigger.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// `probe`, `slow`, `answer`, `tick`, or the path of a file of Python, seen from the scenario.
    pub source: String,
    /// `trigger_settings`.
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// `trigger_arguments`.
    #[serde(default)]
    pub arguments: serde_json::Map<String, serde_json::Value>,
    /// The file's text.
    #[serde(skip)]
    pub text: String,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn hundred() -> usize {
    100
}
fn hour() -> u64 {
    3600
}
fn two() -> f64 {
    2.0
}
fn ten() -> f64 {
    10.0
}

impl Plugin {
    /// Whether it is one of the program's own.
    pub fn is(&self, own: &str) -> bool {
        self.source == own
    }

    fn load(&mut self, folder: &Path) -> anyhow::Result<()> {
        self.text = match self.source.as_str() {
            "probe" => include_str!("../../plugins/probe.py").to_owned(),
            "slow" => include_str!("../../plugins/slow.py").to_owned(),
            "answer" => include_str!("../../plugins/answer.py").to_owned(),
            "tick" => include_str!("../../plugins/tick.py").to_owned(),
            path if path.ends_with(".py") => {
                let path = folder.join(path);
                std::fs::read_to_string(&path).with_context(|| format!("reading the plugin {}", path.display()))?
            }
            other => bail!("`plugin.source` is `{other}`: use probe, slow, answer, tick, or the path of a .py file"),
        };
        Ok(())
    }
}

impl Stream {
    /// The word for what it does.
    pub fn kind(&self) -> &'static str {
        match self {
            Self { write: Some(_), .. } => "write",
            Self { query: Some(_), .. } => "query",
            Self { request: Some(_), .. } => "request",
            Self { visible: Some(_), .. } => "visible",
            _ => "schedule",
        }
    }

    /// Whether its plugin is the one that says when it was entered.
    pub fn is_probed(&self) -> bool {
        self.plugin.as_ref().is_some_and(|plugin| plugin.is("probe"))
    }

    /// The table whose rows start its plugin: its own, or that of the row which is sent along with those of TSBS.
    pub fn trigger_table(&self) -> String {
        match self.write.as_ref().map(|write| write.shape) {
            Some(Shape::Cpu | Shape::Devops) if self.is_probed() => format!("{}_probe", self.name),
            Some(Shape::Cpu | Shape::Devops) => "cpu".to_owned(),
            _ => self.name.clone(),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            self.name.starts_with(|c: char| c.is_ascii_lowercase()) && self.name.chars().all(word),
            "`name` is used for tables and paths: use lower case letters, digits and _"
        );
        let kinds = [
            self.write.is_some(),
            self.query.is_some(),
            self.request.is_some(),
            self.visible.is_some(),
            self.schedule.is_some(),
        ];
        ensure!(
            kinds.iter().filter(|given| **given).count() == 1,
            "a stream does one thing: give it one of the tables write, query, request, visible, schedule"
        );
        let positive = |rate: f64| rate > 0.0 && rate.is_finite();
        ensure!(
            self.rate.is_none_or(positive) && self.rate_to.is_none_or(positive),
            "`rate` and `rate_to` must be above zero; leave `rate` out to send as fast as the answers come"
        );
        ensure!(self.rate_to.is_none() || self.rate.is_some(), "`rate_to` needs `rate`, where the ramp begins");
        ensure!(self.connections > 0, "`connections` must be at least 1");
        if let Some(write) = &self.write {
            write.check(self.connections)?;
        }
        ensure!(self.query.as_ref().is_none_or(|query| query.modulo > 0), "`query.modulo` must be at least 1");
        self.check_plugin()
    }

    fn check_plugin(&self) -> anyhow::Result<()> {
        let own = self.plugin.as_ref().map(|plugin| plugin.source.as_str());
        let fits = match self.kind() {
            "write" => !matches!(own, Some("answer" | "tick")),
            "request" => own.is_some_and(|own| !matches!(own, "probe" | "slow" | "tick")),
            "schedule" => own.is_some_and(|own| !matches!(own, "probe" | "slow" | "answer")),
            _ => own.is_none(),
        };
        ensure!(
            fits,
            "`plugin` does not fit: write takes probe, slow, a file or none; request needs answer or a file; schedule needs \
             tick or a file; query and visible take none"
        );
        Ok(())
    }
}

impl Write {
    fn check(&self, connections: usize) -> anyhow::Result<()> {
        ensure!(self.rows > 0, "`write.rows` must be at least 1");
        ensure!(self.series >= connections, "every connection needs a series of its own: raise `write.series`");
        ensure!(self.fields > 0, "`write.fields` must be at least 1");
        let share = |share: f64| (0.0..=1.0).contains(&share);
        ensure!(share(self.late) && share(self.overwrite), "`write.late` and `write.overwrite` are shares from 0 to 1");
        let tsbs = matches!(self.shape, Shape::Cpu | Shape::Devops);
        ensure!(
            !tsbs || (self.late == 0.0 && self.overwrite == 0.0),
            "`write.late` and `write.overwrite` are for the shapes sensor and wide: TSBS rows come in order"
        );
        Ok(())
    }
}

impl Scenario {
    /// A shipped scenario by its name, or one from a file.
    ///
    /// # Errors
    /// There is none, or what is wrong in it: file, field and remedy.
    pub fn load(name_or_path: &str) -> anyhow::Result<Self> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text, Path::new("."));
        }
        let path = Path::new(name_or_path);
        ensure!(
            path.exists(),
            "{name_or_path} is neither a file nor a shipped scenario; `saltus-loadtest scenarios` lists those"
        );
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {name_or_path}"))?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("scenario");
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(name, &text, folder)
            .with_context(|| format!("{name_or_path} is no scenario ({MANUAL} has the fields)"))
    }

    fn parse(name: &str, text: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        name.clone_into(&mut scenario.name);
        ensure!(scenario.seconds > 0.0 && scenario.warm_up >= 0.0, "`seconds` must be above zero, `warm_up` not below");
        ensure!(scenario.rounds > 0 && scenario.server.shards > 0, "`rounds` and `server.shards` must be at least 1");
        ensure!(
            scenario.server.options.len().is_multiple_of(2),
            "`server.options` come in pairs: [\"--flag\", \"value\"]"
        );
        ensure!(!scenario.streams.is_empty(), "there is no [[stream]]");
        for index in 0..scenario.streams.len() {
            let (before, rest) = scenario.streams.split_at_mut(index);
            let stream = &mut rest[0];
            ensure!(before.iter().all(|other| other.name != stream.name), "two streams are called `{}`", stream.name);
            let context = format!("stream `{}`", stream.name);
            stream.check().with_context(|| context.clone())?;
            if let Some(plugin) = &mut stream.plugin {
                plugin.load(folder).context(context)?;
            }
        }
        Ok(scenario)
    }

    /// All that are part of the program.
    ///
    /// # Errors
    /// None, if the tests pass.
    pub fn shipped() -> anyhow::Result<Vec<Self>> {
        SHIPPED.iter().map(|(name, _)| Self::load(name)).collect()
    }

    /// Whether shards and client have processors of their own on this machine.
    pub fn is_apart(&self) -> bool {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        self.server.apart && cpus > self.server.shards
    }

    /// With another length. The warm-up shrinks along: it is at most a quarter of what is measured.
    pub fn stretched(mut self, seconds: Option<f64>, rounds: Option<usize>) -> Self {
        if let Some(seconds) = seconds {
            self.seconds = seconds;
            self.warm_up = self.warm_up.min(seconds / 4.0);
        }
        self.rounds = rounds.unwrap_or(self.rounds);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
title = "t"
about = "a"
[[stream]]
name = "s"
rate = 10
[stream.write]
shape = "sensor"
"#;

    fn refused(text: &str) -> String {
        format!("{:#}", Scenario::parse("x", text, Path::new(".")).unwrap_err())
    }

    #[test]
    fn all_shipped_scenarios_are_whole_and_none_is_forgotten() {
        let names: Vec<String> = Scenario::shipped().unwrap().into_iter().map(|scenario| scenario.name).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let mut sorted = names.clone();
        sorted.sort();
        files.sort();
        assert_eq!(sorted, files);
    }

    #[test]
    fn what_is_not_said_has_the_documented_defaults() {
        let scenario = Scenario::parse("x", SMALL, Path::new(".")).unwrap();
        assert_eq!((scenario.seconds, scenario.warm_up, scenario.rounds), (10.0, 2.0, 3));
        assert_eq!(scenario.server, Server { shards: 1, apart: true, options: vec![] });
        let stream = &scenario.streams[0];
        assert_eq!((stream.connections, stream.no_sync, stream.kind()), (1, false, "write"));
    }

    #[test]
    fn a_misspelt_field_is_refused_by_name_and_line() {
        let error = refused(&SMALL.replace("shape", "shapes"));
        assert!(error.contains("unknown field `shapes`") && error.contains("line 8"), "{error}");
        let error = refused(&SMALL.replace("\"sensor\"", "\"sensors\""));
        assert!(error.contains("`sensors`") && error.contains("`devops`"), "{error}");
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_stream_and_the_remedy() {
        let error = refused(&SMALL.replace("rate = 10", "rate = 0"));
        assert!(error.starts_with("stream `s`: `rate`") && error.contains("leave `rate` out"), "{error}");
        let error = refused(&format!("{SMALL}[stream.query]\nsql = \"SELECT 1\"\n"));
        assert!(error.contains("one of the tables write, query"), "{error}");
        let error = refused(&SMALL.replace("sensor\"", "cpu\"\nlate = 0.5"));
        assert!(error.contains("TSBS rows come in order"), "{error}");
        let error = refused(&format!("{SMALL}[stream.plugin]\nsource = \"tick\"\n"));
        assert!(error.contains("write takes probe"), "{error}");
        let error = refused(&format!("{SMALL}[stream.plugin]\nsource = \"prob\"\n"));
        assert!(error.contains("`prob`") && error.contains("path of a .py file"), "{error}");
    }

    #[test]
    fn a_name_that_is_nothing_says_where_the_names_are() {
        let error = Scenario::load("no-such").unwrap_err().to_string();
        assert!(error.contains("saltus-loadtest scenarios"), "{error}");
    }
}
