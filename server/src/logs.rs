//! What plugins said: the rows of `system.processing_engine_logs`.
//!
//! Two stages. A run puts its line into a lock-free queue, stamped with the wall clock, and is done: that may happen on a
//! shard's thread. A collector thread moves lines from the queue into the kept rows and into the server's log. Readers
//! collect first, so a line is visible to the query that follows it.
//!
//! Bounds: [`LOG_ROWS_MAX`] rows and [`KEPT_BYTES_MAX`] bytes are kept, the oldest go first; the queue holds
//! [`QUEUE_LINES_MAX`] lines and [`QUEUE_BYTES_MAX`] bytes, what finds no room is dropped and counted.
//!
//! What plugins said, and failures, are kept over restarts (`log_store.rs`); what the engine says of every run only over an
//! orderly stop, as it may be thousands of lines a second.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use parking_lot::{Mutex, RwLock};
use saltus_core::ids::RunId;
use saltus_core::limits::{LOG_ROWS_MAX, LOG_TEXT_BYTES_MAX};
use saltus_core::ports::{LogLevel, LogLine, LogText};

use crate::log_store::LogStore;

/// Lines that wait for the collector.
pub const QUEUE_LINES_MAX: usize = 16 * 1024;
/// Bytes of text that wait for the collector.
pub const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of text of the kept rows.
pub const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The collector comes after everything else on its core.
const BACKGROUND_NICE: i32 = 19;
/// How often the collector looks; readers do not wait for it.
const COLLECT_INTERVAL: Duration = Duration::from_millis(20);

const _: () = assert!(LOG_TEXT_BYTES_MAX * 16 <= QUEUE_BYTES_MAX, "the longest texts do not block the queue");

/// One kept line.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRow {
    /// Wall clock when the plugin said it, nanoseconds since the epoch.
    pub time_ns: i64,
    /// The trigger's database.
    pub db: Arc<str>,
    /// The trigger.
    pub trigger: Arc<str>,
    /// The run.
    pub run_id: RunId,
    /// Severity.
    pub level: LogLevel,
    /// The text.
    pub text: Arc<str>,
    /// How long the run took, in the line that ends it.
    pub took: Option<Duration>,
    /// The engine says it of every run.
    pub of_run: bool,
}

/// The ring of plugin log lines.
pub struct PluginLogs {
    queue: ArrayQueue<(i64, LogLine)>,
    queue_bytes: AtomicUsize,
    dropped: AtomicU64,
    kept: RwLock<Kept>,
    /// Taken before `kept`, so that files have the order of rows.
    store: Mutex<Option<LogStore>>,
}

/// What was said and what the engine says of every run are kept apart, so that a busy trigger's "starting" and "finished"
/// do not push out the one failure that somebody will look for.
struct Kept {
    next: u64,
    /// When this life began: older rows are in files already.
    since_ns: i64,
    said: Rows,
    runs: Rows,
}

impl Default for Kept {
    fn default() -> Self {
        Kept { next: 0, since_ns: wall_clock_ns(), said: Rows::default(), runs: Rows::default() }
    }
}

/// Rows with their place in the order of arrival.
#[derive(Default)]
struct Rows {
    rows: VecDeque<(u64, Arc<LogRow>)>,
    bytes: usize,
}

impl Default for PluginLogs {
    fn default() -> Self {
        Self::new()
    }
}

impl PluginLogs {
    /// An empty ring.
    pub fn new() -> Self {
        PluginLogs {
            queue: ArrayQueue::new(QUEUE_LINES_MAX),
            queue_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            kept: RwLock::default(),
            store: Mutex::new(None),
        }
    }

    /// With what earlier lives of the server have left in its data directory; from now on it is kept there.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open(data_dir: &Path) -> std::io::Result<Self> {
        let (store, rows) = LogStore::open(data_dir)?;
        let logs = PluginLogs::new();
        {
            let mut kept = logs.kept.write();
            rows.into_iter().for_each(|row| kept.keep(Arc::new(row)));
        }
        *logs.store.lock() = Some(store);
        Ok(logs)
    }

    /// Keeps what the engine said of runs as well: at the stop.
    fn store_runs(&self) {
        let mut store = self.store.lock();
        if let Some(store) = store.as_mut() {
            let kept = self.kept.read();
            let runs: Vec<_> =
                kept.runs.rows.iter().map(|(_, row)| row.clone()).filter(|row| row.time_ns >= kept.since_ns).collect();
            store.append(&runs);
        }
    }

    /// Takes a line. Lock-free; a line that finds no room is counted.
    pub fn log(&self, mut line: LogLine) {
        let bytes = match &mut line.text {
            LogText::Said(text) => {
                cut_text(text);
                text.len()
            }
            LogText::RunStarted(_) | LogText::RunFinished(_) => 0,
        };
        if self.queue_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes > QUEUE_BYTES_MAX
            || self.queue.push((wall_clock_ns(), line)).is_err()
        {
            self.queue_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that found no room since start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The kept rows, oldest first; those of one database if `db` is given.
    pub fn rows(&self, db: Option<&str>) -> Vec<Arc<LogRow>> {
        self.collect();
        let kept = self.kept.read();
        let (mut said, mut runs) = (kept.said.rows.iter().peekable(), kept.runs.rows.iter().peekable());
        let in_order = std::iter::from_fn(|| match (said.peek(), runs.peek()) {
            (Some((a, _)), Some((b, _))) if b < a => runs.next(),
            (Some(_), _) => said.next(),
            (None, _) => runs.next(),
        });
        in_order.map(|(_, row)| row).filter(|row| db.is_none_or(|db| row.db.as_ref() == db)).cloned().collect()
    }

    /// Moves what waits into the kept rows and the server's log.
    pub fn collect(&self) {
        if self.queue.is_empty() {
            return;
        }
        let mut taken = Vec::new();
        let mut store = self.store.lock();
        {
            // Popped under the lock, so that two collectors cannot swap the order of lines.
            let mut kept = self.kept.write();
            for _ in 0..QUEUE_LINES_MAX {
                let Some((time_ns, line)) = self.queue.pop() else { break };
                let said = match &line.text {
                    LogText::Said(text) => Some(text.len()),
                    LogText::RunStarted(_) | LogText::RunFinished(_) => None,
                };
                self.queue_bytes.fetch_sub(said.unwrap_or(0), Ordering::AcqRel);
                let row = Arc::new(LogRow::new(time_ns, line));
                kept.keep(row.clone());
                taken.push(row);
            }
        }
        if let Some(store) = store.as_mut() {
            let said: Vec<_> = taken.iter().filter(|row| !row.of_run).cloned().collect();
            store.append(&said);
        }
        drop(store);
        taken.iter().for_each(|row| row.trace());
    }

    /// Starts the thread that collects until the returned handle is dropped.
    ///
    /// # Errors
    /// What the system said about a new thread.
    pub fn start_collector(self: &Arc<Self>) -> std::io::Result<LogCollector> {
        let stop = Arc::new(AtomicBool::new(false));
        let (logs, asked) = (self.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("saltus-logs".into()).spawn(move || {
            // Plugins that flood the log are not to hold up a shard on the same core. Refused only where even that is forbidden.
            let _ = rustix::process::nice(BACKGROUND_NICE);
            while !asked.load(Ordering::Acquire) {
                logs.collect();
                std::thread::park_timeout(COLLECT_INTERVAL);
            }
            logs.collect();
            logs.store_runs();
        })?;
        Ok(LogCollector { stop, thread: Some(thread) })
    }
}

/// The collector's thread; dropping it collects once more and ends it.
pub struct LogCollector {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for LogCollector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Kept {
    fn keep(&mut self, row: Arc<LogRow>) {
        let place = self.next;
        self.next += 1;
        if row.of_run { &mut self.runs } else { &mut self.said }.keep(place, row);
    }
}

impl Rows {
    fn keep(&mut self, place: u64, row: Arc<LogRow>) {
        self.bytes += row.text.len();
        self.rows.push_back((place, row));
        while self.rows.len() > LOG_ROWS_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some((_, oldest)) = self.rows.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
    }
}

impl LogRow {
    fn new(time_ns: i64, line: LogLine) -> Self {
        let (took, of_run) = match &line.text {
            LogText::Said(_) => (None, false),
            LogText::RunStarted(_) => (None, true),
            LogText::RunFinished(took) => (Some(*took), true),
        };
        LogRow {
            took,
            of_run,
            time_ns,
            db: line.db,
            trigger: line.trigger,
            run_id: line.run_id,
            level: line.level,
            text: match line.text {
                LogText::Said(text) => text.into(),
                LogText::RunStarted(started) => started.to_string().into(),
                LogText::RunFinished(took) => {
                    format!("finished execution in {}", humantime::format_duration(took)).into()
                }
            },
        }
    }

    fn trace(&self) {
        let (db, trigger, run, text) = (&*self.db, &*self.trigger, self.run_id.0, &*self.text);
        match self.level {
            _ if self.of_run => tracing::debug!(db, trigger, run, "processing engine: {text}"),
            LogLevel::Info => tracing::info!(db, trigger, run, "processing engine: {text}"),
            LogLevel::Warn => tracing::warn!(db, trigger, run, "processing engine: {text}"),
            LogLevel::Error => tracing::error!(db, trigger, run, "processing engine: {text}"),
        }
    }
}

/// Cuts an overlong text at a character's border and says so in the text.
fn cut_text(text: &mut String) {
    if text.len() <= LOG_TEXT_BYTES_MAX {
        return;
    }
    let note = format!("... (cut; the whole text has {} bytes)", text.len());
    text.truncate(text.floor_char_boundary(LOG_TEXT_BYTES_MAX - note.len()));
    text.push_str(&note);
}

pub(crate) fn wall_clock_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use saltus_core::ports::Started;

    use super::*;

    fn line(db: &str, text: &str) -> LogLine {
        saying(db, LogText::Said(text.into()))
    }

    fn saying(db: &str, text: LogText) -> LogLine {
        LogLine { db: db.into(), trigger: "t".into(), run_id: RunId(7), level: LogLevel::Info, text }
    }

    #[test]
    fn what_the_engine_says_of_runs_is_in_order_and_pushes_nothing_else_out() {
        let logs = PluginLogs::new();
        logs.log(line("a", "said"));
        let round = || {
            logs.log(saying("a", LogText::RunStarted(Started::Write)));
            logs.log(saying("a", LogText::RunFinished(Duration::new(0, 1_250_003))));
            logs.collect();
        };
        round();
        logs.log(line("a", "said later"));
        let texts = || logs.rows(None).iter().map(|row| row.text.to_string()).collect::<Vec<_>>();
        let (started, finished) = ("starting execution of wal plugin.", "finished execution in 1ms 250us 3ns");
        assert_eq!(texts(), ["said", started, finished, "said later"]);
        (0..LOG_ROWS_MAX).for_each(|_| round());
        let texts = texts();
        assert_eq!(texts.len(), LOG_ROWS_MAX + 2);
        assert_eq!(texts[..3], ["said", "said later", started]);
    }

    #[test]
    fn a_reader_sees_every_line_logged_before_it_in_order() {
        let logs = PluginLogs::new();
        for n in 0..5 {
            logs.log(line("a", &n.to_string()));
        }
        logs.log(line("b", "other"));
        let texts: Vec<_> = logs.rows(Some("a")).iter().map(|row| row.text.to_string()).collect();
        assert_eq!(texts, ["0", "1", "2", "3", "4"]);
        assert_eq!(logs.rows(None).len(), 6);
    }

    #[test]
    fn the_oldest_rows_go_first() {
        let logs = PluginLogs::new();
        for n in 0..LOG_ROWS_MAX + 3 {
            logs.log(line("a", &n.to_string()));
        }
        let rows = logs.rows(None);
        assert_eq!(rows.len(), LOG_ROWS_MAX);
        assert_eq!(&*rows[0].text, "3");
    }

    #[test]
    fn a_line_that_finds_no_room_is_counted() {
        let logs = PluginLogs::new();
        for _ in 0..QUEUE_LINES_MAX + 2 {
            logs.log(line("a", "x"));
        }
        assert_eq!(logs.dropped(), 2);
        logs.collect();
        logs.log(line("a", "x"));
        assert_eq!(logs.dropped(), 2);
    }

    #[test]
    fn an_overlong_text_is_cut_at_a_character_and_says_so() {
        let logs = PluginLogs::new();
        logs.log(line("a", &"\u{20ac}".repeat(LOG_TEXT_BYTES_MAX)));
        let rows = logs.rows(None);
        assert!(rows[0].text.len() <= LOG_TEXT_BYTES_MAX);
        assert!(rows[0].text.ends_with(&format!("the whole text has {} bytes)", LOG_TEXT_BYTES_MAX * 3)));
    }

    #[test]
    fn the_collector_collects_once_more_when_it_ends() {
        let logs = Arc::new(PluginLogs::new());
        let collector = logs.start_collector().unwrap();
        logs.log(line("a", "last words"));
        drop(collector);
        assert_eq!(logs.kept.read().said.rows.len(), 1);
    }
}
