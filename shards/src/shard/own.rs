//! A write on the core that owns the table: decide, log, apply.
//!
//! 1. A batch whose columns the table has goes straight to the log. Otherwise the owner decides: new columns are logged and
//!    added; if any contradicts the table, the lines are parsed again with the owner's schema and those that contradict are
//!    refused by line number, the others taken.
//! 2. The rows get their sequence number and, where they have none, the server's time.
//! 3. A durable write is applied when its frame is durable, so that nobody ever reads a row that a crash could take back. A
//!    `no_sync` write is applied at once; durable writes of the same table that still wait go before it, because the
//!    log's order is the table's order.
//! 4. Acknowledgements and activations go out in sequence order ([`Shard::release`]).

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use futures_channel::oneshot;
use saltus_core::batch::{Batch, LineNumbers, PendingBatch};
use saltus_core::ids::{Epoch, MonoNs, Sequence, ShardId, TableId};
use saltus_core::limits::{LINE_ERRORS_REPORTED_MAX, TABLES_MAX};
use saltus_core::line_protocol::{GRAMMAR_VERSION, LineError, RefusedBy, SchemaSource, column_limit_text, line_at};
use saltus_core::names::check_new_table;
use saltus_core::ports::RunEvent;
use saltus_core::schema::{ColumnDef, TableSchema};

use crate::api::TableError;
use crate::clock::{RisingClock, mono_now};
use crate::directory::TableEntry;
use crate::mailbox::Held;
use crate::table::{Table, TableSnapshot};
use crate::wal::{Columns, Record};

use super::arrive::new_columns;
use super::tables::{Owned, Tables};
use super::triggers::Event;
use super::{Delivery, Message, Shard, Verdict, WriteOptions};

/// The tables of a shard, and what waits for its log.
pub(crate) struct Owner {
    pub tables: Tables,
    pub clock: RisingClock,
    pub tables_created: u32,
    /// In sequence order: what happens when the log is durable up to there.
    pub waiting: VecDeque<Waiting>,
    /// How many of those still have to activate triggers, by table.
    in_line: HashMap<TableId, usize, ahash::RandomState>,
}

/// Something that happens when its sequence is durable and everything before it has happened.
pub(crate) struct Waiting {
    pub sequence: Sequence,
    pub appended: MonoNs,
    pub what: Wait,
    /// Room in the mailbox, given back now.
    _held: Option<Held<Message>>,
}

/// What waits.
pub(crate) enum Wait {
    /// A durable write: apply it (unless a `no_sync` write has forced that already), answer, activate.
    Write {
        table: TableId,
        batch: Arc<Batch>,
        options: WriteOptions,
        applied: bool,
        /// Gone if the writer was told that the disk is full.
        reply: Option<oneshot::Sender<Verdict>>,
        verdict: Verdict,
    },
    /// A `no_sync` write that is applied and answered: only its activation waits for its turn.
    Activate { table: TableId, batch: Arc<Batch>, options: WriteOptions },
    /// A `no_sync` write that is done: only its room is held until it is durable.
    Room,
    /// A table was made.
    Created { entry: Arc<TableEntry>, reply: Option<oneshot::Sender<Result<Arc<TableEntry>, TableError>>> },
    /// A table was dropped.
    Dropped { reply: Option<oneshot::Sender<Result<(), TableError>>> },
}

impl Wait {
    /// The table whose triggers it will activate.
    fn activates(&self) -> Option<TableId> {
        match self {
            Wait::Write { table, .. } | Wait::Activate { table, .. } => Some(*table),
            Wait::Room | Wait::Created { .. } | Wait::Dropped { .. } => None,
        }
    }
}

impl Owner {
    pub fn new() -> Self {
        Owner {
            tables: Tables::default(),
            clock: RisingClock::default(),
            tables_created: 0,
            waiting: VecDeque::new(),
            in_line: HashMap::default(),
        }
    }

    fn put_in_line(&mut self, sequence: Sequence, what: Wait, held: Option<Held<Message>>) {
        if let Some(table) = what.activates() {
            *self.in_line.entry(table).or_default() += 1;
        }
        self.waiting.push_back(Waiting { sequence, appended: mono_now(), what, _held: held });
    }

    /// The next thing that may happen now that the log is durable up to `durable`.
    fn take_due(&mut self, durable: Sequence) -> Option<Waiting> {
        let front = self.waiting.front()?;
        // An activation waits for what was in line before it, not for its own durability.
        if front.sequence > durable && !matches!(front.what, Wait::Activate { .. }) {
            return None;
        }
        let waiting = self.waiting.pop_front()?;
        if let Some(table) = waiting.what.activates()
            && let Some(count) = self.in_line.get_mut(&table)
        {
            *count -= 1;
            if *count == 0 {
                self.in_line.remove(&table);
            }
        }
        Some(waiting)
    }

    /// Whether an event of a table has to wait for its turn. A trigger on one table sees the events of that one in order; one on
    /// all tables, all of them.
    fn is_in_line(&self, table: TableId, somebody_sees_all: bool) -> bool {
        if somebody_sees_all { !self.in_line.is_empty() } else { self.in_line.contains_key(&table) }
    }

    pub fn next_table_id(&mut self, epoch: Epoch, shard: ShardId) -> TableId {
        self.tables_created += 1;
        TableId::new(epoch, shard, self.tables_created)
    }

    fn apply(&mut self, table: TableId, batch: Arc<Batch>) {
        self.tables.change(table, |owned| {
            owned.table.apply(batch);
            owned.entry.set_version(owned.table.version());
        });
    }

    /// Applies the durable writes of a table that still wait, in order: a `no_sync` write behind them is about to be applied.
    fn apply_waiting(&mut self, target: TableId) {
        let mut early = Vec::new();
        for waiting in &mut self.waiting {
            if let Wait::Write { table, batch, applied: applied @ false, .. } = &mut waiting.what
                && *table == target
            {
                *applied = true;
                early.push(batch.clone());
            }
        }
        for batch in early {
            self.apply(target, batch);
        }
    }
}

/// The owner's schema as the parser's only truth.
struct Own(Arc<str>, Arc<TableSchema>);

impl SchemaSource for Own {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        (*table == *self.0).then(|| self.1.clone())
    }
}

/// A batch that fits the table, and what was left out of it.
struct Fitted {
    batch: PendingBatch,
    rejected: Vec<LineError>,
    rejected_count: usize,
}

impl Shard {
    /// Takes one table's part of a write; answers through its reply slot.
    pub fn accept(self: &Rc<Self>, delivery: Delivery) {
        if let Some(reason) = self.refuses() {
            drop(delivery.reply.send(Verdict::Unavailable(reason)));
            return;
        }
        let Delivery { db, batch, options, reply, held } = delivery;
        match self.take_in(&db, batch, options) {
            Ok((taken, verdict)) => self.commit_to(taken, options, reply, verdict, held),
            Err(verdict) => drop(reply.send(verdict)),
        }
    }

    fn refuses(&self) -> Option<String> {
        self.face().refuses.load().as_ref().map(|reason| reason.to_string())
    }

    /// Decides, logs; says where it is in the log.
    fn take_in(&self, db: &Arc<str>, batch: PendingBatch, options: WriteOptions) -> Result<(Taken, Verdict), Verdict> {
        if options.waits && self.log.is_short() {
            return Err(Verdict::NoSpace(Box::new(batch)));
        }
        self.log.check().map_err(Verdict::Unavailable)?;
        let entry = self.entry_for(db, &batch.table).map_err(|error| refused(&batch, error, options))?;
        let mut fitted = self.fit(db, &entry, batch, options)?;
        self.counters.lines_rejected.add(fitted.rejected_count as u64);
        let rejected: Vec<_> = fitted.rejected.drain(..).collect();
        let rejected_count = fitted.rejected_count;
        let rows = fitted.batch.rows();
        let mut owner = self.owner.borrow_mut();
        let base_time_ns = owner.clock.next_ns();
        let record = Record::Write {
            table: entry.id,
            schema_version: entry.schema().version(),
            parser_version: GRAMMAR_VERSION,
            precision: fitted.batch.precision,
            base_time_ns,
            depth: options.depth,
            text: &fitted.batch.text,
        };
        let sequence = self.log.append(&record).map_err(Verdict::Unavailable)?;
        self.counters.rows_written.add(rows as u64);
        self.counters.batches.add(1);
        let batch = Arc::new(fitted.batch.freeze(base_time_ns));
        Ok((Taken { table: entry.id, sequence, batch }, Verdict::Taken { rows, rejected, rejected_count }))
    }

    /// Applies now or puts in line, by what the writer asked for.
    fn commit_to(
        self: &Rc<Self>,
        taken: Taken,
        options: WriteOptions,
        reply: oneshot::Sender<Verdict>,
        verdict: Verdict,
        held: Held<Message>,
    ) {
        let Taken { table, sequence, batch } = taken;
        let mut owner = self.owner.borrow_mut();
        let what = if options.no_sync {
            owner.apply_waiting(table);
            owner.apply(table, batch.clone());
            drop(reply.send(verdict));
            let db = owner.tables.get(table).map(|owned| owned.entry.db.clone());
            let sees_all = db.is_some_and(|db| self.triggers.borrow().see_all_tables(&db));
            if !owner.is_in_line(table, sees_all) {
                // The room stays taken until the frame is durable: memory that waits for the disk is bounded too.
                owner.put_in_line(sequence, Wait::Room, Some(held));
                drop(owner);
                self.activate(table, &batch, sequence, options);
                return;
            }
            Wait::Activate { table, batch, options }
        } else {
            Wait::Write { table, batch, options, applied: false, reply: Some(reply), verdict }
        };
        owner.put_in_line(sequence, what, Some(held));
    }

    /// The log is durable up to `durable`: everything that waited for that happens, in order; acknowledgements first,
    /// activations after them.
    pub fn release(self: &Rc<Self>, durable: Sequence) {
        let mut events = Vec::new();
        loop {
            let mut owner = self.owner.borrow_mut();
            let Some(waiting) = owner.take_due(durable) else { break };
            self.counters.commit_ns.borrow_mut().saturating_record(mono_now().since(waiting.appended).max(1));
            match waiting.what {
                Wait::Room => {}
                Wait::Write { table, batch, options, applied, reply, verdict } => {
                    if !applied {
                        owner.apply(table, batch.clone());
                    }
                    answer(reply, verdict);
                    events.push((table, batch, waiting.sequence, options));
                }
                Wait::Activate { table, batch, options, .. } => events.push((table, batch, waiting.sequence, options)),
                Wait::Created { entry, reply } => answer(reply, Ok(entry)),
                Wait::Dropped { reply } => answer(reply, Ok(())),
            }
        }
        for (table, batch, sequence, options) in events {
            self.activate(table, &batch, sequence, options);
        }
    }

    /// The log is broken: what waits for it is answered, and its rows are never applied.
    pub fn abandon_waiting(&self, reason: &str) {
        let waiting: Vec<_> = {
            let mut owner = self.owner.borrow_mut();
            owner.in_line.clear();
            owner.waiting.drain(..).collect()
        };
        for waiting in waiting {
            match waiting.what {
                Wait::Write { reply, .. } => answer(reply, Verdict::Unavailable(reason.to_owned())),
                Wait::Created { reply, .. } => answer(reply, Err(TableError::Unavailable(reason.to_owned()))),
                Wait::Dropped { reply } => answer(reply, Err(TableError::Unavailable(reason.to_owned()))),
                Wait::Activate { .. } | Wait::Room => {}
            }
        }
    }

    /// The log waits for a full disk: whoever waits for it is answered, and everything happens when there is room all the same.
    /// Results of runs go on waiting, unless the server stops.
    pub fn answer_waiting(&self, reason: &str) {
        let stopping = self.stopping();
        for waiting in &mut self.owner.borrow_mut().waiting {
            match &mut waiting.what {
                Wait::Write { options, .. } if options.waits && !stopping => {}
                Wait::Write { reply, .. } => answer(reply.take(), Verdict::Unavailable(reason.to_owned())),
                Wait::Created { reply, .. } => answer(reply.take(), Err(TableError::Unavailable(reason.to_owned()))),
                Wait::Dropped { reply } => answer(reply.take(), Err(TableError::Unavailable(reason.to_owned()))),
                Wait::Activate { .. } | Wait::Room => {}
            }
        }
    }

    fn activate(self: &Rc<Self>, table: TableId, batch: &Arc<Batch>, sequence: Sequence, options: WriteOptions) {
        let entry = match self.owner.borrow().tables.get(table) {
            Some(owned) => owned.entry.clone(),
            None => return,
        };
        self.offer(
            &entry.db,
            &Event {
                depth: options.depth,
                ..Event::new(RunEvent::Writes(vec![self.table_batch(&entry.name, batch, sequence)]), options.received)
            },
        );
    }

    /// The table of that name; made if there is none.
    fn entry_for(&self, db: &Arc<str>, name: &Arc<str>) -> Result<Arc<TableEntry>, TableError> {
        if let Some(entry) = self.shared.directory.get(db, name) {
            return Ok(entry);
        }
        let is_new = !self.shared.directory.has_database(db) && !self.shared.host.was_created(db);
        let (entry, _) = self.make_table(db.clone(), name.clone(), &[])?;
        if is_new {
            tracing::info!(%db, table = %name, "a write has made a database: none had this name");
        }
        Ok(entry)
    }

    fn make_table(
        &self,
        db: Arc<str>,
        name: Arc<str>,
        columns: &[ColumnDef],
    ) -> Result<(Arc<TableEntry>, Sequence), TableError> {
        let tables = self.shared.directory.count_all();
        if tables >= TABLES_MAX {
            return Err(TableError::Limit(format!(
                "Update to schema would exceed number of tables limit: attempted to create table but already have {tables} table(s) (limit: {TABLES_MAX}): table `{name}` of database `{db}` would be one too many"
            )));
        }
        let mut owner = self.owner.borrow_mut();
        let id = owner.next_table_id(self.shared.epoch, self.id);
        let mut table = Table::new(id, db.clone(), name.clone());
        let check = table.check(columns.iter().map(|c| (c.name.as_ref(), c.kind)));
        if !check.fits() {
            return Err(TableError::Limit(column_limit_text(&name, columns.len())));
        }
        let mut sequence = self
            .log
            .append(&Record::CreateTable { table: id, db: &db, name: &name })
            .map_err(TableError::Unavailable)?;
        if !check.new.is_empty() {
            table.add_columns(&check.new);
            sequence = self.log_columns(&table, &check.new).map_err(TableError::Unavailable)?;
        }
        let entry = TableEntry::new(id, db, name, self.id, table.schema().clone());
        entry.set_version(table.version());
        owner.tables.insert(Owned { table, entry: entry.clone() });
        self.shared.directory.insert(entry.clone());
        Ok((entry, sequence))
    }

    fn log_columns(&self, table: &Table, columns: &[ColumnDef]) -> Result<Sequence, String> {
        self.log.append(&Record::AddColumns {
            table: table.id(),
            version: table.schema().version(),
            columns: Columns::Defs(columns),
        })
    }

    /// Adds columns that do not contradict the table. If the log takes none now the table stays as it is.
    fn add_columns(&self, entry: &TableEntry, columns: &[ColumnDef]) -> Result<(), String> {
        self.log.check()?;
        let mut owner = self.owner.borrow_mut();
        let logged = owner.tables.change(entry.id, |owned| {
            owned.table.add_columns(columns);
            let logged = self.log_columns(&owned.table, columns);
            owned.entry.set_schema(owned.table.schema().clone());
            owned.entry.set_version(owned.table.version());
            logged
        });
        logged.unwrap_or_else(|| Err("the table was dropped".to_owned())).map(|_| ())
    }

    /// `Ensure`: may these columns be added? Adds them if so.
    pub fn ensure(&self, db: &Arc<str>, table: &Arc<str>, columns: &[ColumnDef]) -> Result<(), String> {
        if let Some(reason) = self.refuses() {
            return Err(reason);
        }
        let entry = self.entry_for(db, table).map_err(|error| error.to_string())?;
        let check = {
            let owner = self.owner.borrow();
            let Some(owned) = owner.tables.get(entry.id) else { return Err("the table was dropped".into()) };
            owned.table.check(columns.iter().map(|c| (c.name.as_ref(), c.kind)))
        };
        if !check.fits() {
            return Err("a column of this table has another type".to_owned());
        }
        if check.new.is_empty() { Ok(()) } else { self.add_columns(&entry, &check.new) }
    }

    /// Makes the batch fit the table: adds what is new, leaves out the lines that contradict.
    fn fit(
        &self,
        db: &str,
        entry: &Arc<TableEntry>,
        batch: PendingBatch,
        options: WriteOptions,
    ) -> Result<Fitted, Verdict> {
        let schema = entry.schema();
        if schema.has_own_time() {
            let text = format!(
                "table '{0}' takes no rows: it was made with a column 'time' of its own, so that it cannot be read; delete it: saltus \
                 delete table -d {1} '{0}'",
                entry.name, entry.db
            );
            return Err(refused(&batch, TableError::Limit(text), options));
        }
        let known = batch.schema.as_ref().is_some_and(|s| Arc::ptr_eq(s, &schema));
        if known && new_columns(&batch).is_empty() {
            return Ok(Fitted { batch, rejected: Vec::new(), rejected_count: 0 });
        }
        let check = self
            .owner
            .borrow()
            .tables
            .get(entry.id)
            .map(|owned| owned.table.check(batch.columns.iter().map(|c| (c.name.as_ref(), c.kind))));
        let check = check.ok_or_else(|| Verdict::Unavailable("the table was dropped".into()))?;
        let fitted = if check.fits() {
            Fitted { batch, rejected: Vec::new(), rejected_count: 0 }
        } else {
            self.parse_again(db, &schema, batch, options)?
        };
        let missing: Vec<ColumnDef> = fitted
            .batch
            .columns
            .iter()
            .filter(|c| schema.position(&c.name).is_none())
            .map(|c| ColumnDef { name: c.name.clone(), kind: c.kind })
            .collect();
        if !missing.is_empty() {
            self.add_columns(entry, &missing).map_err(Verdict::Unavailable)?;
        }
        Ok(fitted)
    }

    /// The lines once more, with the owner's schema as the truth: verdicts by line number.
    fn parse_again(
        &self,
        db: &str,
        schema: &Arc<TableSchema>,
        batch: PendingBatch,
        options: WriteOptions,
    ) -> Result<Fitted, Verdict> {
        let mut parsed = self.parser.borrow_mut().parse(
            db,
            &batch.text,
            batch.precision,
            options.accept_partial,
            &Own(batch.table.clone(), schema.clone()),
        );
        for error in &mut parsed.rejected {
            error.line_number = batch.lines.line(error.line_number as usize - 1);
        }
        if !options.accept_partial
            && let Some(error) = parsed.rejected.first()
        {
            return Err(Verdict::Refused(error.clone()));
        }
        match parsed.batches.pop() {
            Some(mut again) => {
                again.lines = LineNumbers::Listed(
                    (0..again.rows()).map(|row| batch.lines.line(again.lines.line(row) as usize - 1)).collect(),
                );
                Ok(Fitted { batch: again, rejected: parsed.rejected, rejected_count: parsed.rejected_count })
            }
            None => Err(Verdict::Taken { rows: 0, rejected: parsed.rejected, rejected_count: parsed.rejected_count }),
        }
    }

    /// `CreateTable`: answers when it is durable.
    pub fn create_table(
        &self,
        db: Arc<str>,
        name: Arc<str>,
        columns: Vec<ColumnDef>,
        reply: oneshot::Sender<Result<Arc<TableEntry>, TableError>>,
    ) {
        if let Some(reason) = self.refuses() {
            drop(reply.send(Err(TableError::Unavailable(reason))));
            return;
        }
        if let Err(error) = check_new_table(&name, &columns) {
            drop(reply.send(Err(error.into())));
            return;
        }
        if self.shared.directory.get(&db, &name).is_some() {
            drop(reply.send(Err(TableError::Exists { db: db.to_string(), table: name.to_string() })));
            return;
        }
        match self.make_table(db, name, &columns) {
            Ok((entry, sequence)) => self.wait_for(sequence, Wait::Created { entry, reply: Some(reply) }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// `DropTable`: answers when it is durable.
    pub fn drop_table(&self, db: &str, name: &str, reply: oneshot::Sender<Result<(), TableError>>) {
        let Some(entry) = self.shared.directory.get(db, name) else {
            drop(reply.send(Err(TableError::NotFound(name.to_owned()))));
            return;
        };
        match self.log.append(&Record::DropTable { table: entry.id }) {
            Ok(sequence) => {
                self.shared.directory.remove(&entry);
                self.owner.borrow_mut().tables.remove(entry.id);
                self.wait_for(sequence, Wait::Dropped { reply: Some(reply) });
            }
            Err(reason) => drop(reply.send(Err(TableError::Unavailable(reason)))),
        }
    }

    fn wait_for(&self, sequence: Sequence, what: Wait) {
        self.owner.borrow_mut().put_in_line(sequence, what, None);
    }

    /// `Snapshot`: all rows of a table, published for the next reader too.
    pub fn publish(&self, table: TableId) -> Option<Arc<TableSnapshot>> {
        self.owner.borrow_mut().tables.change(table, |owned| {
            let snapshot = Arc::new(owned.table.snapshot());
            owned.entry.publish(snapshot.clone());
            snapshot
        })
    }
}

/// Answers, unless that was done.
fn answer<T>(reply: Option<oneshot::Sender<T>>, with: T) {
    if let Some(reply) = reply {
        drop(reply.send(with));
    }
}

/// A write that is in the log.
struct Taken {
    table: TableId,
    sequence: Sequence,
    batch: Arc<Batch>,
}

/// What a writer hears whose table cannot be made.
fn refused(batch: &PendingBatch, error: TableError, options: WriteOptions) -> Verdict {
    let TableError::Limit(message) = error else { return Verdict::Unavailable(error.to_string()) };
    let (mut from, mut errors) = (0, Vec::new());
    while from < batch.text.len() && errors.len() < batch.rows().min(LINE_ERRORS_REPORTED_MAX) {
        let line = line_at(&batch.text, from);
        if line.counts {
            errors.push(LineError {
                line_number: batch.lines.line(errors.len()),
                message: message.clone(),
                original_line: String::from_utf8_lossy(&batch.text[from..line.end]).into_owned(),
                by: RefusedBy::Table,
            });
        }
        from = line.next;
    }
    match errors.first() {
        Some(first) if !options.accept_partial => Verdict::Refused(first.clone()),
        _ => Verdict::Taken { rows: 0, rejected_count: batch.rows(), rejected: errors },
    }
}
