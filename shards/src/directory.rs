//! What every thread may know of the tables: immutable maps, one per owner, swapped in by the owner alone.
//!
//! **Invariants.** Only the owner of a table changes its entry. `version` rises with every apply before any writer is
//! acknowledged, so a reader that finds `published.version == version` holds every acknowledged row and needs no hop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use saltus_core::catalog::TableInfo;
use saltus_core::ids::{ShardId, TableId, TriggerId};
use saltus_core::schema::TableSchema;
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

type TablesOfDb = HashMap<Arc<str>, Arc<TableEntry>>;
type TablesOfShard = HashMap<Arc<str>, Arc<TablesOfDb>>;

/// All tables, by owner.
pub struct Directory {
    placement: Placement,
    shards: Vec<ArcSwap<TablesOfShard>>,
}

impl Directory {
    /// Nothing but the placement.
    pub fn new(placement: Placement) -> Self {
        Directory { placement, shards: (0..placement.shards()).map(|_| ArcSwap::default()).collect() }
    }

    /// Who owns what.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The entry of a table that exists.
    pub fn get(&self, db: &str, table: &str) -> Option<Arc<TableEntry>> {
        let owner = self.placement.owner(db, table);
        self.shards[usize::from(owner.0)].load().get(db)?.get(table).cloned()
    }

    /// The table with that identity in a database, if it was not dropped.
    pub fn by_id(&self, db: &str, id: TableId) -> Option<Arc<TableEntry>> {
        self.tables(db).into_iter().find(|entry| entry.id == id)
    }

    /// Owner: a table has come.
    pub fn insert(&self, entry: Arc<TableEntry>) {
        self.change(entry.owner, &entry.db.clone(), |tables| {
            tables.insert(entry.name.clone(), entry);
        });
    }

    /// Owner: a table has gone.
    pub fn remove(&self, entry: &TableEntry) {
        self.change(entry.owner, &entry.db, |tables| {
            tables.remove(&entry.name);
        });
    }

    /// The entries of a database, sorted by name.
    pub fn tables(&self, db: &str) -> Vec<Arc<TableEntry>> {
        let mut all: Vec<_> = self
            .shards
            .iter()
            .filter_map(|s| s.load().get(db).cloned())
            .flat_map(|t| t.values().cloned().collect::<Vec<_>>())
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The databases that have tables, sorted.
    pub fn databases(&self) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> =
            self.shards.iter().flat_map(|s| s.load().keys().cloned().collect::<Vec<_>>()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// How many tables one shard owns.
    pub fn count(&self, shard: ShardId) -> usize {
        self.shards[usize::from(shard.0)].load().values().map(|t| t.len()).sum()
    }

    /// How many tables there are.
    pub fn count_all(&self) -> usize {
        (0..self.shards.len()).map(|s| self.count(ShardId(s as u16))).sum()
    }

    /// Only the owner's thread calls this for its shard, so load and store do not race.
    fn change(&self, owner: ShardId, db: &Arc<str>, change: impl FnOnce(&mut TablesOfDb)) {
        let slot = &self.shards[usize::from(owner.0)];
        let mut shard = TablesOfShard::clone(&slot.load());
        let mut tables = shard.get(db).map(|t| TablesOfDb::clone(t)).unwrap_or_default();
        change(&mut tables);
        if tables.is_empty() {
            shard.remove(db);
        } else {
            shard.insert(db.clone(), Arc::new(tables));
        }
        slot.store(Arc::new(shard));
    }
}
