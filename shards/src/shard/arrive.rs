//! A write on the core that received it: parse, reserve room at all owners, send, gather the verdicts.
//!
//! 1. Parse with the schemas that the owners have published.
//! 2. A write that must be taken whole, has several owners and brings new columns asks every owner first (`Ensure`), so that
//!    a conflict at one cannot leave rows at another. The price: columns may have been added by a write that is then
//!    refused.
//! 3. Reserve room at every owner; if one has none, give all back: 503, or wait where the engine itself writes.
//! 4. Send (or apply here), and wait for every verdict.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use saltus_core::batch::PendingBatch;
use saltus_core::ids::ShardId;
use saltus_core::limits::LINE_ERRORS_REPORTED_MAX;
use saltus_core::line_protocol::{LineError, LineParser, ParsedWrite, Precision, RefusedBy, SchemaSource};
use saltus_core::schema::{ColumnDef, TableSchema};

use crate::api::{WriteOutcome, WriteRequest};
use crate::directory::Directory;
use crate::mailbox;

use super::{Delivery, Message, Shard, Verdict, WriteOptions};

/// When a client should come again after it found a mailbox full.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the engine's own writes wait between two looks for room.
pub(super) const ROOM_POLL: Duration = Duration::from_micros(500);

/// What to do when an owner has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// A client: refuse, it will come again.
    Refuse,
    /// The engine itself: wait.
    Wait,
}

struct Published<'a> {
    directory: &'a Directory,
    db: &'a str,
}

impl SchemaSource for Published<'_> {
    fn table(&self, table: &str) -> Option<Arc<TableSchema>> {
        self.directory.get(self.db, table).map(|entry| entry.schema())
    }
}

thread_local! {
    /// For looks at writes that are not made yet.
    static LOOKING: RefCell<LineParser> = RefCell::new(LineParser::new());
}

/// Who owns the tables of a write that would be taken as things are.
///
/// # Errors
/// Why it would not be taken.
pub(crate) fn owners_of(directory: &Directory, db: &str, body: &bytes::Bytes) -> Result<Vec<ShardId>, String> {
    let parsed = LOOKING
        .with_borrow_mut(|parser| parser.parse(db, body, Precision::Nanosecond, false, &Published { directory, db }));
    if let Some(error) = parsed.rejected.first() {
        return Err(error.refusal());
    }
    Ok(parsed.batches.iter().map(|batch| directory.placement().owner(db, &batch.table)).collect())
}

pub(super) type Rooms = Vec<(ShardId, mailbox::Room<Message>)>;

impl Shard {
    /// Parses, routes, logs and applies a write.
    pub async fn write(self: &Rc<Self>, request: WriteRequest, depth: u8, room: Room) -> WriteOutcome {
        let options = WriteOptions::of(&request, depth);
        let parsed = match self.agreed(&request, options).await {
            Ok(parsed) => parsed,
            Err(outcome) => return outcome,
        };
        let rooms = match self.reserve(&request.db, &parsed.batches, room).await {
            Ok(rooms) => rooms,
            Err(outcome) => return outcome,
        };
        let replies = self.send(&request.db, parsed.batches, rooms, options);
        self.gather(replies, parsed.rejected, parsed.rejected_count, &mut Vec::new()).await
    }

    /// Parses a write, and sees to it that its owners agree on new columns. A request that is parsed with `accept_partial` while
    /// the options have it not is refused by what a table refuses only.
    pub(super) async fn agreed(
        &self,
        request: &WriteRequest,
        options: WriteOptions,
    ) -> Result<ParsedWrite, WriteOutcome> {
        let mut parsed = self.parse(request);
        if let Some(outcome) = self.without_batches(&mut parsed, request, options) {
            return Err(outcome);
        }
        if !options.accept_partial && needs_agreement(&parsed.batches, |b| self.owner_of(&request.db, b)) {
            if let Err(reason) = self.agree(&request.db, &parsed.batches).await {
                return Err(WriteOutcome::Unavailable { reason });
            }
            parsed = self.parse(request);
            if let Some(outcome) = self.without_batches(&mut parsed, request, options) {
                return Err(outcome);
            }
        }
        Ok(parsed)
    }

    fn parse(&self, request: &WriteRequest) -> ParsedWrite {
        let schemas = Published { directory: &self.shared.directory, db: &request.db };
        let parsed = self.parser.borrow_mut().parse(
            &request.db,
            &request.body,
            request.precision,
            request.accept_partial,
            &schemas,
        );
        self.counters.bytes_parsed.add(request.body.len() as u64);
        parsed
    }

    /// The outcome of a write in which no line is left to be sent.
    fn without_batches(
        &self,
        parsed: &mut ParsedWrite,
        request: &WriteRequest,
        options: WriteOptions,
    ) -> Option<WriteOutcome> {
        self.counters.lines_rejected.add(parsed.rejected_count as u64);
        if parsed.line_count == 0 && parsed.rejected_count == 0 {
            return Some(WriteOutcome::Empty);
        }
        if !options.accept_partial {
            let refuses = |line: &LineError| !request.accept_partial || line.by == RefusedBy::Table;
            if let Some(error) = parsed.rejected.iter().find(|line| refuses(line)) {
                return Some(WriteOutcome::Rejected(error.clone()));
            }
        }
        if parsed.batches.is_empty() {
            let rejected = std::mem::take(&mut parsed.rejected);
            return Some(WriteOutcome::Partial { rows: 0, rejected, rejected_count: parsed.rejected_count });
        }
        None
    }

    pub(super) fn owner_of(&self, db: &str, batch: &PendingBatch) -> ShardId {
        self.shared.directory.placement().owner(db, &batch.table)
    }

    /// Asks every owner whether it can take the new columns, and has them added.
    async fn agree(&self, db: &Arc<str>, batches: &[PendingBatch]) -> Result<(), String> {
        let mut replies = Vec::new();
        for batch in batches {
            let columns = new_columns(batch);
            let owner = self.owner_of(db, batch);
            if owner == self.id {
                // A conflict shows when the request is parsed again with what the owner has.
                drop(self.ensure(db, &batch.table, &columns));
                continue;
            }
            let (reply, answer) = oneshot::channel();
            let (db, table) = (db.clone(), batch.table.clone());
            let room = self.shared.mailbox(owner).reserve(0).ok_or_else(|| full(owner))?;
            room.put(|_| Message::Ensure { db, table, columns, reply });
            replies.push(answer);
        }
        for answer in replies {
            drop(answer.await.map_err(|_| "the owner of a table went away".to_owned())?);
        }
        Ok(())
    }

    pub(super) async fn reserve(&self, db: &str, batches: &[PendingBatch], wait: Room) -> Result<Rooms, WriteOutcome> {
        loop {
            match self.try_reserve(db, batches) {
                Ok(rooms) => return Ok(rooms),
                Err(owner) if wait == Room::Refuse => {
                    self.counters.writes_refused_full.add(1);
                    return Err(WriteOutcome::Busy { what: full(owner), retry_after: RETRY_AFTER });
                }
                Err(_) => crate::io::net::sleep(ROOM_POLL).await,
            }
        }
    }

    /// Room at every owner, or none at any.
    pub(super) fn try_reserve(&self, db: &str, batches: &[PendingBatch]) -> Result<Rooms, ShardId> {
        batches
            .iter()
            .map(|batch| {
                let owner = self.owner_of(db, batch);
                self.shared.mailbox(owner).reserve(batch.bytes()).map(|room| (owner, room)).ok_or(owner)
            })
            .collect()
    }

    pub(super) fn send(
        self: &Rc<Self>,
        db: &Arc<str>,
        batches: Vec<PendingBatch>,
        rooms: Rooms,
        options: WriteOptions,
    ) -> Vec<oneshot::Receiver<Verdict>> {
        let mut replies = Vec::with_capacity(rooms.len());
        for (batch, (owner, room)) in batches.into_iter().zip(rooms) {
            let (reply, answer) = oneshot::channel();
            replies.push(answer);
            let db = db.clone();
            if owner == self.id {
                let held = room.keep_bytes();
                self.accept(Delivery { db, batch, options, reply, held });
            } else {
                self.counters.batches_forwarded.add(1);
                room.put(|held| Message::Deliver(Box::new(Delivery { db, batch, options, reply, held })));
            }
        }
        replies
    }

    /// Waits for all verdicts. What its owner turned away because of a full disk comes back in `turned_away`, and is not in the
    /// outcome; that happens only to writes that wait for it.
    pub(super) async fn gather(
        &self,
        replies: Vec<oneshot::Receiver<Verdict>>,
        mut rejected: Vec<LineError>,
        mut rejected_count: usize,
        turned_away: &mut Vec<PendingBatch>,
    ) -> WriteOutcome {
        let mut rows = 0;
        let mut unavailable = None;
        let mut refused: Option<LineError> = None;
        for reply in replies {
            match reply.await {
                Ok(Verdict::Taken { rows: taken, rejected: more, rejected_count: count }) => {
                    rows += taken;
                    rejected.extend(more);
                    rejected_count += count;
                }
                Ok(Verdict::Refused(error)) => refused = Some(error),
                Ok(Verdict::Unavailable(reason)) => unavailable = Some(reason),
                Ok(Verdict::NoSpace(batch)) => turned_away.push(*batch),
                Err(_) => unavailable = Some("the owner of a table went away before it answered".to_owned()),
            }
        }
        if let Some(reason) = unavailable {
            return WriteOutcome::Unavailable { reason };
        }
        if let Some(error) = refused {
            return WriteOutcome::Rejected(error);
        }
        if rejected_count == 0 {
            return WriteOutcome::Written { rows };
        }
        rejected.sort_by_key(|error| error.line_number);
        rejected.truncate(LINE_ERRORS_REPORTED_MAX);
        WriteOutcome::Partial { rows, rejected, rejected_count }
    }
}

fn full(owner: ShardId) -> String {
    format!("the mailbox of shard {owner} is full")
}

/// The columns that the batch's schema does not have.
pub(super) fn new_columns(batch: &PendingBatch) -> Vec<ColumnDef> {
    batch
        .columns
        .iter()
        .filter(|column| batch.schema.as_ref().is_none_or(|schema| schema.position(&column.name).is_none()))
        .map(|column| ColumnDef { name: column.name.clone(), kind: column.kind })
        .collect()
}

/// Whether the parts of a write could get different verdicts.
fn needs_agreement(batches: &[PendingBatch], owner: impl Fn(&PendingBatch) -> ShardId) -> bool {
    batches.len() > 1
        && batches.iter().any(|b| owner(b) != owner(&batches[0]) || b.table != batches[0].table)
        && batches.iter().any(|b| !new_columns(b).is_empty())
}
