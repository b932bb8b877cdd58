//! A server of one's own: for measurements that need a known state, or that may ruin it.
//!
//! It is the program `saltus` that lies beside this one, unless told otherwise, on a free port with a folder of its own under the
//! system's temporary one. Both are gone when the value is dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{Connection, Target, encode};
use crate::open_loop::until;
use crate::server;

/// Options of everything that starts a server.
#[derive(Args, Clone, Serialize)]
#[group(skip)]
pub struct Options {
    /// The server's program; `saltus` beside this program if not given
    #[arg(long)]
    saltus: Option<PathBuf>,
    /// Options of `saltus serve`, behind `--`
    #[arg(last = true)]
    serve: Vec<String>,
}

impl Options {
    /// The options of `saltus serve` that were given.
    pub fn serve(&self) -> &[String] {
        &self.serve
    }
}

/// What is to be done with a trigger.
pub struct NewTrigger<'a> {
    /// Its name.
    pub name: &'a str,
    /// The plugin's file.
    pub file: &'a str,
    /// What starts it.
    pub spec: &'a str,
    /// `trigger_settings`.
    pub settings: Value,
    /// `trigger_arguments`.
    pub arguments: Value,
}

/// A running server.
pub struct Private {
    child: Child,
    program: PathBuf,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    /// Where it listens.
    pub target: Target,
}

impl Private {
    /// Starts one with the given plugins: file name and source.
    ///
    /// # Errors
    /// There is no such program, or it does not get ready.
    pub fn start(options: &Options, defaults: &[&str], plugins: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = match &options.saltus {
            Some(program) => program.clone(),
            None => std::env::current_exe()?.with_file_name("saltus"),
        };
        ensure!(program.exists(), "{} does not exist: `make build`, or --saltus PATH", program.display());
        let folder = tempfile::Builder::new().prefix("saltus-loadtest-").tempdir().context("making a folder")?;
        let plugin_dir = folder.path().join("plugins");
        std::fs::create_dir(&plugin_dir)?;
        for (name, source) in plugins {
            std::fs::write(plugin_dir.join(name), source)?;
        }
        let authority = format!("127.0.0.1:{}", free_port()?);
        let given = |name: &str| options.serve.iter().any(|word| word.split('=').next() == Some(name));
        let defaults = defaults.chunks(2).filter(|pair| !given(pair[0])).flatten().copied();
        let fixed = ["serve", "--without-auth", "--http-bind", &authority, "--node-id", "loadtest"];
        let arguments: Vec<String> = fixed
            .into_iter()
            .chain(defaults)
            .chain(options.serve.iter().map(String::as_str))
            .map(str::to_owned)
            .collect();
        let child = spawn(&program, &arguments, folder.path())?;
        let target = Target { authority, token: None };
        let mut private = Self { child, program, arguments, folder, target };
        private.wait_until_ready()?;
        Ok(private)
    }

    /// Stops it in good order and starts it again on the same data; how long it takes until it is ready.
    ///
    /// # Errors
    /// It does not end, or does not get ready.
    pub fn restart(&mut self) -> anyhow::Result<Duration> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).context("stopping the server")?;
        until("the server stops", Duration::from_secs(60), || Ok(self.child.try_wait()?))?;
        let start = Instant::now();
        self.child = spawn(&self.program, &self.arguments, self.folder.path())?;
        self.wait_until_ready()?;
        Ok(start.elapsed())
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        until("the server gets ready", Duration::from_secs(60), || {
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "the server ended at its start:\n{}", self.log());
            if !self.whole_log().contains("saltus is serving on") {
                // Whoever answers at its port already is not this one.
                return Ok(None);
            }
            let health = Connection::open(&self.target).and_then(|mut connection| connection.get("/health"));
            Ok(health.is_ok_and(|reply| reply.status == 200).then_some(()))
        })
    }

    /// Bytes of memory that it has: the resident set of its process.
    ///
    /// # Errors
    /// The system does not say.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let kilobytes: u64 =
            value.and_then(|value| value.parse().ok()).with_context(|| format!("no VmRSS in {path}"))?;
        Ok(kilobytes * 1024)
    }

    /// Its folder, on the drive that has its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a trigger, and its database if it is not there.
    ///
    /// # Errors
    /// What the server said.
    pub fn create_trigger(&self, database: &str, trigger: NewTrigger<'_>) -> anyhow::Result<()> {
        server::ensure_database(&self.target, database)?;
        let NewTrigger { name, file, spec, settings, arguments } = trigger;
        let body = json!({
            "db": database, "plugin_filename": file, "trigger_name": name, "trigger_specification": spec,
            "trigger_settings": settings, "trigger_arguments": arguments, "disabled": false,
        });
        let path = "/api/v3/configure/processing_engine_trigger";
        let reply = Connection::open(&self.target)?.post_json(path, &body)?;
        ensure!((200..300).contains(&reply.status), "creating trigger {name}: {}: {}", reply.status, reply.text());
        Ok(())
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    fn whole_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        const LINES: usize = 20;
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// Starts the program with its folders; what it says goes into a new log.
fn spawn(program: &Path, arguments: &[String], folder: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join("server.log"))?;
    Command::new(program)
        .args(arguments)
        .arg("--data-dir")
        .arg(folder.join("data"))
        .arg("--plugin-dir")
        .arg(folder.join("plugins"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

impl Drop for Private {
    fn drop(&mut self) {
        // Nothing of it is to be kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rows of a query.
///
/// # Errors
/// What the server said.
pub fn rows(target: &Target, database: &str, sql: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/api/v3/query_sql?db={}&format=json&q={}", encode(database), encode(sql));
    let reply = Connection::open(target)?.get(&path)?;
    ensure!(reply.status == 200, "{sql}: {}: {}", reply.status, reply.text());
    serde_json::from_slice(&reply.body).with_context(|| format!("reading the answer to {sql}"))
}

/// A port that nobody listens on now.
///
/// # Errors
/// There is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
