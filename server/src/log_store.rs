//! What plugins said, over restarts: files `plugin-logs/NNNNNNNN.jsonl` in the data directory, a line of JSON per row.
//!
//! The collector appends what it has collected, without syncing: a `kill -9` takes nothing, a power failure may take the last moments. A
//! file that is full is followed by another, and the oldest goes ([`FILES_MAX`] of [`FILE_BYTES_MAX`]). What cannot be read is passed
//! over and counted; what cannot be written is said in the server's log, once a minute, and never stops anything, a start neither.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use saltus_core::ids::RunId;
use saltus_core::ports::LogLevel;
use saltus_shards::io::Shortage;
use serde::{Deserialize, Serialize};

use crate::logs::LogRow;

/// Bytes of one file, about.
pub const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Files that are kept, the one in use included.
pub const FILES_MAX: usize = 8;
/// How often a failure is said.
const SAID_EVERY: Duration = Duration::from_secs(60);

const FOLDER: &str = "plugin-logs";
const ENDING: &str = "jsonl";

/// The files of one data directory.
pub struct LogStore {
    folder: PathBuf,
    /// `None` while none can be made.
    file: Option<File>,
    number: u64,
    bytes: u64,
    file_bytes_max: u64,
    failed: Option<Instant>,
}

/// A row as it stands in a file.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    time_ns: i64,
    #[serde(borrow)]
    db: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    trigger: std::borrow::Cow<'a, str>,
    run: u64,
    level: Level,
    #[serde(borrow)]
    text: std::borrow::Cow<'a, str>,
    /// Nanoseconds, of the line that ends a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    took_ns: Option<u64>,
    /// The engine says it of every run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_run: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Level {
    Info,
    Warn,
    Error,
}

impl LogStore {
    /// Opens the files of a data directory; the rows in them, oldest first.
    ///
    /// # Errors
    /// The folder cannot be made, or no file in it be written.
    pub fn open(data_dir: &Path) -> io::Result<(Self, Vec<LogRow>)> {
        LogStore::open_with(data_dir, FILE_BYTES_MAX)
    }

    fn open_with(data_dir: &Path, file_bytes_max: u64) -> io::Result<(Self, Vec<LogRow>)> {
        let folder = data_dir.join(FOLDER);
        let full = |error: &io::Error| Shortage::of(error).is_some();
        let numbers = match std::fs::create_dir_all(&folder).and_then(|()| numbers(&folder)) {
            Err(error) if full(&error) => Vec::new(),
            other => other?,
        };
        let mut rows = Vec::new();
        for number in &numbers {
            read(&path(&folder, *number), &mut rows);
        }
        // A new file for each life: the last line of the one before may be torn.
        let number = numbers.last().map_or(1, |last| last + 1);
        let file = match create(&folder, number) {
            // It is made with the first rows, if there is room then.
            Err(error) if full(&error) => None,
            other => Some(other?),
        };
        rows.sort_by_key(|row| row.time_ns);
        let mut store = LogStore { folder, file, number, bytes: 0, file_bytes_max, failed: None };
        store.remove_oldest();
        Ok((store, rows))
    }

    /// Appends rows.
    pub fn append(&mut self, rows: &[Arc<LogRow>]) {
        if rows.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(rows)
            && self.failed.is_none_or(|at| at.elapsed() >= SAID_EVERY)
        {
            self.failed = Some(Instant::now());
            let folder = self.folder.display();
            let why = Shortage::of(&error).map_or_else(|| error.to_string(), |shortage| shortage.text().to_owned());
            tracing::error!(%folder, "what plugins say is not kept for the next start: {why}: make room, or mend the folder");
        }
    }

    fn try_append(&mut self, rows: &[Arc<LogRow>]) -> io::Result<()> {
        let mut lines = Vec::with_capacity(rows.len() * 160);
        for row in rows {
            serde_json::to_writer(&mut lines, &Stored::of(row))?;
            lines.push(b'\n');
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                std::fs::create_dir_all(&self.folder)?;
                create(&self.folder, self.number)?
            }
        };
        let written = file.write_all(&lines);
        if written.is_err() {
            // Half a line would take the next one with it.
            let _ = file.set_len(self.bytes);
        }
        self.file = Some(file);
        written?;
        self.bytes += lines.len() as u64;
        if self.bytes >= self.file_bytes_max {
            self.file = Some(create(&self.folder, self.number + 1)?);
            self.number += 1;
            self.bytes = 0;
            self.remove_oldest();
        }
        Ok(())
    }

    fn remove_oldest(&mut self) {
        let Ok(numbers) = numbers(&self.folder) else { return };
        let surplus = numbers.len().saturating_sub(FILES_MAX);
        for number in &numbers[..surplus] {
            if let Err(error) = std::fs::remove_file(path(&self.folder, *number)) {
                tracing::warn!(%error, number, "an old file of plugin logs cannot be removed");
            }
        }
    }
}

impl<'a> Stored<'a> {
    fn of(row: &'a LogRow) -> Self {
        Stored {
            time_ns: row.time_ns,
            db: (&*row.db).into(),
            trigger: (&*row.trigger).into(),
            run: row.run_id.0,
            level: match row.level {
                LogLevel::Info => Level::Info,
                LogLevel::Warn => Level::Warn,
                LogLevel::Error => Level::Error,
            },
            text: (&*row.text).into(),
            took_ns: row.took.map(|took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
            of_run: row.of_run,
        }
    }

    fn row(self) -> LogRow {
        LogRow {
            time_ns: self.time_ns,
            db: self.db.into(),
            trigger: self.trigger.into(),
            run_id: RunId(self.run),
            level: match self.level {
                Level::Info => LogLevel::Info,
                Level::Warn => LogLevel::Warn,
                Level::Error => LogLevel::Error,
            },
            text: self.text.into(),
            took: self.took_ns.map(Duration::from_nanos),
            of_run: self.of_run,
        }
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.{ENDING}"))
}

fn create(folder: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path(folder, number))
}

/// The numbers of the files, in order.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let number: Option<u64> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if path.extension().is_some_and(|ending| ending == ENDING) {
            numbers.extend(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The rows of a file. A line that is none, as the last one after a crash may be, is passed over.
fn read(path: &Path, rows: &mut Vec<LogRow>) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "a file of plugin logs cannot be read");
            return;
        }
    };
    let mut unread = 0_usize;
    for line in BufReader::new(file).split(b'\n') {
        let row = line.ok().and_then(|line| serde_json::from_slice::<Stored<'_>>(&line).ok().map(Stored::row));
        match row {
            Some(row) => rows.push(row),
            None => unread += 1,
        }
    }
    if unread > 0 {
        tracing::warn!(lines = unread, path = %path.display(), "lines of plugin logs cannot be read and are left out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> Arc<LogRow> {
        Arc::new(LogRow {
            time_ns: n as i64,
            db: "d".into(),
            trigger: "t \"quoted\"\n".into(),
            run_id: RunId(n as u64),
            level: LogLevel::Error,
            text: format!("{n} \u{20ac}\nTraceback").into(),
            took: n.is_multiple_of(2).then(|| Duration::from_nanos(n as u64)),
            of_run: n.is_multiple_of(2),
        })
    }

    fn texts(rows: &[LogRow]) -> Vec<String> {
        rows.iter().map(|row| row.text.to_string()).collect()
    }

    #[test]
    fn rows_come_back_as_they_were_and_a_torn_line_takes_no_other_with_it() {
        let root = tempfile::tempdir().unwrap();
        let (mut store, rows) = LogStore::open(root.path()).unwrap();
        assert!(rows.is_empty());
        let written: Vec<_> = (0..5).map(row).collect();
        store.append(&written);
        drop(store);
        let file = path(&root.path().join(FOLDER), 1);
        OpenOptions::new().append(true).open(file).unwrap().write_all(b"{\"time_ns\":7,\"db\":\"d").unwrap();
        let (mut store, rows) = LogStore::open(root.path()).unwrap();
        assert_eq!(rows, written.iter().map(|row| LogRow::clone(row)).collect::<Vec<_>>());
        store.append(&[row(9)]);
        let (_, rows) = LogStore::open(root.path()).unwrap();
        assert_eq!(texts(&rows).last(), Some(&row(9).text.to_string()));
    }

    #[test]
    fn files_are_bounded_in_size_and_number_and_the_oldest_go() {
        let root = tempfile::tempdir().unwrap();
        let (mut store, _) = LogStore::open_with(root.path(), 1_000).unwrap();
        (0..500).for_each(|n| store.append(&[row(n)]));
        let folder = root.path().join(FOLDER);
        assert_eq!(numbers(&folder).unwrap().len(), FILES_MAX);
        let bytes: u64 =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < FILES_MAX as u64 * 1_300, "{bytes}");
        let (_, rows) = LogStore::open_with(root.path(), 1_000).unwrap();
        assert_eq!(*rows.last().unwrap(), LogRow::clone(&row(499)));
        assert!(rows.windows(2).all(|two| two[1].time_ns == two[0].time_ns + 1));
    }
}
