//! What a shard pays for its log: records into a frame, the frame closed, summed and handed over. The file is memory; what the
//! system would do with it is not in the figure, and neither is the begin of a log, whose first segments are small: each run is the
//! second of its log.

use std::rc::Rc;

use bytes::Bytes;
use futures_lite::future::block_on;
use saltus_core::ids::{Epoch, ShardId, Stream, TableId};
use saltus_core::line_protocol::Precision;
use saltus_shards::io::memory::MemoryDir;
use saltus_shards::wal::{Record, WalCommitter, WalOptions, WalWriter, open_stream};

use super::{Measured, Size, warm};
use crate::tsbs::CpuOnly;

/// Rows of a large body.
pub(super) const ROWS: usize = 5000;
/// Records of one row that share a frame.
pub(super) const SINGLE: usize = 200;
/// Bytes of a segment: room for one large frame.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

struct Log {
    bodies: Vec<Bytes>,
    halves: Option<(WalWriter<MemoryDir>, WalCommitter<MemoryDir>)>,
}

impl Measured for Log {
    fn reset(&mut self) {
        let stream = Stream { epoch: Epoch(1), shard: ShardId(0) };
        let options = WalOptions { segment_bytes: SEGMENT_BYTES, ..WalOptions::new(stream, 1, 7) };
        self.halves = Some(block_on(open_stream(Rc::new(MemoryDir::default()), options)).expect("memory takes it"));
        self.run();
    }

    fn run(&mut self) -> u64 {
        let (writer, committer) = self.halves.as_mut().expect("reset comes before run");
        for text in &self.bodies {
            let record = Record::Write {
                table: TableId(1),
                schema_version: 1,
                parser_version: 1,
                precision: Precision::Nanosecond,
                base_time_ns: 0,
                depth: 0,
                text,
            };
            writer.append(&record).expect("the log is well");
        }
        let mut round = writer.take_round().expect("records wait");
        block_on(committer.commit(&mut round)).expect("memory takes it").frame_bytes as u64
    }
}

/// The lines of one large body, in a frame of their own.
pub(super) fn bulk(size: Size) -> Box<dyn Measured> {
    let body = CpuOnly::new(4000, 1).body(size.of(ROWS)).into();
    warm(Log { bodies: vec![body], halves: None }, 2)
}

/// Many writes of one row in one frame.
pub(super) fn single_rows(size: Size) -> Box<dyn Measured> {
    let mut source = CpuOnly::new(4000, 1);
    let bodies = (0..size.of(SINGLE)).map(|_| source.body(1).into()).collect();
    warm(Log { bodies, halves: None }, 2)
}
