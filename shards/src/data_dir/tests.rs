//! What a start finds, and what it says: a data directory that has lived twice, and everything that can get lost of it.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;

use futures_lite::future::{block_on, poll_once};
use saltus_core::ids::{Sequence, TableId};
use saltus_core::limits::WAL_ALIGN;
use saltus_core::line_protocol::Precision;

use super::*;
use crate::io::memory::MemoryDir;
use crate::wal::settle::{settle_old, settle_own};
use crate::wal::{Record, RecoveryOptions, RecoveryReport, WalOptions, WrittenTo, begin_stream, recover};

const IDENTITY: &str = "01c3a4be-1111-4222-8333-444455556666";

/// A data directory, and what its catalog says.
struct Home {
    root: tempfile::TempDir,
    catalog: FoundCatalog,
}

/// A life under way.
struct Alive {
    life: Life,
    report: RecoveryReport,
    /// What recovery gave.
    texts: Vec<String>,
}

fn write(text: &[u8]) -> Record<'_> {
    Record::Write {
        table: TableId(7),
        schema_version: 3,
        parser_version: 1,
        precision: Precision::Auto,
        base_time_ns: 0,
        depth: 0,
        text,
    }
}

impl Home {
    fn new() -> Self {
        Home::of(IDENTITY)
    }

    fn of(identity: &str) -> Self {
        let catalog = FoundCatalog { identity: identity.to_owned(), generation: 1, epoch: None };
        Home { root: tempfile::tempdir().unwrap(), catalog }
    }

    /// Two lives of two shards, the first ended by a crash, the second in an orderly way.
    fn lived() -> Self {
        let mut home = Home::new();
        let first = home.start(false).unwrap();
        for shard in 0..2 {
            home.write(&first, shard, 10);
        }
        drop(first);
        let second = home.start(false).unwrap();
        let ends = (0..2).map(|shard| home.write(&second, shard, 5)).collect();
        settle_own(home.path(), &second.life.keeper, ends).unwrap();
        home
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// As the engine starts, up to the first write.
    fn start(&mut self, accept_loss: bool) -> Result<Alive, String> {
        let mut directory = DataDir::open(self.path(), accept_loss).map_err(|e| e.to_string())?;
        directory.catalog_found(&self.file("catalog.redb"), self.catalog.clone());
        let life = directory.begin_life().map_err(|e| e.to_string())?;
        let mut texts = Vec::new();
        let options = RecoveryOptions { accept_loss, before: Some(life.epoch), known: Some(&life.known) };
        let report = recover(&life.lock, options, &mut |entry| {
            if let Record::Write { text, .. } = entry.record {
                texts.push(String::from_utf8_lossy(text).trim_end_matches('.').to_owned());
            }
            Ok(())
        });
        let report = report.map_err(|e| e.to_string())?;
        settle_old(self.path(), &life.keeper, life.epoch, &report).unwrap();
        self.catalog.epoch = Some(life.epoch.0);
        Ok(Alive { life, report, texts })
    }

    /// Rounds of one record each on one shard, and its files; each fills a third of a segment.
    fn write(&self, alive: &Alive, shard: u16, rounds: u32) -> (Stream, Option<WrittenTo>) {
        let stream = Stream { epoch: alive.life.epoch, shard: ShardId(shard) };
        let dir = MemoryDir::default();
        let options = WalOptions {
            segment_bytes: 4 * WAL_ALIGN as u64,
            directory: fingerprint(&alive.life.known.directory),
            ..WalOptions::new(stream, 2, 7)
        };
        let (mut writer, mut committer) = begin_stream(Rc::new(dir.clone()), options);
        for round in 0..rounds {
            let text = format!("{}/{shard}/{round}{}", stream.epoch.0, ".".repeat(200));
            writer.append(&write(text.as_bytes())).unwrap();
            block_on(committer.commit(&mut writer.take_round().unwrap())).unwrap();
            if let Some(prepare) = committer.prepare_next() {
                block_on(prepare);
            }
        }
        self.store(alive, stream, &dir, &dir.written());
        (stream, writer.written_to())
    }

    fn store(
        &self,
        alive: &Alive,
        stream: Stream,
        dir: &MemoryDir,
        files: &std::collections::BTreeMap<String, Vec<u8>>,
    ) {
        MemoryDir::store(files, &stream_dir(self.path(), stream)).unwrap();
        if let Some((id, tail)) = dir.registered() {
            block_on(alive.life.keeper.register(stream, id, &tail)).unwrap();
        }
    }

    fn bytes_of_log(&self) -> u64 {
        let files = list_streams(self.path()).unwrap().into_iter().flat_map(|files| files.segments);
        files.map(|(_, path)| fs::metadata(path).unwrap().len()).sum()
    }
}

#[test]
fn a_whole_directory_starts_again_and_again_and_gives_everything() {
    let mut home = Home::lived();
    for _ in 0..3 {
        let alive = home.start(false).unwrap();
        assert_eq!(alive.texts.len(), 30);
        assert!(alive.report.losses.is_empty() && alive.report.torn_tails.is_empty());
    }
}

type Harm = fn(&Home);

/// What is done to a directory that has lived, what the refusal names, and how many of 30 records are left if it is accepted.
const HARM: &[(&str, Harm, &[&str], usize)] = &[
    (
        "first segment",
        |h| remove(h, "wal/00000001-0000/00000001.wal"),
        &["00000001-0000/00000001.wal is missing", "shard 0 wrote in epoch 1"],
        27,
    ),
    (
        "middle segment",
        |h| remove(h, "wal/00000001-0001/00000002.wal"),
        &["00000001-0001/00000002.wal is missing", "shard 1"],
        27,
    ),
    (
        "last used segment",
        |h| remove(h, "wal/00000001-0001/00000004.wal"),
        &["00000001-0001/00000004.wal is missing", "sequences 1 to 10"],
        29,
    ),
    (
        "last segment of the last life",
        |h| remove(h, "wal/00000002-0001/00000002.wal"),
        &["00000002-0001/00000002.wal", "epoch 2"],
        28,
    ),
    ("stream", |h| remove(h, "wal/00000001-0001"), &["00000001-0001 is missing", "rows", "shard 1"], 20),
    ("the log", |h| remove(h, "wal"), &["00000001-0000 is missing", "00000002-0001 is missing"], 0),
    (
        "cut segment",
        |h| cut(h, "wal/00000001-0000/00000004.wal", WAL_ALIGN as u64),
        &["00000004.wal has 4096 bytes of 8192", "cut off"],
        29,
    ),
    ("emptied segment", |h| cut(h, "wal/00000001-0000/00000004.wal", 0), &["00000004.wal has 0 bytes"], 29),
    (
        "emptied middle segment",
        |h| cut(h, "wal/00000001-0000/00000002.wal", 0),
        &["00000002.wal at offset 0", "sequences 4 to 6"],
        27,
    ),
    (
        "renamed segment",
        |h| fs::rename(h.file("wal/00000001-0000/00000002.wal"), h.file("wal/00000001-0000/00000009.wal")).unwrap(),
        &["00000001-0000/00000002.wal is missing"],
        27,
    ),
    ("manifest", |h| remove(h, MANIFEST_FILE), &["manifest: is missing"], 30),
    ("empty manifest", |h| cut(h, MANIFEST_FILE, 0), &["manifest: it is empty"], 30),
    ("cut manifest", |h| cut(h, MANIFEST_FILE, 100), &["manifest: it is cut short"], 30),
    (
        "garbled manifest",
        |h| fs::write(h.file(MANIFEST_FILE), "saltus manifest 1\ncrc32c 00000000\n").unwrap(),
        &["its checksum is wrong"],
        30,
    ),
];

fn remove(home: &Home, name: &str) {
    let path = home.file(name);
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

fn cut(home: &Home, name: &str, bytes: u64) {
    fs::OpenOptions::new().write(true).open(home.file(name)).unwrap().set_len(bytes).unwrap();
}

#[test]
fn what_is_missing_is_named_and_given_up_only_once_and_only_if_it_is_said() {
    for (what, harm, texts, left) in HARM {
        let mut home = Home::lived();
        // A start has written down where the second life ended.
        drop(home.start(false).unwrap());
        harm(&home);
        for _ in 0..2 {
            let refusal = home.start(false).err().unwrap_or_else(|| panic!("{what}: it started"));
            assert!(refusal.contains("--accept-loss"), "{what}: {refusal}");
            assert!(texts.iter().all(|text| refusal.contains(text)), "{what}: {refusal}");
        }
        let accepted = home.start(true).unwrap_or_else(|why| panic!("{what}: {why}"));
        assert_eq!(accepted.texts.len(), *left, "{what}");
        drop(accepted);
        for _ in 0..2 {
            let again = home.start(false).unwrap_or_else(|why| panic!("{what}, afterwards: {why}"));
            assert_eq!(again.texts.len(), *left, "{what}");
        }
    }
}

#[test]
fn files_of_another_directory_and_older_copies_are_refused() {
    let copy = |from: &Path, to: &Path| {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    // A stream of the same name, of another directory.
    let (mut home, other) = (Home::lived(), Home::of("another"));
    let mut other = other;
    let alive = other.start(false).unwrap();
    other.write(&alive, 0, 10);
    remove(&home, "wal/00000001-0000");
    copy(&other.file("wal/00000001-0000"), &home.file("wal/00000001-0000"));
    let refusal = home.start(false).err().unwrap();
    assert!(refusal.contains("00000001-0000 is of another data directory"), "{refusal}");
    assert_eq!(home.start(true).unwrap().texts.len(), 20);
    assert_eq!(home.start(false).unwrap().texts.len(), 20);

    // The manifest of another directory: the log and the catalog agree.
    let mut home = Home::lived();
    fs::copy(other.file(MANIFEST_FILE), home.file(MANIFEST_FILE)).unwrap();
    let refusal = home.start(false).err().unwrap();
    assert!(refusal.contains("manifest: is of another data directory"), "{refusal}");
    assert_eq!(home.start(true).unwrap().texts.len(), 30);

    // An older copy of the manifest, of the catalog.
    let mut home = Home::lived();
    let old = fs::read(home.file(MANIFEST_FILE)).unwrap();
    drop(home.start(false).unwrap());
    fs::write(home.file(MANIFEST_FILE), old).unwrap();
    let refusal = home.start(false).err().unwrap();
    assert!(refusal.contains("manifest: is an older copy"), "{refusal}");
    let alive = home.start(true).unwrap();
    alive.life.keeper.change_now(|manifest| manifest.catalog = 9).unwrap();
    drop(alive);
    let refusal = home.start(false).err().unwrap();
    assert!(refusal.contains("catalog.redb is an older copy (generation 1"), "{refusal}");
}

#[test]
fn a_lost_epoch_is_written_anew_and_never_given_twice() {
    let harms: [Harm; 5] = [
        |h| fs::write(h.file("epoch"), "16777215\n").unwrap(),
        |h| remove(h, "epoch"),
        |h| cut(h, "epoch", 0),
        |h| fs::write(h.file("epoch"), "six\u{fffd}").unwrap(),
        |h| fs::write(h.file("epoch"), "1\n").unwrap(),
    ];
    let mut home = Home::lived();
    for (at, harm) in harms.iter().enumerate() {
        harm(&home);
        let alive = home.start(false).unwrap();
        assert_eq!(alive.life.epoch, Epoch(3 + at as u32));
        assert_eq!(fs::read_to_string(home.file("epoch")).unwrap(), format!("{}\n", alive.life.epoch.0));
    }
    // Nothing else tells: an empty file that was not so before is damage.
    let mut bare = Home::new();
    fs::write(bare.file("epoch"), "").unwrap();
    let refusal = bare.start(false).err().unwrap();
    assert!(refusal.contains("epoch is empty") && refusal.contains("--accept-loss"), "{refusal}");
    assert_eq!(bare.start(true).unwrap().life.epoch, Epoch(1));
    drop(bare.start(false).unwrap());
}

#[test]
fn a_log_that_is_missing_with_its_manifest_is_named_too() {
    let mut home = Home::lived();
    remove(&home, MANIFEST_FILE);
    remove(&home, "wal");
    let refusal = home.start(false).err().unwrap();
    assert!(refusal.contains("manifest: is missing") && refusal.contains("wal is missing: all rows"), "{refusal}");
    assert!(home.start(true).unwrap().texts.is_empty());
    drop(home.start(false).unwrap());
}

#[test]
fn a_directory_of_an_older_version_starts_without_a_word_and_has_a_manifest_then() {
    let mut home = Home::lived();
    remove(&home, MANIFEST_FILE);
    home.catalog.epoch = None;
    // Also with what a crash has left of the preparation of a segment.
    fs::write(home.file("wal/00000002-0000/00000003.wal"), vec![0; 100]).unwrap();
    assert_eq!(home.start(false).unwrap().texts.len(), 30);
    assert!(home.file(MANIFEST_FILE).exists() && !home.file("wal/00000002-0000/00000003.wal").exists());
    assert_eq!(home.start(false).unwrap().texts.len(), 30);
}

#[test]
fn starts_without_writes_leave_nothing_and_ended_lives_are_cut() {
    let mut home = Home::lived();
    drop(home.start(false).unwrap());
    let bytes = home.bytes_of_log();
    // 30 records and their segments' headers, 4 per segment at most.
    assert!(bytes <= (30 + 12) * WAL_ALIGN as u64, "{bytes}");
    for _ in 0..20 {
        let alive = home.start(false).unwrap();
        // What a life without writes has: a segment for each shard.
        home.write(&alive, 0, 0);
        home.write(&alive, 1, 0);
    }
    drop(home.start(false).unwrap());
    assert_eq!(home.bytes_of_log(), bytes);
    assert_eq!(fs::read_dir(home.file("wal")).unwrap().count(), 4);
}

/// A round under way at the poll number `polls` when the power goes: what was acknowledged is there, and nobody complains.
#[test]
fn a_crash_between_any_two_steps_is_no_damage() {
    for polls in 0..40 {
        for seed in 0..2 {
            let mut home = Home::new();
            let alive = home.start(false).unwrap();
            let stream = Stream { epoch: alive.life.epoch, shard: ShardId(0) };
            let dir = MemoryDir::default();
            let options = WalOptions {
                segment_bytes: 2 * WAL_ALIGN as u64,
                directory: fingerprint(IDENTITY),
                ..WalOptions::new(stream, 1, 7)
            };
            let (mut writer, mut committer) = begin_stream(Rc::new(dir.clone()), options);
            let mut left = polls;
            'life: for round in 0..6 {
                writer.append(&write(format!("{round}").as_bytes())).unwrap();
                let mut taken = writer.take_round().unwrap();
                let mut step: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(async {
                    committer.commit(&mut taken).await.unwrap();
                    if let Some(prepare) = committer.prepare_next() {
                        prepare.await;
                    }
                });
                while block_on(poll_once(step.as_mut())).is_none() {
                    left -= 1;
                    if left <= 0 {
                        // Before it is dropped: that is not what a crash does.
                        home.store(&alive, stream, &dir, &dir.crash(seed));
                        break 'life;
                    }
                }
            }
            if left > 0 {
                home.store(&alive, stream, &dir, &dir.crash(seed));
            }
            let durable = writer.durable().0 as usize;
            drop(alive);
            for _ in 0..2 {
                let again = home.start(false).unwrap_or_else(|why| panic!("{polls} polls, seed {seed}: {why}"));
                assert!((durable..=durable + 1).contains(&again.texts.len()), "{polls} polls, seed {seed}");
            }
        }
    }
}

#[test]
fn a_crash_while_streams_are_settled_is_no_damage() {
    let mut home = Home::new();
    let alive = home.start(false).unwrap();
    home.write(&alive, 0, 4);
    home.write(&alive, 1, 0);
    drop(alive);
    let before = tempfile::tempdir().unwrap();
    let saved = before.path().join("wal");
    copy_all(&home.file("wal"), &saved);
    drop(home.start(false).unwrap());
    // The manifest knows already, the files are as they were.
    fs::remove_dir_all(home.file("wal")).unwrap();
    copy_all(&saved, &home.file("wal"));
    assert_eq!(home.start(false).unwrap().texts.len(), 4);
    assert!(!home.file("wal/00000001-0001").exists(), "an empty stream that the manifest does not know goes");
    assert_eq!(home.start(false).unwrap().report.streams[0].last, Sequence(4));
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            copy_all(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}
