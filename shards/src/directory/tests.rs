//! The directory against plain maps, and with readers beside its writers.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::thread;

use proptest::prelude::*;
use saltus_core::ids::Epoch;

use super::*;

const DBS: [&str; 3] = ["a", "b", "metrics"];

fn entry(directory: &Directory, db: &str, name: &str, number: u32) -> Arc<TableEntry> {
    let owner = directory.placement().owner(db, name);
    let id = TableId::new(Epoch(1), owner, number);
    TableEntry::new(id, db.into(), name.into(), owner, Arc::default())
}

/// Databases with their tables, as they are to be.
type Model = BTreeMap<&'static str, BTreeMap<String, TableId>>;

fn check(directory: &Directory, model: &Model) {
    let databases: Vec<&str> = model.keys().copied().collect();
    assert_eq!(directory.databases().iter().map(|db| &**db).collect::<Vec<_>>(), databases);
    assert_eq!(directory.count_all(), model.values().map(BTreeMap::len).sum::<usize>());
    for db in DBS {
        assert_eq!(directory.has_database(db), model.contains_key(db));
        let tables = directory.tables(db);
        let listed = tables.iter().map(|entry| (entry.name.to_string(), entry.id));
        assert!(listed.eq(model.get(db).into_iter().flatten().map(|(name, id)| (name.clone(), *id))));
        for entry in tables {
            assert!(Arc::ptr_eq(&entry, &directory.get(db, &entry.name).unwrap()));
            assert!(Arc::ptr_eq(&entry, &directory.by_id(db, entry.id).unwrap()));
        }
    }
    assert!(directory.get("a", "never").is_none() && directory.get("none", "t1").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_knows_the_tables_that_came_and_have_not_gone(
        shards in 1..4_usize,
        at_once in prop::collection::btree_set((0..3_usize, 0..400_u32), 0..400),
        steps in prop::collection::vec((0..3_usize, 0..400_u32, any::<bool>()), 0..400),
    ) {
        let directory = Directory::new(Placement::new(shards));
        let mut model = Model::new();
        let mut made = 0;
        let mut new = |directory: &Directory, model: &mut Model, db: &'static str, table: u32| {
            made += 1;
            let entry = entry(directory, db, &format!("t{table}"), made);
            model.entry(db).or_default().insert(entry.name.to_string(), entry.id);
            entry
        };
        // As recovery does.
        let mut by_owner: BTreeMap<ShardId, Vec<Arc<TableEntry>>> = BTreeMap::new();
        for (db, table) in at_once {
            let entry = new(&directory, &mut model, DBS[db], table);
            by_owner.entry(entry.owner).or_default().push(entry);
        }
        by_owner.into_iter().for_each(|(owner, entries)| directory.insert_all(owner, entries));
        check(&directory, &model);
        for (db, table, comes) in steps {
            let db = DBS[db];
            match directory.get(db, &format!("t{table}")) {
                None if comes => directory.insert(new(&directory, &mut model, db, table)),
                Some(entry) if !comes => {
                    directory.remove(&entry);
                    let tables = model.get_mut(db).unwrap();
                    tables.remove(&*entry.name);
                    if tables.is_empty() {
                        model.remove(db);
                    }
                }
                _ => {}
            }
        }
        check(&directory, &model);
    }
}

/// Tables come in the order of their numbers and go in that order: whatever a reader sees of an owner is without gaps, and what it has
/// seen to be there before it looked is found.
#[test]
fn readers_beside_a_writer_see_each_owner_as_it_was_at_one_moment() {
    const TABLES: u32 = 2_000;
    let directory = Directory::new(Placement::new(1));
    let entries: Vec<_> = (0..TABLES).map(|n| entry(&directory, "db", &format!("t{n:05}"), n)).collect();
    // All before `come` were inserted, all before `gone` may be removed.
    let (come, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let read = || {
        let mut looks = 0;
        loop {
            let (last_gone, there) = (gone.load(Ordering::SeqCst), come.load(Ordering::SeqCst));
            let numbers: Vec<u32> =
                directory.tables("db").iter().map(|entry| entry.name[1..].parse().unwrap()).collect();
            assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a gap: {numbers:?}");
            let gone_since = gone.load(Ordering::SeqCst);
            if gone_since < there {
                assert!(numbers.last().is_some_and(|last| *last as usize + 1 >= there), "what was there is missing");
                assert!(numbers.first().is_some_and(|first| (*first as usize) <= gone_since), "too few");
            }
            for entry in entries.iter().take(there).skip(last_gone).step_by(97) {
                let (by_name, by_id) = (directory.get("db", &entry.name), directory.by_id("db", entry.id));
                let going = (entry.name[1..].parse::<usize>().unwrap()) < gone.load(Ordering::SeqCst);
                assert!(going || (by_name.is_some() && by_id.is_some()), "{} is missing", entry.name);
            }
            looks += 1;
            if last_gone == TABLES as usize {
                return looks;
            }
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(read)).collect();
        for (number, entry) in entries.iter().enumerate() {
            directory.insert(entry.clone());
            come.store(number + 1, Ordering::SeqCst);
        }
        for (number, entry) in entries.iter().enumerate() {
            gone.store(number + 1, Ordering::SeqCst);
            directory.remove(entry);
        }
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert!(!directory.has_database("db") && directory.count_all() == 0);
}
