//! The bytes of the log: segment headers, frames and records. `docs/format.md` draws them.
//!
//! **Invariants**
//! - All numbers are little endian. Frames begin at multiples of [`WAL_ALIGN`] and are padded with zeros to the next.
//! - A frame is valid only at the offset, in the segment and in the stream that it was made for: all three are in its
//!   header and under its checksum. Bytes that stayed behind in a reused block or were written to a wrong place are
//!   therefore never taken for a frame.
//! - Decoding trusts no length: each is compared with what is there before it is used, and nothing is allocated.
//! - Tags and codes are stable for ever. A tag that is not known is an error, never skipped: the reader would
//!   otherwise drop what a newer writer found worth keeping.

use saltus_core::ids::{Epoch, Sequence, ShardId, Stream, TableId, TriggerId};
use saltus_core::limits::{DB_NAME_BYTES_MAX, NAME_BYTES_MAX, WAL_ALIGN, WAL_RECORD_BYTES_MAX};
use saltus_core::line_protocol::Precision;
use saltus_core::schedule::Mark;
use saltus_core::schema::{ColumnDef, ColumnKind};

/// First bytes of a segment file, `SLTSWAL\0`.
pub const SEGMENT_MAGIC: u64 = u64::from_le_bytes(*b"SLTSWAL\0");
/// First bytes of a frame, `SWFR`.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"SWFR");
/// The version of everything in this file.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a frame before its records.
pub const FRAME_HEADER_BYTES: usize = 48;
/// Bytes of the block that opens a segment.
pub const SEGMENT_HEADER_BYTES: usize = WAL_ALIGN;
/// Bytes of a segment's header that say something; the rest of the block is zero.
const SEGMENT_HEADER_USED: usize = 40;
/// Bytes of a record before its body: tag and body length.
pub const RECORD_HEADER_BYTES: usize = 5;

/// Tag of [`Record::Write`].
const TAG_WRITE: u8 = 1;
/// Tag of [`Record::CreateTable`].
const TAG_CREATE_TABLE: u8 = 2;
/// Tag of [`Record::AddColumns`].
const TAG_ADD_COLUMNS: u8 = 3;
/// Tag of [`Record::DropTable`].
const TAG_DROP_TABLE: u8 = 4;
/// Tag of [`Record::Write`] for a plugin's output.
const TAG_WRITE_OF_PLUGIN: u8 = 5;
/// Tag of [`Record::Cursor`].
const TAG_CURSOR: u8 = 16;
/// Tag of [`Record::State`].
const TAG_STATE: u8 = 17;
/// Tag of [`Record::DeadLetter`].
const TAG_DEAD_LETTER: u8 = 18;
/// Tag of a [`Record::TriggerBegin`] that does not say by which specification.
const TAG_TRIGGER_BEGIN_BY_ANY: u8 = 19;
/// Tag of [`Record::TriggerEnd`].
const TAG_TRIGGER_END: u8 = 20;
/// Tag of [`Record::DeadLetterEnd`].
const TAG_DEAD_LETTER_END: u8 = 21;
/// Tag of [`Record::ScheduleMark`].
const TAG_SCHEDULE_MARK: u8 = 22;
/// Tag of [`Record::StateEnd`].
const TAG_STATE_END: u8 = 23;
/// Tag of [`Record::TriggerBegin`].
const TAG_TRIGGER_BEGIN: u8 = 24;
/// Tag of [`Record::TriggerLeave`].
const TAG_TRIGGER_LEAVE: u8 = 25;
/// Body bytes of a write record before its text.
const WRITE_FIXED_BYTES: usize = 8 + 4 + 1 + 1 + 8;

/// Stands for no time in [`Record::ScheduleMark`].
const NEVER_RUN: i64 = i64::MIN;

const _: () = assert!(WAL_RECORD_BYTES_MAX + FRAME_HEADER_BYTES + WAL_ALIGN < u32::MAX as usize, "lengths are u32");
const _: () = assert!(NAME_BYTES_MAX <= u16::MAX as usize, "lengths of names are u16");
const _: () = assert!(DB_NAME_BYTES_MAX <= u16::MAX as usize, "lengths of database names are u16");
const _: () = assert!(FRAME_HEADER_BYTES < WAL_ALIGN, "a frame's header lies in one block");

/// What can be written in the log; borrowed from the caller when it is encoded, from the file when it is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record<'a> {
    /// The accepted lines of one body for one table.
    Write {
        /// The table, with its generation.
        table: TableId,
        /// The schema version the lines were accepted with.
        schema_version: u32,
        /// The version of the parser that accepted them.
        parser_version: u8,
        /// How the timestamps in `text` are to be read.
        precision: Precision,
        /// Nanoseconds since 1970 that rows without a timestamp got.
        base_time_ns: i64,
        /// Plugin runs between the client's write and this one; 0 for the client's.
        depth: u8,
        /// Line protocol.
        text: &'a [u8],
    },
    /// A table was created, without columns.
    CreateTable {
        /// Its new identity.
        table: TableId,
        /// Its database.
        db: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Columns were added behind those that a table has.
    AddColumns {
        /// The table.
        table: TableId,
        /// The schema version that results.
        version: u32,
        /// The new columns in order.
        columns: Columns<'a>,
    },
    /// A table was dropped with all its rows.
    DropTable {
        /// The table.
        table: TableId,
    },
    /// A trigger has finished every event of a stream up to here.
    Cursor {
        /// The trigger.
        trigger: TriggerId,
        /// The stream that the events are of; the record may be in another.
        stream: Stream,
        /// The last event that is finished, or beyond it.
        sequence: Sequence,
    },
    /// How far a schedule trigger has come; of several the one that was written last counts.
    ScheduleMark {
        /// The trigger.
        trigger: TriggerId,
        /// Where it is.
        mark: Mark,
    },
    /// From here on a trigger sees this stream.
    TriggerBegin {
        /// The trigger.
        trigger: TriggerId,
        /// The specification that tells which writes are for it; empty in logs of older versions.
        spec: &'a str,
    },
    /// From here on a trigger does not see this stream; what it has seen and not finished is still for it.
    TriggerLeave {
        /// The trigger.
        trigger: TriggerId,
    },
    /// From here on a trigger does not see this stream, and what it has not finished is not for it any more.
    TriggerEnd {
        /// The trigger.
        trigger: TriggerId,
    },
    /// Events that a trigger did not take.
    DeadLetter {
        /// The trigger.
        trigger: TriggerId,
        /// [`crate::dead_letters::Account`] as JSON.
        account: &'a [u8],
    },
    /// What a run has changed of its trigger's state.
    State {
        /// The trigger.
        trigger: TriggerId,
        /// [`crate::states::Commit`]
        body: &'a [u8],
    },
    /// A trigger was deleted, and its state with it.
    StateEnd {
        /// The trigger.
        trigger: TriggerId,
    },
    /// A dead letter was replayed or discarded.
    DeadLetterEnd {
        /// Where the dead letter is.
        stream: Stream,
        /// And its place there.
        sequence: Sequence,
    },
}

/// The columns of an [`Record::AddColumns`]: as the catalog has them or as the log has them.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a> {
    /// To be encoded.
    Defs(&'a [ColumnDef]),
    /// Decoded and checked: every kind is known, every name is UTF-8.
    Encoded(EncodedColumns<'a>),
}

/// Columns as bytes of the log that [`decode_record`] has checked.
#[derive(Clone, Copy, Debug)]
pub struct EncodedColumns<'a> {
    count: u32,
    bytes: &'a [u8],
}

impl<'a> Columns<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Columns::Defs(defs) => defs.len(),
            Columns::Encoded(encoded) => encoded.count as usize,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Kind and name of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ColumnKind, &'a str)> + use<'a> {
        let (defs, bytes) = match *self {
            Columns::Defs(defs) => (defs, &[][..]),
            Columns::Encoded(encoded) => (&[][..], encoded.bytes),
        };
        let mut cursor = Cursor { bytes };
        defs.iter().map(|c| (c.kind, c.name.as_ref())).chain(std::iter::from_fn(move || cursor.column().ok()))
    }
}

impl PartialEq for Columns<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Why the records of a valid frame cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A tag of a newer version.
    #[error("unknown record tag {tag}")]
    UnknownTag {
        /// The tag.
        tag: u8,
    },
    /// A length that leads beyond what is there, or leaves something over.
    #[error("{what} ends too early or too late")]
    Length {
        /// What was read.
        what: &'static str,
    },
    /// A byte that is none of those that are possible.
    #[error("unknown {what} {value}")]
    Code {
        /// What was read.
        what: &'static str,
        /// The byte.
        value: u8,
    },
    /// A name that is not UTF-8.
    #[error("{what} is not utf-8")]
    Text {
        /// What was read.
        what: &'static str,
    },
}

/// A record that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The whole record, in bytes.
    #[error("record of {bytes} bytes exceeds {bytes_max}")]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A name in it, in bytes.
    #[error("name of {bytes} bytes exceeds {bytes_max}")]
    NameTooLong {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

impl Record<'_> {
    /// Bytes that [`Record::encode`] writes.
    ///
    /// # Errors
    /// What is too large to be read again.
    pub fn encoded_len(&self) -> Result<usize, EncodeError> {
        let body = match self {
            Record::Write { depth, text, .. } => WRITE_FIXED_BYTES + usize::from(*depth > 0) + text.len(),
            Record::CreateTable { db, name, .. } => {
                check_name(db, DB_NAME_BYTES_MAX)?;
                check_name(name, NAME_BYTES_MAX)?;
                8 + 2 + db.len() + 2 + name.len()
            }
            Record::AddColumns { columns, .. } => {
                let mut bytes = 8 + 4 + 4;
                for (_, name) in columns.iter() {
                    check_name(name, NAME_BYTES_MAX)?;
                    bytes += 1 + 2 + name.len();
                }
                bytes
            }
            Record::TriggerBegin { spec, .. } => 8 + spec.len(),
            Record::DropTable { .. }
            | Record::TriggerLeave { .. }
            | Record::TriggerEnd { .. }
            | Record::StateEnd { .. } => 8,
            Record::State { body, .. } => 8 + body.len(),
            Record::Cursor { .. } => 8 + 4 + 2 + 8,
            Record::ScheduleMark { .. } => 8 + 8 + 8,
            Record::DeadLetter { account, .. } => 8 + account.len(),
            Record::DeadLetterEnd { .. } => 4 + 2 + 8,
        };
        let bytes = RECORD_HEADER_BYTES + body;
        if bytes > WAL_RECORD_BYTES_MAX {
            return Err(EncodeError::RecordTooLarge { bytes, bytes_max: WAL_RECORD_BYTES_MAX });
        }
        Ok(bytes)
    }

    /// Writes the record to `out`, which is exactly [`Record::encoded_len`] bytes long.
    pub fn encode(&self, out: &mut [u8]) {
        let body = (out.len() - RECORD_HEADER_BYTES) as u32;
        let mut sink = Sink { out };
        sink.put(&[self.tag()]);
        sink.put(&body.to_le_bytes());
        match *self {
            Record::Write { table, schema_version, parser_version, precision, base_time_ns, depth, text } => {
                sink.put(&table.0.to_le_bytes());
                sink.put(&schema_version.to_le_bytes());
                sink.put(&[parser_version, precision_code(precision)]);
                sink.put(&base_time_ns.to_le_bytes());
                if depth > 0 {
                    sink.put(&[depth]);
                }
                sink.put(text);
            }
            Record::CreateTable { table, db, name } => {
                sink.put(&table.0.to_le_bytes());
                sink.put_name(db);
                sink.put_name(name);
            }
            Record::AddColumns { table, version, columns } => {
                sink.put(&table.0.to_le_bytes());
                sink.put(&version.to_le_bytes());
                sink.put(&(columns.len() as u32).to_le_bytes());
                for (kind, name) in columns.iter() {
                    sink.put(&[kind.code()]);
                    sink.put_name(name);
                }
            }
            Record::DropTable { table } => sink.put(&table.0.to_le_bytes()),
            Record::Cursor { trigger, stream, sequence } => {
                sink.put(&trigger.0.to_le_bytes());
                sink.put(&stream.epoch.0.to_le_bytes());
                sink.put(&stream.shard.0.to_le_bytes());
                sink.put(&sequence.0.to_le_bytes());
            }
            Record::TriggerBegin { trigger, spec } => {
                sink.put(&trigger.0.to_le_bytes());
                sink.put(spec.as_bytes());
            }
            Record::TriggerLeave { trigger } | Record::TriggerEnd { trigger } | Record::StateEnd { trigger } => {
                sink.put(&trigger.0.to_le_bytes());
            }
            Record::ScheduleMark { trigger, mark } => {
                sink.put(&trigger.0.to_le_bytes());
                sink.put(&mark.handled_ns.to_le_bytes());
                sink.put(&mark.last_run_ns.unwrap_or(NEVER_RUN).to_le_bytes());
            }
            Record::State { trigger, body } => {
                sink.put(&trigger.0.to_le_bytes());
                sink.put(body);
            }
            Record::DeadLetter { trigger, account } => {
                sink.put(&trigger.0.to_le_bytes());
                sink.put(account);
            }
            Record::DeadLetterEnd { stream, sequence } => {
                sink.put(&stream.epoch.0.to_le_bytes());
                sink.put(&stream.shard.0.to_le_bytes());
                sink.put(&sequence.0.to_le_bytes());
            }
        }
        debug_assert!(sink.out.is_empty(), "encoded_len and encode agree");
    }

    fn tag(&self) -> u8 {
        match self {
            Record::Write { depth: 0, .. } => TAG_WRITE,
            Record::Write { .. } => TAG_WRITE_OF_PLUGIN,
            Record::CreateTable { .. } => TAG_CREATE_TABLE,
            Record::AddColumns { .. } => TAG_ADD_COLUMNS,
            Record::DropTable { .. } => TAG_DROP_TABLE,
            Record::Cursor { .. } => TAG_CURSOR,
            Record::ScheduleMark { .. } => TAG_SCHEDULE_MARK,
            Record::TriggerBegin { .. } => TAG_TRIGGER_BEGIN,
            Record::TriggerLeave { .. } => TAG_TRIGGER_LEAVE,
            Record::TriggerEnd { .. } => TAG_TRIGGER_END,
            Record::DeadLetter { .. } => TAG_DEAD_LETTER,
            Record::DeadLetterEnd { .. } => TAG_DEAD_LETTER_END,
            Record::State { .. } => TAG_STATE,
            Record::StateEnd { .. } => TAG_STATE_END,
        }
    }
}

/// The first record of `bytes` and how many bytes it takes.
///
/// # Errors
/// [`FormatError`]; nothing is assumed about `bytes`.
pub fn decode_record(bytes: &[u8]) -> Result<(Record<'_>, usize), FormatError> {
    let mut cursor = Cursor { bytes };
    let tag = cursor.u8("record tag")?;
    let body_len = cursor.u32("record length")? as usize;
    let body = cursor.take(body_len, "record body")?;
    Ok((decode_body(tag, body)?, RECORD_HEADER_BYTES + body_len))
}

fn decode_body(tag: u8, body: &[u8]) -> Result<Record<'_>, FormatError> {
    let mut cursor = Cursor { bytes: body };
    let record = match tag {
        TAG_WRITE | TAG_WRITE_OF_PLUGIN => Record::Write {
            table: cursor.table()?,
            schema_version: cursor.u32("schema version")?,
            parser_version: cursor.u8("parser version")?,
            precision: precision_of(cursor.u8("precision")?)?,
            base_time_ns: cursor.u64("base time")? as i64,
            depth: if tag == TAG_WRITE { 0 } else { cursor.u8("depth")? },
            text: std::mem::take(&mut cursor.bytes),
        },
        TAG_CREATE_TABLE => Record::CreateTable {
            table: cursor.table()?,
            db: cursor.name("database name")?,
            name: cursor.name("table name")?,
        },
        TAG_ADD_COLUMNS => Record::AddColumns {
            table: cursor.table()?,
            version: cursor.u32("schema version")?,
            columns: cursor.columns()?,
        },
        TAG_DROP_TABLE => Record::DropTable { table: cursor.table()? },
        TAG_CURSOR => Record::Cursor {
            trigger: cursor.trigger()?,
            stream: cursor.stream()?,
            sequence: Sequence(cursor.u64("sequence")?),
        },
        TAG_SCHEDULE_MARK => {
            let trigger = cursor.trigger()?;
            let (handled_ns, last) = (cursor.u64("handled time")? as i64, cursor.u64("last run")? as i64);
            let mark = Mark { handled_ns, last_run_ns: (last != NEVER_RUN).then_some(last) };
            Record::ScheduleMark { trigger, mark }
        }
        TAG_DEAD_LETTER => {
            Record::DeadLetter { trigger: cursor.trigger()?, account: std::mem::take(&mut cursor.bytes) }
        }
        TAG_DEAD_LETTER_END => {
            Record::DeadLetterEnd { stream: cursor.stream()?, sequence: Sequence(cursor.u64("sequence")?) }
        }
        TAG_STATE => Record::State { trigger: cursor.trigger()?, body: std::mem::take(&mut cursor.bytes) },
        TAG_STATE_END => Record::StateEnd { trigger: cursor.trigger()? },
        TAG_TRIGGER_BEGIN_BY_ANY => Record::TriggerBegin { trigger: cursor.trigger()?, spec: "" },
        TAG_TRIGGER_BEGIN => {
            let (trigger, spec) = (cursor.trigger()?, std::mem::take(&mut cursor.bytes));
            let spec = std::str::from_utf8(spec).map_err(|_| FormatError::Text { what: "trigger specification" })?;
            Record::TriggerBegin { trigger, spec }
        }
        TAG_TRIGGER_LEAVE => Record::TriggerLeave { trigger: cursor.trigger()? },
        TAG_TRIGGER_END => Record::TriggerEnd { trigger: cursor.trigger()? },
        tag => return Err(FormatError::UnknownTag { tag }),
    };
    if !cursor.bytes.is_empty() {
        return Err(FormatError::Length { what: "record body" });
    }
    Ok(record)
}

/// The block that opens a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Never used again for another segment; every frame repeats it.
    pub segment_id: u64,
    /// Whose segment it is.
    pub stream: Stream,
    /// Its number in the stream; 1 is the first.
    pub number: u32,
    /// Shards in this life of the process.
    pub shards: u16,
    /// Of which data directory it is ([`super::manifest::fingerprint`]); 0 in segments of older versions.
    pub directory: u32,
}

/// Why a block is no segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentHeaderError {
    /// No header, or a damaged one.
    Invalid,
    /// A sound header of another format.
    Version(u32),
}

impl SegmentHeader {
    /// Writes the header to the first [`SEGMENT_HEADER_BYTES`] of `out` and zeros behind it.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..SEGMENT_HEADER_BYTES];
        out.fill(0);
        let mut sink = Sink { out };
        sink.put(&SEGMENT_MAGIC.to_le_bytes());
        sink.put(&[0; 4]);
        sink.put(&FORMAT_VERSION.to_le_bytes());
        sink.put(&self.segment_id.to_le_bytes());
        sink.put(&self.stream.epoch.0.to_le_bytes());
        sink.put(&self.stream.shard.0.to_le_bytes());
        sink.put(&self.shards.to_le_bytes());
        sink.put(&self.number.to_le_bytes());
        sink.put(&self.directory.to_le_bytes());
        let crc = crc32c::crc32c(&out_used(out)[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads what [`SegmentHeader::encode`] wrote.
    ///
    /// # Errors
    /// [`SegmentHeaderError`]; nothing is assumed about `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentHeaderError> {
        let Some(used) = bytes.get(..SEGMENT_HEADER_USED) else { return Err(SegmentHeaderError::Invalid) };
        if u64_at(used, 0) != SEGMENT_MAGIC || u32_at(used, 8) != crc32c::crc32c(&used[12..]) {
            return Err(SegmentHeaderError::Invalid);
        }
        match u32_at(used, 12) {
            FORMAT_VERSION => Ok(SegmentHeader {
                segment_id: u64_at(used, 16),
                stream: Stream { epoch: Epoch(u32_at(used, 24)), shard: ShardId(u16_at(used, 28)) },
                shards: u16_at(used, 30),
                number: u32_at(used, 32),
                directory: u32_at(used, 36),
            }),
            version => Err(SegmentHeaderError::Version(version)),
        }
    }
}

fn out_used(out: &[u8]) -> &[u8] {
    &out[..SEGMENT_HEADER_USED]
}

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of its records, without header and padding.
    pub payload_bytes: u32,
    /// How many records.
    pub records: u32,
    /// The segment that it is in.
    pub segment_id: u64,
    /// The stream that it is in.
    pub stream: Stream,
    /// The sequence of its first record.
    pub first_sequence: Sequence,
    /// Where in the segment it begins, in bytes.
    pub offset: u64,
}

impl FrameHeader {
    /// Writes header, checksum and padding around the records that already lie in `frame` behind
    /// [`FRAME_HEADER_BYTES`]. `frame` is as long as [`frame_bytes`] says.
    pub fn seal(&self, frame: &mut [u8]) {
        let end = FRAME_HEADER_BYTES + self.payload_bytes as usize;
        debug_assert_eq!(frame.len(), frame_bytes(self.payload_bytes as usize));
        frame[end..].fill(0);
        let mut sink = Sink { out: &mut frame[..FRAME_HEADER_BYTES] };
        sink.put(&FRAME_MAGIC.to_le_bytes());
        sink.put(&[0; 4]);
        sink.put(&self.payload_bytes.to_le_bytes());
        sink.put(&self.records.to_le_bytes());
        sink.put(&self.segment_id.to_le_bytes());
        sink.put(&self.stream.epoch.0.to_le_bytes());
        sink.put(&self.stream.shard.0.to_le_bytes());
        sink.put(&[0; 2]);
        sink.put(&self.first_sequence.0.to_le_bytes());
        sink.put(&self.offset.to_le_bytes());
        let crc = crc32c::crc32c(&frame[8..end]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The frame that begins at byte `offset` of `segment` and its records, if there is a sound one that was made for
    /// this very place. Its segment id and sequence are for the caller to judge.
    pub fn decode(segment: &[u8], offset: usize) -> Option<(Self, &[u8])> {
        Self::decode_at(segment.get(offset..)?, offset as u64)
    }

    /// [`FrameHeader::decode`] for bytes that begin with the frame and were read at byte `offset` of their segment.
    pub fn decode_at(bytes: &[u8], offset: u64) -> Option<(Self, &[u8])> {
        let head = bytes.get(..FRAME_HEADER_BYTES)?;
        let header = Self::peek(head, offset)?;
        let end = FRAME_HEADER_BYTES.checked_add(header.payload_bytes as usize)?;
        if u32_at(head, 4) != crc32c::crc32c(bytes.get(8..end)?) {
            return None;
        }
        Some((header, &bytes[FRAME_HEADER_BYTES..end]))
    }

    /// What the header of a frame at byte `offset` of its segment says, before its checksum is known to be right.
    pub fn peek(head: &[u8], offset: u64) -> Option<Self> {
        if head.len() < FRAME_HEADER_BYTES || u32_at(head, 0) != FRAME_MAGIC {
            return None;
        }
        let header = FrameHeader {
            payload_bytes: u32_at(head, 8),
            records: u32_at(head, 12),
            segment_id: u64_at(head, 16),
            stream: Stream { epoch: Epoch(u32_at(head, 24)), shard: ShardId(u16_at(head, 28)) },
            first_sequence: Sequence(u64_at(head, 32)),
            offset: u64_at(head, 40),
        };
        if header.offset != offset || header.records == 0 {
            return None;
        }
        // A sequence that its own records would carry beyond u64 was never written.
        header.first_sequence.0.checked_add(u64::from(header.records))?;
        (header.first_sequence.0 > 0).then_some(header)
    }

    /// The sequence of its last record.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.first_sequence.0 + u64::from(self.records) - 1)
    }

    /// Bytes of the file that it takes, padding included.
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.payload_bytes as usize)
    }
}

/// Bytes of the file that a frame of so many payload bytes takes.
pub fn frame_bytes(payload_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + payload_bytes).next_multiple_of(WAL_ALIGN)
}

/// One byte for a precision; stable for ever.
fn precision_code(precision: Precision) -> u8 {
    match precision {
        Precision::Auto => 0,
        Precision::Second => 1,
        Precision::Millisecond => 2,
        Precision::Microsecond => 3,
        Precision::Nanosecond => 4,
    }
}

fn precision_of(code: u8) -> Result<Precision, FormatError> {
    Ok(match code {
        0 => Precision::Auto,
        1 => Precision::Second,
        2 => Precision::Millisecond,
        3 => Precision::Microsecond,
        4 => Precision::Nanosecond,
        value => return Err(FormatError::Code { what: "precision", value }),
    })
}

fn check_name(name: &str, bytes_max: usize) -> Result<(), EncodeError> {
    if name.len() > bytes_max {
        return Err(EncodeError::NameTooLong { bytes: name.len(), bytes_max });
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Room that is filled from the front.
struct Sink<'a> {
    out: &'a mut [u8],
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (now, rest) = std::mem::take(&mut self.out).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        self.out = rest;
    }

    fn put_name(&mut self, name: &str) {
        self.put(&(name.len() as u16).to_le_bytes());
        self.put(name.as_bytes());
    }
}

/// Bytes that are eaten from the front, each length checked.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], FormatError> {
        let (now, rest) = self.bytes.split_at_checked(len).ok_or(FormatError::Length { what })?;
        self.bytes = rest;
        Ok(now)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, FormatError> {
        Ok(self.take(1, what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, FormatError> {
        Ok(u16_at(self.take(2, what)?, 0))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, FormatError> {
        Ok(u32_at(self.take(4, what)?, 0))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, FormatError> {
        Ok(u64_at(self.take(8, what)?, 0))
    }

    fn table(&mut self) -> Result<TableId, FormatError> {
        Ok(TableId(self.u64("table id")?))
    }

    fn stream(&mut self) -> Result<Stream, FormatError> {
        Ok(Stream { epoch: Epoch(self.u32("epoch")?), shard: ShardId(self.u16("shard")?) })
    }

    fn trigger(&mut self) -> Result<TriggerId, FormatError> {
        Ok(TriggerId(self.u64("trigger id")?))
    }

    fn name(&mut self, what: &'static str) -> Result<&'a str, FormatError> {
        let len = u16_at(self.take(2, what)?, 0);
        std::str::from_utf8(self.take(usize::from(len), what)?).map_err(|_| FormatError::Text { what })
    }

    fn column(&mut self) -> Result<(ColumnKind, &'a str), FormatError> {
        let value = self.u8("column kind")?;
        let kind = ColumnKind::from_code(value).ok_or(FormatError::Code { what: "column kind", value })?;
        Ok((kind, self.name("column name")?))
    }

    /// Everything that is left, as columns, all of them checked.
    fn columns(&mut self) -> Result<Columns<'a>, FormatError> {
        let count = self.u32("column count")?;
        let bytes = self.bytes;
        for _ in 0..count {
            self.column()?;
        }
        let bytes = &bytes[..bytes.len() - self.bytes.len()];
        Ok(Columns::Encoded(EncodedColumns { count, bytes }))
    }
}
