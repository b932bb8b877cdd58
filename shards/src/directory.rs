//! What every thread may know of the tables: immutable maps, one per owner, swapped in by the owner alone.
//!
//! **Invariants.** Only the owner of a table changes its entry. `version` rises with every apply before any writer is
//! acknowledged, so a reader that finds `published.version == version` holds every acknowledged row and needs no hop.
//! What a reader sees of one owner is as it was at one moment: a table is known by name and by id, or not at all.
//!
//! The maps share what they have in common, so that a table comes and goes at one cost, however many there are. Names are in the
//! order of their hashes: to find one, numbers are compared.

use std::cmp::Ordering as Order;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{ShardId, TableId, TriggerId};
use saltus_core::schema::TableSchema;
use saltus_core::shared_map::SharedMap;
use saltus_core::trigger::TriggerDef;

use crate::placement::Placement;
use crate::table::TableSnapshot;

/// One table, as other threads see it.
pub struct TableEntry {
    /// Identity.
    pub id: TableId,
    /// Its database.
    pub db: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Who owns it.
    pub owner: ShardId,
    schema: ArcSwap<TableSchema>,
    version: AtomicU64,
    published: ArcSwapOption<TableSnapshot>,
    /// Which plugin wrote to it last.
    link: ArcSwapOption<Link>,
}

/// A trigger whose plugin writes to a table: a link of a chain of plugins.
#[derive(Debug, PartialEq, Eq)]
pub struct Link {
    /// The trigger.
    pub trigger: Arc<str>,
    /// Its identity.
    pub id: TriggerId,
    /// The table whose rows it ran for, if it was for rows.
    pub cause: Option<Arc<str>>,
}

impl TableEntry {
    /// An entry for a table that nobody knows yet.
    pub fn new(id: TableId, db: Arc<str>, name: Arc<str>, owner: ShardId, schema: Arc<TableSchema>) -> Arc<Self> {
        Arc::new(TableEntry {
            id,
            db,
            name,
            owner,
            schema: ArcSwap::new(schema),
            version: AtomicU64::new(0),
            published: ArcSwapOption::empty(),
            link: ArcSwapOption::empty(),
        })
    }

    /// Its columns now.
    pub fn schema(&self) -> Arc<TableSchema> {
        self.schema.load_full()
    }

    /// Owner: the columns have changed.
    pub fn set_schema(&self, schema: Arc<TableSchema>) {
        self.schema.store(schema);
    }

    /// Owner: the rows or columns have changed.
    pub fn set_version(&self, version: u64) {
        self.version.store(version, Ordering::Release);
    }

    /// Owner: here is what readers may share.
    pub fn publish(&self, snapshot: Arc<TableSnapshot>) {
        self.published.store(Some(snapshot));
    }

    /// The published rows, if they are all the rows.
    pub fn fresh(&self) -> Option<Arc<TableSnapshot>> {
        let version = self.version.load(Ordering::Acquire);
        self.published.load_full().filter(|s| s.version() == version)
    }

    /// A plugin is about to write to it.
    pub fn note_link(&self, trigger: &TriggerDef, cause: Option<&Arc<str>>) {
        let known = self.link.load();
        if known.as_ref().is_some_and(|link| link.id == trigger.id && link.cause.as_ref() == cause) {
            return;
        }
        let link = Link { trigger: trigger.name.clone(), id: trigger.id, cause: cause.cloned() };
        self.link.store(Some(Arc::new(link)));
    }

    /// Which plugin wrote to it last, as far as that is known.
    pub fn link(&self) -> Option<Arc<Link>> {
        self.link.load_full()
    }

    /// As the query side names it.
    pub fn info(&self) -> TableInfo {
        TableInfo { id: self.id, db: self.db.clone(), name: self.name.clone(), schema: self.schema() }
    }
}

/// A name with its hash, by which it is found.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    hash: u64,
    text: Arc<str>,
}

/// The tables of one database that one shard owns.
#[derive(Clone, Default)]
struct TablesOfDb {
    by_name: SharedMap<Name, Arc<TableEntry>>,
    by_id: SharedMap<TableId, Arc<TableEntry>>,
}

/// The tables that one shard owns.
#[derive(Clone, Default)]
struct TablesOfShard {
    databases: SharedMap<Name, TablesOfDb>,
    count: usize,
}

/// All tables, by owner.
pub struct Directory {
    placement: Placement,
    hasher: ahash::RandomState,
    shards: Vec<ArcSwap<TablesOfShard>>,
}

impl Directory {
    /// Nothing but the placement.
    pub fn new(placement: Placement) -> Self {
        let shards = (0..placement.shards()).map(|_| ArcSwap::default()).collect();
        Directory { placement, hasher: ahash::RandomState::new(), shards }
    }

    /// Who owns what.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The entry of a table that exists.
    pub fn get(&self, db: &str, table: &str) -> Option<Arc<TableEntry>> {
        let owner = self.placement.owner(db, table);
        let shard = self.shards[usize::from(owner.0)].load();
        shard.databases.find(self.order(db))?.by_name.find(self.order(table)).cloned()
    }

    /// The table with that identity in a database, if it was not dropped.
    pub fn by_id(&self, db: &str, id: TableId) -> Option<Arc<TableEntry>> {
        let of = |shard: &ArcSwap<TablesOfShard>| shard.load().databases.find(self.order(db))?.by_id.get(&id).cloned();
        self.shards.iter().find_map(of)
    }

    /// Owner: a table has come.
    pub fn insert(&self, entry: Arc<TableEntry>) {
        self.insert_all(entry.owner, [entry]);
    }

    /// Owner: these tables of a shard have come, all at once; of several of one name the last one counts.
    pub fn insert_all(&self, owner: ShardId, entries: impl IntoIterator<Item = Arc<TableEntry>>) {
        self.change(owner, |shard| {
            for entry in entries {
                let before = self.change_db(shard, &entry.db.clone(), |tables| {
                    tables.by_id.insert(entry.id, entry.clone());
                    let before = tables.by_name.insert(self.name(&entry.name), entry)?;
                    tables.by_id.remove(&before.id)
                });
                shard.count += usize::from(before.is_none());
            }
        });
    }

    /// Owner: a table has gone.
    pub fn remove(&self, entry: &TableEntry) {
        self.change(entry.owner, |shard| {
            let known = self.change_db(shard, &entry.db, |tables| {
                let known = tables.by_id.remove(&entry.id);
                known.inspect(|_| drop(tables.by_name.remove(&self.name(&entry.name))))
            });
            shard.count -= usize::from(known.is_some());
        });
    }

    /// Whether a database has tables.
    pub fn has_database(&self, db: &str) -> bool {
        self.shards.iter().any(|shard| shard.load().databases.find(self.order(db)).is_some())
    }

    /// The entries of a database, sorted by name.
    pub fn tables(&self, db: &str) -> Vec<Arc<TableEntry>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            if let Some(tables) = shard.load().databases.find(self.order(db)) {
                all.extend(tables.by_name.values().cloned());
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The databases that have tables, sorted.
    pub fn databases(&self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = Vec::new();
        for shard in &self.shards {
            all.extend(shard.load().databases.keys().map(|name| name.text.clone()));
        }
        all.sort();
        all.dedup();
        all
    }

    /// How many tables there are.
    pub fn count_all(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().count).sum()
    }

    /// Only the owner's thread calls this for its shard, so load and store do not race.
    fn change(&self, owner: ShardId, change: impl FnOnce(&mut TablesOfShard)) {
        let slot = &self.shards[usize::from(owner.0)];
        let mut shard = TablesOfShard::clone(&slot.load());
        change(&mut shard);
        slot.store(Arc::new(shard));
    }

    /// A database without tables is none.
    fn change_db<R>(&self, shard: &mut TablesOfShard, db: &Arc<str>, change: impl FnOnce(&mut TablesOfDb) -> R) -> R {
        let name = self.name(db);
        // Taken out, so that many changes in a row change one map.
        let mut tables = shard.databases.insert(name.clone(), TablesOfDb::default()).unwrap_or_default();
        let changed = change(&mut tables);
        if tables.by_id.is_empty() {
            shard.databases.remove(&name);
        } else {
            shard.databases.insert(name, tables);
        }
        changed
    }

    fn name(&self, text: &Arc<str>) -> Name {
        Name { hash: self.hasher.hash_one(&**text), text: text.clone() }
    }

    /// How names stand to this one.
    fn order<'a>(&self, text: &'a str) -> impl Fn(&Name) -> Order + use<'a> {
        let hash = self.hasher.hash_one(text);
        move |name| name.hash.cmp(&hash).then_with(|| (*name.text).cmp(text))
    }
}

#[cfg(test)]
mod tests;
