//! The trigger that scenarios watch: its plugin measures how soon after a row was sent it is entered, by the clock of the machine, so
//! that it sees what the server's own histogram cannot: a shard that comes late to its sockets.

use std::time::Duration;

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde_json::Value;

use crate::http::{Connection, encode};
use crate::open_loop::{Sink, now_ns, until};
use crate::private::{NewTrigger, Private, rows};
use crate::report::new_histogram;

/// The plugin's file.
pub const FILE: &str = "innocent.py";
/// The plugin.
pub const SOURCE: &str = include_str!("../plugins/innocent.py");
/// Its table and its trigger.
const NAME: &str = "innocent";

/// Its rows, over a connection of their own.
pub struct Innocent {
    database: &'static str,
    connection: Connection,
    /// The slice that is being measured.
    slice: u64,
}

impl Innocent {
    /// Creates the trigger with these settings.
    ///
    /// # Errors
    /// What the server said.
    pub fn create(private: &Private, database: &'static str, settings: Value) -> anyhow::Result<Self> {
        let arguments = Value::Null;
        private.create_trigger(
            database,
            NewTrigger { name: NAME, file: FILE, spec: &format!("table:{NAME}"), settings, arguments },
        )?;
        Self::open(private, database)
    }

    /// The trigger is there.
    ///
    /// # Errors
    /// The server takes no connection.
    pub fn open(private: &Private, database: &'static str) -> anyhow::Result<Self> {
        // No slice of an earlier one has the number of one of these.
        Ok(Innocent { database, connection: Connection::open(&private.target)?, slice: now_ns() })
    }

    /// What the trigger has measured since it was asked last.
    ///
    /// # Errors
    /// It does not say.
    pub fn samples(&mut self, private: &Private) -> anyhow::Result<Histogram<u64>> {
        self.slice += 1;
        let slice = self.slice;
        write(&mut self.connection, self.database, &format!("{NAME} flush={slice}i"))?;
        let sql = format!("SELECT nanoseconds FROM samples WHERE slice = {slice}");
        let text = until("the innocent trigger says what it measured", Duration::from_secs(30), || {
            // The table is made by the first answer.
            let answer = rows(&private.target, self.database, &sql).unwrap_or_default();
            Ok(answer.first().and_then(|row| row["nanoseconds"].as_str().map(str::to_owned)))
        })?;
        let mut histogram = new_histogram();
        for sample in text.as_bytes().chunks(8) {
            let digits = std::str::from_utf8(sample).context("a sample that is no number")?;
            histogram.saturating_record(u64::from_str_radix(digits, 16).context("a sample that is no number")?.max(1));
        }
        Ok(histogram)
    }
}

impl Sink for Innocent {
    fn send(&mut self, _number: u64, _due_ns: u64) -> anyhow::Result<()> {
        write(&mut self.connection, self.database, &format!("{NAME} sent={}i", now_ns()))
    }
}

/// Writes lines without waiting for the disk.
///
/// # Errors
/// What the server said.
pub fn write(connection: &mut Connection, database: &str, lines: &str) -> anyhow::Result<()> {
    let path = format!("/api/v3/write_lp?db={}&no_sync=true", encode(database));
    let reply = connection.post(&path, lines.as_bytes())?;
    ensure!((200..300).contains(&reply.status), "the server answered {}: {}", reply.status, reply.text());
    Ok(())
}
