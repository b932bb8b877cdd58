//! The log on real files: what is committed through the ring is what recovery reads.

use std::path::Path;
use std::rc::Rc;

use glommio::LocalExecutor;
use saltus_core::ids::{Sequence, ShardId, Stream, TableId};

use super::{GlommioDir, WriteMode};
use crate::wal::recovery::stream_dir;
use crate::wal::{Record, RecoveryOptions, WalOptions, lock_data_dir, next_epoch, open_stream, recover};

/// Commits some rounds below `data_dir`, over several segments and with one record that fits none, and reads them again.
fn commit_and_recover(data_dir: &Path) -> WriteMode {
    let lock = lock_data_dir(data_dir).unwrap();
    let stream = Stream { epoch: next_epoch(data_dir, 0).unwrap(), shard: ShardId(3) };
    let sizes = [10, 5000, 0, 100_000, 700_000, 1, 30_000, 60_000, 60_000];
    let texts: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(at, len)| vec![b'a' + at as u8; *len]).collect();
    let written = texts.clone();
    let path = stream_dir(data_dir, stream);
    let mode = LocalExecutor::default().run(async move {
        let dir = Rc::new(GlommioDir::new(&path, None));
        let options = WalOptions { segment_bytes: 256 * 1024, ..WalOptions::new(stream, 4, 42) };
        let (mut writer, mut committer) = open_stream(dir.clone(), options).await.unwrap();
        for (at, text) in written.iter().enumerate() {
            let record = Record::DropTable { table: TableId(at as u64) };
            writer.append(&record).unwrap();
            let last = writer.append(&write_record(text)).unwrap();
            let mut round = writer.take_round().unwrap();
            assert!(writer.take_round().is_none(), "one round is out at a time");
            let committed = committer.commit(&mut round).await.unwrap();
            assert_eq!(committed.last, last);
            if let Some(prepare) = committer.prepare_next() {
                glommio::spawn_local(prepare).detach();
            }
        }
        assert!(committer.segment() > 2);
        dir.mode().expect("files were made")
    });

    let mut texts = texts.into_iter();
    let mut count = 0;
    let report = recover(&lock, RecoveryOptions::default(), &mut |entry| {
        count += 1;
        assert_eq!(entry.sequence, Sequence(count));
        if let Record::Write { text, .. } = entry.record {
            assert!(text == texts.next().unwrap());
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 2 * sizes.len() as u64);
    assert!(report.torn_tails.is_empty() && report.losses.is_empty(), "{report:?}");
    mode
}

fn write_record(text: &[u8]) -> Record<'_> {
    Record::Write {
        table: TableId(7),
        schema_version: 1,
        parser_version: 1,
        precision: saltus_core::line_protocol::Precision::Nanosecond,
        base_time_ns: 1,
        depth: 0,
        text,
    }
}

#[test]
fn rounds_committed_to_a_real_file_are_recovered() {
    let data_dir = tempfile::tempdir().unwrap();
    commit_and_recover(data_dir.path());
}

#[test]
fn a_file_system_without_direct_writes_is_written_through_the_page_cache() {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        let data_dir = tempfile::tempdir_in(shared_memory).unwrap();
        assert_eq!(commit_and_recover(data_dir.path()), WriteMode::Buffered);
    }
}
