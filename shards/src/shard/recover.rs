//! A shard's tables, made again from the logs of earlier lives.
//!
//! Every shard reads every stream, oldest life first, and keeps what it owns *now*: so the number of shards may change
//! between two starts. A table was owned by one shard in each life, so its records come in the order in which they were
//! made. Nothing is written; when all shards have recovered, the old streams are cut to what they hold (`wal::settle`).

use std::sync::Arc;

use bytes::Bytes;
use saltus_core::ids::{EventId, TableId};
use saltus_core::line_protocol::{LogParser, SchemaSource};
use saltus_core::schema::{ColumnDef, TableSchema};
use saltus_core::trigger::TriggerSpec;

use crate::dead_letters::{Account, DeadLetter};
use crate::directory::TableEntry;
use crate::states::{Commit, Recovered};
use crate::table::Table;
use crate::wal::recovery::VisitorError;
use crate::wal::{Columns, DataDirLock, Entry, Record, RecoveryOptions, RecoveryReport, recover};

use super::Shard;
use super::own::Owner;
use super::tables::Owned;

/// The one table whose lines are read again.
struct Only<'a>(&'a str, &'a Arc<TableSchema>);

impl SchemaSource for Only<'_> {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        (table == self.0).then(|| self.1.clone())
    }
}

impl Shard {
    /// Reads the logs of all earlier lives; what was found in them.
    ///
    /// # Errors
    /// A text that names file and offset of what cannot be read, and the remedy.
    pub fn recover(&self, lock: &DataDirLock) -> Result<RecoveryReport, String> {
        let options = RecoveryOptions {
            accept_loss: self.shared.config.accept_loss,
            before: Some(self.shared.epoch),
            known: Some(&self.shared.known),
        };
        let mut owner = self.owner.borrow_mut();
        let mut states = Recovered::default();
        let mut parser = LogParser::new(self.parser.take());
        let report = recover(lock, options, &mut |entry| {
            self.note_record(&entry, &mut states);
            self.recover_record(&mut owner, &mut parser, entry.record)
        });
        self.parser.replace(parser.into_current());
        let report = report.map_err(|error| format!("the log cannot be recovered: {error}"))?;
        let mut entries = Vec::with_capacity(owner.tables.len());
        for owned in owner.tables.iter() {
            owned.entry.set_schema(owned.table.schema().clone());
            owned.entry.set_version(owned.table.version());
            entries.push(owned.entry.clone());
        }
        // Where the end of a table was lost with its log, the one that was made later counts.
        entries.sort_by_key(|entry| entry.id);
        self.shared.directory.insert_all(self.id, entries);
        // One shard speaks for all: they read the same files.
        if self.id.0 == 0 {
            self.shared.shelf.fill(states.states());
            say(&report);
        }
        Ok(report)
    }

    /// What a record says of triggers.
    fn note_record(&self, entry: &Entry<'_>, states: &mut Recovered) {
        let mut ledger = self.ledger.borrow_mut();
        match entry.record {
            Record::Write { table, .. } => ledger.write_to(entry.stream, entry.sequence, table),
            Record::Cursor { trigger, stream, sequence } => ledger.cursor(trigger, stream, sequence),
            Record::ScheduleMark { trigger, mark } => ledger.mark(trigger, entry.stream.epoch, mark),
            Record::TriggerBegin { trigger, spec } => {
                ledger.begin(trigger, entry.stream, entry.sequence, TriggerSpec::parse(spec).ok());
            }
            Record::TriggerLeave { trigger } => ledger.leave(trigger, entry.stream, entry.sequence),
            Record::TriggerEnd { trigger } => ledger.end(trigger, entry.stream),
            Record::DeadLetter { trigger, account } => {
                let id = EventId { stream: entry.stream, sequence: entry.sequence };
                match Account::decode(account) {
                    Ok(account) => ledger.dead_letter(DeadLetter { id, trigger, account }),
                    Err(error) => tracing::error!(letter = %id, %error, "a dead letter cannot be read and is left out"),
                }
            }
            Record::DeadLetterEnd { stream, sequence } => ledger.dead_letter_end(EventId { stream, sequence }),
            // One shard looks for all: states go to the shelf.
            Record::State { .. } | Record::StateEnd { .. } if self.id.0 != 0 => {}
            Record::State { trigger, body } => match Commit::decode(body) {
                Some(commit) => states.commit(trigger, commit),
                None => tracing::error!(
                    trigger = trigger.0,
                    at = entry.sequence.0,
                    "a change of a trigger's state cannot be read and is left out"
                ),
            },
            Record::StateEnd { trigger } => states.end(trigger),
            Record::CreateTable { table, db, name } => ledger.table(table, db, name),
            Record::AddColumns { .. } | Record::DropTable { .. } => {}
        }
    }

    fn recover_record(
        &self,
        owner: &mut Owner,
        parser: &mut LogParser,
        record: Record<'_>,
    ) -> Result<(), VisitorError> {
        match record {
            Record::CreateTable { table, db, name } => self.recover_table(owner, table, db, name),
            Record::AddColumns { table, columns, .. } => recover_columns(owner, table, &columns),
            Record::Write { .. } => return self.recover_rows(owner, parser, record),
            Record::DropTable { table } => {
                owner.tables.remove(table);
            }
            Record::Cursor { .. } | Record::ScheduleMark { .. } => {}
            Record::TriggerBegin { .. } | Record::TriggerLeave { .. } | Record::TriggerEnd { .. } => {}
            Record::DeadLetter { .. } | Record::DeadLetterEnd { .. } => {}
            Record::State { .. } | Record::StateEnd { .. } => {}
        }
        Ok(())
    }

    fn recover_table(&self, owner: &mut Owner, id: TableId, db: &str, name: &str) {
        if self.shared.directory.placement().owner(db, name) != self.id {
            return;
        }
        let (db, name): (Arc<str>, Arc<str>) = (db.into(), name.into());
        let table = Table::new(id, db.clone(), name.clone());
        let entry = TableEntry::new(id, db, name, self.id, table.schema().clone());
        owner.tables.insert(Owned { table, entry });
    }

    fn recover_rows(&self, owner: &mut Owner, parser: &mut LogParser, record: Record<'_>) -> Result<(), VisitorError> {
        let Record::Write { table, parser_version, precision, base_time_ns, text, .. } = record else { return Ok(()) };
        let recovered = owner.tables.change(table, |owned| {
            let body = Bytes::copy_from_slice(text);
            let schemas = Only(&owned.entry.name, owned.table.schema());
            let parsed = parser
                .parse(parser_version, &owned.entry.db, &body, precision, &schemas)
                .map_err(|why| format!("table {}: {why}", owned.entry.name))?;
            for batch in parsed.batches {
                self.counters.rows_recovered.add(batch.rows() as u64);
                owned.table.apply(Arc::new(batch.freeze(base_time_ns)));
            }
            Ok(())
        });
        recovered.unwrap_or(Ok(()))
    }
}

fn recover_columns(owner: &mut Owner, id: TableId, columns: &Columns<'_>) {
    owner.tables.change(id, |owned| {
        let added: Vec<ColumnDef> = columns.iter().map(|(kind, name)| ColumnDef { name: name.into(), kind }).collect();
        let new = owned.table.check(added.iter().map(|c| (c.name.as_ref(), c.kind))).new;
        owned.table.add_columns(&new);
    });
}

fn say(report: &RecoveryReport) {
    let segments: usize = report.streams.iter().map(|s| s.segments.len()).sum();
    tracing::info!(streams = report.streams.len(), segments, "logs of earlier lives read");
    for tail in &report.torn_tails {
        tracing::warn!(?tail, "the last round of a log was not complete and is left out: it was never acknowledged");
    }
    for loss in &report.losses {
        tracing::error!(path = %loss.path.display(), offset = loss.offset, "--accept-loss: given up: {loss}");
    }
}
