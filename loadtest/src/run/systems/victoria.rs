//! VictoriaMetrics, which takes the same line protocol: a private one on a free port, its data under the system's temporary folder.
//!
//! What it promises is less: a write is acknowledged when it is in memory, whatever was asked for, and it has no plugins. Queries see
//! what it has flushed, which it does every second.

use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::super::drive::{Answer, Client};
use super::super::rows::{Generator, Recipe};
use super::super::scenario::{Scenario, Stream};
use super::{Entry, System, process, wall_ns};
use crate::http::{Connection, Target};
use crate::open_loop::{keep_on, now_ns, until};
use crate::private::free_port;

/// How long a row that was written may be missing from queries.
const VISIBLE_WITHIN_NS: u64 = 30_000_000_000;

/// Why it is left out of a scenario with this stream.
pub fn refuses(stream: &Stream) -> Option<&'static str> {
    match stream.kind() {
        "write" if stream.plugin.is_some() && !stream.is_probed() => Some("it has no plugins"),
        "write" | "visible" => None,
        "query" => Some("it has no SQL"),
        _ => Some("it has no plugins"),
    }
}

/// A running one.
pub struct Victoria {
    child: Child,
    _folder: tempfile::TempDir,
    target: Target,
}

impl Victoria {
    /// Starts the program; on so many of the first processors, if that is wanted.
    ///
    /// # Errors
    /// It is not installed, or does not get ready.
    pub fn start(program: &str, processors: Option<usize>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("saltus-victoria-").tempdir().context("making a folder")?;
        let authority = format!("127.0.0.1:{}", free_port()?);
        let log = std::fs::File::create(folder.path().join("server.log"))?;
        let mut command = Command::new(program);
        command
            .arg(format!("-httpListenAddr={authority}"))
            .arg(format!("-storageDataPath={}", folder.path().join("data").display()))
            // Time stamps of a scenario may lie ahead, and nothing is to be thrown away as too old.
            .args(["-retentionPeriod=100y", "-search.latencyOffset=0s", "-search.disableCache"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // A program has the processors of the thread that starts it.
        let child = std::thread::spawn(move || {
            processors.map_or(Ok(()), keep_on).map_err(std::io::Error::other)?;
            command.spawn()
        });
        let child = match child.join().map_err(|_| anyhow::anyhow!("a thread panicked"))? {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                anyhow::bail!(
                    "{program} is not installed: install it, or say where it is: --rival victoria-metrics=PROGRAM"
                )
            }
            child => child.with_context(|| format!("starting {program}"))?,
        };
        let mut victoria = Self { child, _folder: folder, target: Target { authority, token: None } };
        until("VictoriaMetrics gets ready", Duration::from_secs(60), || {
            ensure!(victoria.child.try_wait()?.is_none(), "VictoriaMetrics ended at its start");
            let health = Connection::open(&victoria.target).and_then(|mut connection| connection.get("/health"));
            Ok(health.is_ok_and(|reply| reply.status == 200).then_some(()))
        })?;
        Ok(victoria)
    }
}

impl Drop for Victoria {
    fn drop(&mut self) {
        // Nothing of it is to be kept.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl System for Victoria {
    fn name(&self) -> String {
        "victoria-metrics".to_owned()
    }

    fn note(&self) -> String {
        let metrics = Connection::open(&self.target).and_then(|mut connection| connection.get("/metrics"));
        let text = metrics.map(|reply| reply.text()).unwrap_or_default();
        let version = text.lines().find_map(|line| line.split_once("short_version=\"")?.1.split('"').next());
        let version = version.filter(|version| !version.is_empty()).unwrap_or("of an unknown version");
        format!("VictoriaMetrics {version}: acknowledges what is in memory, durable or not")
    }

    fn prepare(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        // The first sample of a series is seen seconds later than all others, when its name is.
        for stream in scenario.streams.iter().filter(|stream| stream.visible.is_some()) {
            let mut first = Looker::new(Connection::open(&self.target)?, stream);
            first.prepare(0, 0);
            let answer = first.send()?;
            ensure!(answer == Answer::Done, "the first sample of stream `{}`: {answer:?}", stream.name);
        }
        Ok(())
    }

    fn client(&self, stream: &Stream, index: usize, base_ns: u64) -> anyhow::Result<Box<dyn Client>> {
        let connection = Connection::open(&self.target)?;
        Ok(match &stream.write {
            Some(write) => {
                let recipe = Recipe { probe: None, ..Recipe::new(stream, write, base_ns) };
                Box::new(Writer { connection, generator: Generator::new(&recipe, index, stream.connections) })
            }
            None => Box::new(Looker::new(connection, stream)),
        })
    }

    fn entries(&mut self, _stream: &Stream, _wanted: usize) -> anyhow::Result<Vec<Entry>> {
        Ok(Vec::new())
    }

    fn sees_entries(&self, _stream: &Stream) -> bool {
        false
    }

    fn processor_time(&self) -> Option<Duration> {
        process::time(self.child.id())
    }
}

fn answer(status: u16, text: impl FnOnce() -> String) -> Answer {
    match status {
        200..=299 => Answer::Done,
        503 => Answer::Busy(Duration::ZERO),
        status => Answer::Refused(format!("{status}: {}", text())),
    }
}

struct Writer {
    connection: Connection,
    generator: Generator,
}

impl Client for Writer {
    fn prepare(&mut self, number: u64, due_ns: u64) -> u32 {
        self.generator.prepare(number, due_ns)
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        let reply = self.connection.post("/write?precision=ns", &self.generator.text)?;
        Ok(answer(reply.status, || reply.text()))
    }
}

/// Writes a sample and asks for it until it is there.
struct Looker {
    connection: Connection,
    table: String,
    number: u64,
}

impl Looker {
    fn new(connection: Connection, stream: &Stream) -> Self {
        Self { connection, table: stream.name.clone(), number: 0 }
    }
}

impl Client for Looker {
    fn prepare(&mut self, number: u64, _due_ns: u64) -> u32 {
        // Of nine digits, so that it is written out in full, and not again within a thousand seconds.
        self.number = 100_000_000 + (wall_ns() / 1_000_000 % 800_000) * 1000 + number % 1000;
        1
    }

    fn send(&mut self) -> anyhow::Result<Answer> {
        const NS_PER_S: u64 = 1_000_000_000;
        let line = format!("{} v={}i", self.table, self.number);
        let reply = self.connection.post("/write?precision=ns", line.as_bytes())?;
        let written = answer(reply.status, || reply.text());
        if written != Answer::Done {
            return Ok(written);
        }
        let since = wall_ns() / NS_PER_S - 10;
        let path = format!("/api/v1/export?match[]={}_v&start={since}", self.table);
        let wanted = self.number.to_string();
        let end_ns = now_ns() + VISIBLE_WITHIN_NS;
        while now_ns() < end_ns {
            let reply = self.connection.get(&path)?;
            let asked = answer(reply.status, || reply.text());
            if asked != Answer::Done || reply.text().contains(&wanted) {
                return Ok(asked);
            }
            // It is asked for a second; a pause of a hundredth of that does not show, and leaves it the processor.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Answer::Refused(format!("sample {} is not to be seen", self.number)))
    }
}
