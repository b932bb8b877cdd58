//! What one query can name: catalog `public` with the schemas `iox` (the user's tables), `system` and
//! `information_schema`. Made anew for each query; a table's snapshot is taken when the planner first asks for it, and the
//! planner gets the same snapshot however often it asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, MemTable, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use futures_util::future::BoxFuture;
use saltus_core::catalog::TableInfo;

use super::QueryError;
use super::information_schema::InformationSchema;
use super::log::QueryLog;
use super::source::{SystemSource, TableSource};
use super::system::{self, DatabaseRow, InfluxdbSchemaRow, QueryRow, SystemRow, TableRow};
use super::table::SnapshotTable;

/// The only catalog.
pub(super) const CATALOG: &str = "public";
/// The schema of the user's tables, and the default.
pub(super) const IOX: &str = "iox";
/// The schema of system tables.
pub(super) const SYSTEM: &str = "system";
/// The schema that describes the others.
pub(super) const INFORMATION_SCHEMA: &str = "information_schema";
/// The database that always exists and has no user tables.
pub(super) const INTERNAL_DB: &str = "_internal";

/// Where everything comes from; shared by all queries.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) tables: Arc<dyn TableSource>,
    pub(super) system: Arc<dyn SystemSource>,
    pub(super) log: Arc<QueryLog>,
}

impl Sources {
    /// Whether a query may name the database.
    pub(super) fn database_exists(&self, db: &str) -> bool {
        db == INTERNAL_DB || self.tables.database_exists(db)
    }

    /// The names of a database's tables, the user's first.
    pub(super) fn table_names(&self, db: Option<&str>) -> Vec<String> {
        let Some(db) = db else { return Vec::new() };
        let own = self.tables.tables(db).into_iter().map(|table| table.name.to_string());
        own.chain(self.system_tables(db).into_iter().map(|(name, _)| name.to_owned())).collect()
    }

    /// The system tables of a database, sorted by name.
    pub(super) fn system_tables(&self, db: &str) -> Vec<(&'static str, SchemaRef)> {
        let mut tables = self.system.tables(db);
        for (name, schema) in built_in(db) {
            if !tables.iter().any(|(given, _)| *given == name) {
                tables.push((name, schema));
            }
        }
        tables.sort_by_key(|(name, _)| *name);
        tables
    }

    /// The rows of a system table, if there is one of that name.
    fn system_rows(&self, db: &str, name: &str) -> Result<Option<RecordBatch>, QueryError> {
        if self.system.tables(db).iter().any(|(given, _)| *given == name) {
            return self.system.scan(db, name).map(Some);
        }
        if !built_in(db).iter().any(|(own, _)| *own == name) {
            return Ok(None);
        }
        self.built_in_rows(db, name).map(Some)
    }

    fn built_in_rows(&self, db: &str, name: &str) -> Result<RecordBatch, QueryError> {
        match name {
            InfluxdbSchemaRow::TABLE => system::batch(&system::influxdb_schema(&self.tables.tables(db))),
            DatabaseRow::TABLE => system::batch(&system::databases(&self.tables.databases())),
            TableRow::TABLE => {
                let databases = self.tables.databases();
                let tables: Vec<_> = databases.iter().flat_map(|db| self.tables.tables(db)).collect();
                system::batch(&system::tables(&tables))
            }
            _ => system::batch(&self.log.rows()),
        }
    }
}

/// The system tables that need nothing but what the query side has.
fn built_in(db: &str) -> Vec<(&'static str, SchemaRef)> {
    let mut tables =
        vec![(QueryRow::TABLE, QueryRow::schema()), (InfluxdbSchemaRow::TABLE, InfluxdbSchemaRow::schema())];
    if db == INTERNAL_DB {
        tables.push((DatabaseRow::TABLE, DatabaseRow::schema()));
        tables.push((TableRow::TABLE, TableRow::schema()));
    }
    tables
}

/// What one query sees.
pub(super) struct QueryCatalog {
    iox: Arc<UserTables>,
    system: Arc<SystemTables>,
    information: Arc<InformationSchema>,
}

impl QueryCatalog {
    /// The catalog for a query on `db`, which exists.
    pub(super) fn new(sources: Sources, db: Option<&str>) -> Self {
        let db: Option<Arc<str>> = db.map(Arc::from);
        QueryCatalog {
            iox: Arc::new(UserTables::new(sources.clone(), db.clone())),
            system: Arc::new(SystemTables { sources: sources.clone(), db: db.clone() }),
            information: Arc::new(InformationSchema::new(sources, db)),
        }
    }

    /// About how many rows the tables asked for so far have.
    pub(super) fn rows_hint(&self) -> usize {
        self.iox.rows_hint.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for QueryCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryCatalog")
    }
}

impl CatalogProvider for QueryCatalog {
    fn schema_names(&self) -> Vec<String> {
        [IOX, SYSTEM, INFORMATION_SCHEMA].map(str::to_owned).into()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            IOX => Some(self.iox.clone()),
            SYSTEM => Some(self.system.clone()),
            // As DataFusion's own, this one takes any case.
            _ if name.eq_ignore_ascii_case(INFORMATION_SCHEMA) => Some(self.information.clone()),
            _ => None,
        }
    }
}

/// The list with the one catalog.
#[derive(Debug)]
pub(super) struct Catalogs(pub(super) Arc<QueryCatalog>);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _name: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![CATALOG.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == CATALOG).then(|| self.0.clone() as Arc<dyn CatalogProvider>)
    }
}

/// What `SchemaProvider::table` answers.
pub(super) type TableAnswer<'a> = BoxFuture<'a, Result<Option<Arc<dyn TableProvider>>, DataFusionError>>;

/// Schema `iox`.
struct UserTables {
    sources: Sources,
    db: Option<Arc<str>>,
    /// Snapshots taken for this query.
    taken: Mutex<HashMap<String, Arc<dyn TableProvider>>>,
    rows_hint: AtomicUsize,
}

/// Earlier versions made a table with a column `time` of its own, if they were asked to. Every other table can be read.
fn check_readable(info: &TableInfo) -> Result<(), QueryError> {
    match info.schema.has_own_time() {
        false => Ok(()),
        true => Err(QueryError::Planning(format!(
            "Error during planning: table '{0}' cannot be read: it was made with a column 'time' of its own beside the times of its rows, \
             which is refused now; delete it: saltus delete table -d {1} '{0}'",
            info.name, info.db
        ))),
    }
}

impl UserTables {
    fn new(sources: Sources, db: Option<Arc<str>>) -> Self {
        UserTables { sources, db, taken: Mutex::default(), rows_hint: AtomicUsize::new(0) }
    }

    async fn snapshot(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, QueryError> {
        if let Some(taken) = self.taken().get(name) {
            return Ok(Some(taken.clone()));
        }
        let Some(info) = self.db.as_ref().and_then(|db| self.sources.tables.table(db, name)) else { return Ok(None) };
        check_readable(&info)?;
        let scan = self.sources.tables.snapshot(&info).await?;
        self.rows_hint.fetch_add(scan.rows_hint().unwrap_or(0), Ordering::Relaxed);
        let table: Arc<dyn TableProvider> = Arc::new(SnapshotTable::new(info.name, scan));
        Ok(Some(self.taken().entry(name.to_owned()).or_insert(table).clone()))
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<dyn TableProvider>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for UserTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserTables")
    }
}

impl SchemaProvider for UserTables {
    fn table_names(&self) -> Vec<String> {
        let tables = self.db.as_ref().map(|db| self.sources.tables.tables(db)).unwrap_or_default();
        tables.iter().map(|table| table.name.to_string()).collect()
    }

    fn table<'life0, 'life1, 'async_trait>(&'life0 self, name: &'life1 str) -> TableAnswer<'async_trait>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { Ok(self.snapshot(name).await?) })
    }

    fn table_exist(&self, name: &str) -> bool {
        self.db.as_ref().is_some_and(|db| self.sources.tables.table(db, name).is_some())
    }
}

/// Schema `system`.
struct SystemTables {
    sources: Sources,
    db: Option<Arc<str>>,
}

impl SystemTables {
    fn rows(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(db) = &self.db else { return Ok(None) };
        let Some(batch) = self.sources.system_rows(db, name)? else { return Ok(None) };
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }
}

impl fmt::Debug for SystemTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemTables")
    }
}

impl SchemaProvider for SystemTables {
    fn table_names(&self) -> Vec<String> {
        let tables = self.db.as_ref().map(|db| self.sources.system_tables(db)).unwrap_or_default();
        tables.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn table<'life0, 'life1, 'async_trait>(&'life0 self, name: &'life1 str) -> TableAnswer<'async_trait>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.rows(name) })
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|own| own == name)
    }
}

#[cfg(test)]
mod tests {
    use saltus_core::schema::ColumnKind;

    use super::super::QueryError;
    use super::super::tests::{fixture, table};

    #[test]
    fn a_table_with_a_time_of_its_own_says_so_and_all_others_can_be_read() {
        let fixture = fixture();
        fixture.memory.add(table("db", "old", &[("time", ColumnKind::Tag), ("v", ColumnKind::Float)], Vec::new()));
        for sql in ["SELECT v FROM old", "SELECT * FROM old", "SELECT cpu.usage FROM cpu JOIN old ON cpu.usage = old.v"]
        {
            let QueryError::Planning(text) = fixture.error(sql) else { panic!("{sql}") };
            assert!(text.contains("table 'old' cannot be read: it was made with a column 'time' of its own"), "{text}");
            assert!(text.contains("saltus delete table -d db 'old'"), "{text}");
        }
        assert_eq!(fixture.rows("SELECT count(*) FROM cpu"), "5");
        let sql = "SELECT count(*) FROM information_schema.columns WHERE table_name IN ('old', 'cpu')";
        assert_eq!(fixture.rows(sql), "7");
    }
}
