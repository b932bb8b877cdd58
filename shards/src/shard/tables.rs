//! The tables of a shard, with the sums of what they hold, so that nobody looks at all of them to say how much that is.
//!
//! **Invariant.** The sums are those of the tables: a table is changed in [`Tables::change`] only.

use std::collections::HashMap;
use std::sync::Arc;

use saltus_core::ids::TableId;

use crate::directory::TableEntry;
use crate::table::Table;

/// A table with its face to other threads.
pub(crate) struct Owned {
    pub table: Table,
    pub entry: Arc<TableEntry>,
}

impl Owned {
    fn sizes(&self) -> Sizes {
        Sizes { rows: self.table.rows(), bytes: self.table.bytes() as u64 }
    }
}

/// Of one table, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Overwritten versions included.
    pub rows: u64,
    /// Estimated.
    pub bytes: u64,
}

/// See the header.
#[derive(Default)]
pub(crate) struct Tables {
    by_id: HashMap<TableId, Owned, ahash::RandomState>,
    sizes: Sizes,
}

impl Tables {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// What all of them hold.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    pub fn get(&self, id: TableId) -> Option<&Owned> {
        self.by_id.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Owned> {
        self.by_id.values()
    }

    /// Adds a table; ids are never used again.
    pub fn insert(&mut self, owned: Owned) {
        self.count(Sizes::default(), owned.sizes());
        self.by_id.insert(owned.table.id(), owned);
    }

    pub fn remove(&mut self, id: TableId) -> bool {
        let removed = self.by_id.remove(&id);
        removed.is_some_and(|owned| {
            self.count(owned.sizes(), Sizes::default());
            true
        })
    }

    /// Changes a table, if it is there.
    pub fn change<R>(&mut self, id: TableId, change: impl FnOnce(&mut Owned) -> R) -> Option<R> {
        let owned = self.by_id.get_mut(&id)?;
        let before = owned.sizes();
        let changed = change(owned);
        let after = owned.sizes();
        self.count(before, after);
        Some(changed)
    }

    fn count(&mut self, before: Sizes, after: Sizes) {
        self.sizes.rows = self.sizes.rows + after.rows - before.rows;
        self.sizes.bytes = self.sizes.bytes + after.bytes - before.bytes;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use saltus_core::ids::{Epoch, ShardId};
    use saltus_core::line_protocol::{LineParser, Precision, SchemaSource};
    use saltus_core::schema::{ColumnDef, TableSchema};

    use super::*;

    struct Nothing;

    impl SchemaSource for Nothing {
        fn table(&self, _table: &str) -> Option<Arc<TableSchema>> {
            None
        }
    }

    fn write(tables: &mut Tables, id: TableId, rows: usize, at: usize) {
        let lines: String = (at..at + rows).map(|n| format!("t,tag=x v={n}i {n}\n")).collect();
        let mut parsed = LineParser::new().parse("db", &Bytes::from(lines), Precision::Nanosecond, false, &Nothing);
        let batch = parsed.batches.pop().unwrap();
        let columns: Vec<ColumnDef> =
            batch.columns.iter().map(|c| ColumnDef { name: c.name.clone(), kind: c.kind }).collect();
        let changed = tables.change(id, |owned| {
            let new = owned.table.check(columns.iter().map(|c| (&*c.name, c.kind))).new;
            owned.table.add_columns(&new);
            owned.table.apply(Arc::new(batch.freeze(0)));
        });
        assert!(changed.is_some());
    }

    #[test]
    fn the_sums_are_those_of_the_tables_whatever_becomes_of_them() {
        let mut tables = Tables::default();
        let sums = |tables: &Tables| {
            let each = tables.iter().map(Owned::sizes);
            each.fold(Sizes::default(), |all, one| Sizes { rows: all.rows + one.rows, bytes: all.bytes + one.bytes })
        };
        let id = |number| TableId::new(Epoch(1), ShardId(0), number);
        for number in 0..10 {
            let (db, name): (Arc<str>, Arc<str>) = ("db".into(), format!("t{number}").into());
            let table = Table::new(id(number), db.clone(), name.clone());
            let entry = TableEntry::new(id(number), db, name, ShardId(0), table.schema().clone());
            tables.insert(Owned { table, entry });
        }
        for step in 0..200 {
            let table = id(step % 10);
            match step % 7 {
                6 => drop(tables.change(table, |owned| owned.table.snapshot())),
                _ => write(&mut tables, table, 1 + (step as usize * 37) % 2000, step as usize * 1000),
            }
            assert_eq!(tables.sizes(), sums(&tables), "after {step}");
        }
        assert!(tables.remove(id(3)) && !tables.remove(id(3)) && tables.change(id(3), |_| ()).is_none());
        assert_eq!((tables.len(), tables.sizes()), (9, sums(&tables)));
        (0..10).filter(|number| tables.remove(id(*number))).for_each(drop);
        assert_eq!(tables.sizes(), Sizes::default());
    }
}
