//! System tables: one plain struct per table, and its conversion to a record batch.
//!
//! Whoever knows the facts fills rows; [`batch`] makes columns of them in the order of the struct's fields. Text columns are
//! `Utf8` everywhere (InfluxDB 3 has `Utf8View` in some, which its own plugins cannot read).

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, DurationNanosecondArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray, TimestampSecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use saltus_core::catalog::TableInfo;
use saltus_core::schema::ColumnKind;

use super::QueryError;

/// A row of a system table.
pub trait SystemRow: Sized {
    /// The table's name in schema `system`.
    const TABLE: &'static str;

    /// The table's columns.
    fn schema() -> SchemaRef;

    /// One array per column.
    fn columns(rows: &[Self]) -> Vec<ArrayRef>;
}

/// The rows as a batch of their table's schema.
///
/// # Errors
/// None that can be met: the arrays are made from the schema's own types.
pub fn batch<R: SystemRow>(rows: &[R]) -> Result<RecordBatch, QueryError> {
    RecordBatch::try_new(R::schema(), R::columns(rows)).map_err(|error| QueryError::Execution(error.to_string()))
}

/// Nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeNs(pub i64);

/// Seconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeSeconds(pub i64);

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DurationNs(pub i64);

/// A type that a column of a system table can have.
trait Cell {
    const NULLABLE: bool;
    fn data_type() -> DataType;
    fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
}

macro_rules! cell {
    ($value:ty, $data_type:expr, |$cells:ident| $optional:expr) => {
        impl Cell for $value {
            const NULLABLE: bool = false;
            fn data_type() -> DataType {
                $data_type
            }
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let $cells = cells.map(Some);
                Arc::new($optional)
            }
        }

        impl Cell for Option<$value> {
            const NULLABLE: bool = true;
            fn data_type() -> DataType {
                $data_type
            }
            fn array<'a>(cells: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let $cells = cells.map(Option::as_ref);
                Arc::new($optional)
            }
        }
    };
}

cell!(String, DataType::Utf8, |cells| cells.collect::<StringArray>());
cell!(u64, DataType::UInt64, |cells| cells.map(Option::<&u64>::copied).collect::<UInt64Array>());
cell!(i64, DataType::Int64, |cells| cells.map(Option::<&i64>::copied).collect::<Int64Array>());
cell!(f64, DataType::Float64, |cells| cells.map(Option::<&f64>::copied).collect::<Float64Array>());
cell!(bool, DataType::Boolean, |cells| cells.map(Option::<&bool>::copied).collect::<BooleanArray>());
cell!(TimeNs, DataType::Timestamp(TimeUnit::Nanosecond, None), |cells| {
    cells.map(|cell: Option<&TimeNs>| cell.map(|time| time.0)).collect::<TimestampNanosecondArray>()
});
cell!(TimeSeconds, DataType::Timestamp(TimeUnit::Second, Some("+00:00".into())), |cells| {
    cells
        .map(|cell: Option<&TimeSeconds>| cell.map(|time| time.0))
        .collect::<TimestampSecondArray>()
        .with_timezone("+00:00")
});
cell!(DurationNs, DataType::Duration(TimeUnit::Nanosecond), |cells| {
    cells.map(|cell: Option<&DurationNs>| cell.map(|duration| duration.0)).collect::<DurationNanosecondArray>()
});

/// Declares a row struct whose public fields are the columns, in order.
macro_rules! system_table {
    ($(#[$doc:meta])* $row:ident = $table:literal { $($(#[$field_doc:meta])* $field:ident: $cell:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $row {
            $($(#[$field_doc])* pub $field: $cell,)*
        }

        impl SystemRow for $row {
            const TABLE: &'static str = $table;

            fn schema() -> SchemaRef {
                Arc::new(Schema::new(vec![
                    $(Field::new(stringify!($field), <$cell as Cell>::data_type(), <$cell as Cell>::NULLABLE),)*
                ]))
            }

            fn columns(rows: &[Self]) -> Vec<ArrayRef> {
                vec![$(<$cell as Cell>::array(rows.iter().map(|row| &row.$field)),)*]
            }
        }
    };
}

system_table! {
    /// A trigger of the database.
    TriggerRow = "processing_engine_triggers" {
        /// Its name.
        trigger_name: String,
        /// As the user gave it.
        plugin_filename: String,
        /// JSON (reference, 2.2).
        trigger_specification: String,
        /// Not to be run.
        disabled: bool,
        /// `log`, `retry` or `disable`.
        error_behavior: String,
        /// What was asked for: `auto`, `inline` or `deferred`.
        execution: String,
        /// What was asked for: `auto`, `interpreter` or `process`.
        isolation: String,
        /// Limits of its own, as JSON; the server's defaults are in force where there are none.
        limits: String,
        /// The lane of the next run; null while the trigger is disabled, as are the next three.
        lane: Option<String>,
        /// Why it is that lane.
        lane_reason: Option<String>,
        /// Since when.
        lane_since: Option<TimeNs>,
        /// What keeps a trigger with `auto` out of the inline lane for now.
        lane_barred: Option<String>,
        /// Whether runs may overlap.
        run_async: bool,
        /// Runs finished since the start, failed ones included.
        run_count: u64,
        /// Runs that failed since the start.
        error_count: u64,
        /// What the last failed run said.
        last_error: Option<String>,
        /// Why the trigger is disabled, if not by its user.
        disabled_reason: Option<String>,
    }
}

system_table! {
    /// What became of a run, or a decision about a trigger's lane.
    TriggerRunRow = "trigger_runs" {
        /// When it ended, or was made.
        event_time: TimeNs,
        /// The trigger.
        trigger_name: String,
        /// The run; null for a decision.
        run_id: Option<u64>,
        /// The lane of the run; the new lane of a decision.
        lane: String,
        /// `success`, `error`, `discarded` (its event is run again) or `decision`.
        outcome: String,
        /// The error's text, why it was discarded, or what was decided and why.
        detail: Option<String>,
        /// How often the event had failed before.
        attempt: Option<u64>,
        /// Rows that the plugin was given.
        rows: Option<u64>,
        /// Microseconds from the last byte of the write to the plugin's entry; null if it was not entered.
        activation_us: Option<f64>,
        /// Microseconds of the plugin itself.
        run_us: Option<f64>,
    }
}

system_table! {
    /// One argument of a trigger.
    TriggerArgumentRow = "processing_engine_trigger_arguments" {
        /// The trigger.
        trigger_name: String,
        /// The argument's name.
        argument_key: String,
        /// Its value.
        argument_value: String,
    }
}

system_table! {
    /// A line that a plugin, or the engine about a plugin, has logged.
    LogRow = "processing_engine_logs" {
        /// When.
        time: TimeNs,
        /// The same under its older name.
        event_time: TimeNs,
        /// The trigger.
        trigger_name: String,
        /// `INFO`, `WARN` or `ERROR`.
        log_level: String,
        /// The text.
        log_text: String,
        /// The run.
        run_id: u64,
        /// The trigger's database.
        database: String,
    }
}

system_table! {
    /// A query of this process.
    QueryRow = "queries" {
        /// Counts up from 1 at each start.
        id: String,
        /// `received`, `permit`, `planned`, `success`, `fail` or `cancel`.
        phase: String,
        /// When it came.
        issue_time: TimeNs,
        /// Where it came from.
        query_type: String,
        /// The statement; a long one is cut.
        query_text: String,
        /// Not known here.
        partitions: Option<i64>,
        /// Not known here.
        parquet_files: Option<i64>,
        /// Parsing and planning.
        plan_duration: Option<DurationNs>,
        /// Waiting for a permit.
        permit_duration: Option<DurationNs>,
        /// From the plan to the last row taken.
        execute_duration: Option<DurationNs>,
        /// All of it.
        end2end_duration: Option<DurationNs>,
        /// Not measured.
        compute_duration: Option<DurationNs>,
        /// Not measured.
        max_memory: Option<i64>,
        /// The last row was taken.
        success: bool,
        /// It is not over.
        running: bool,
        /// Nobody waited for the rest.
        cancelled: bool,
        /// Not used.
        trace_id: Option<String>,
    }
}

system_table! {
    /// A shard.
    ShardRow = "shards" {
        /// Its index.
        shard: u64,
        /// The core that it is pinned to.
        core: Option<u64>,
        /// Open client connections.
        connections: u64,
        /// Tables that it owns.
        tables: u64,
        /// Batches taken since the start.
        batches: u64,
        /// Rows taken since the start.
        rows: u64,
        /// Bytes waiting in its mailbox.
        mailbox_bytes: u64,
        /// Bytes of its log since the start.
        wal_bytes: u64,
        /// Whether it takes writes.
        healthy: bool,
        /// Why it does not.
        reason: Option<String>,
    }
}

system_table! {
    /// One trigger's latencies since the start, one row per stage.
    TriggerLatencyRow = "trigger_latency" {
        /// The trigger.
        trigger_name: String,
        /// The lane.
        lane: String,
        /// `activation`: from the last byte of the write to the plugin's entry; `queue`: waiting for the lane; `run`: the plugin
        /// itself.
        stage: String,
        /// Runs counted.
        count: u64,
        /// Microseconds.
        p50_us: f64,
        /// Microseconds.
        p90_us: f64,
        /// Microseconds.
        p99_us: f64,
        /// Microseconds.
        p999_us: f64,
        /// Microseconds.
        max_us: f64,
    }
}

system_table! {
    /// A column of a table.
    InfluxdbSchemaRow = "influxdb_schema" {
        /// The table.
        measurement: String,
        /// The column.
        key: String,
        /// `tag`, `integer`, `uinteger`, `float`, `string`, `boolean` or `timestamp`.
        data_type: String,
    }
}

system_table! {
    /// A database; in `_internal`.
    DatabaseRow = "databases" {
        /// Its name.
        database_name: String,
        /// How long rows are kept; for ever if null.
        retention_period_ns: Option<u64>,
        /// Deleted, and waiting for its files to go.
        deleted: bool,
        /// When they go.
        hard_deletion_time: Option<TimeSeconds>,
    }
}

system_table! {
    /// A table; in `_internal`.
    TableRow = "tables" {
        /// The database.
        database_name: String,
        /// The table.
        table_name: String,
        /// `time` included.
        column_count: u64,
        /// The tags, separated by `, `.
        series_key_columns: String,
        /// Last-value caches.
        last_cache_count: u64,
        /// Distinct-value caches.
        distinct_cache_count: u64,
        /// Deleted, and waiting for its files to go.
        deleted: bool,
        /// When they go.
        hard_deletion_time: Option<TimeSeconds>,
    }
}

impl LogRow {
    /// The row of a line logged at `time`.
    pub fn at(time: TimeNs) -> Self {
        LogRow { time, event_time: time, ..LogRow::default() }
    }
}

/// The rows of `influxdb_schema` for these tables.
pub fn influxdb_schema(tables: &[TableInfo]) -> Vec<InfluxdbSchemaRow> {
    tables.iter().flat_map(columns_of).collect()
}

fn columns_of(table: &TableInfo) -> Vec<InfluxdbSchemaRow> {
    let row = |key: &str, data_type: &str| InfluxdbSchemaRow {
        measurement: table.name.to_string(),
        key: key.to_owned(),
        data_type: data_type.to_owned(),
    };
    let columns = table.schema.columns().iter().map(|column| row(&column.name, kind_name(column.kind)));
    let mut rows: Vec<_> = columns.chain([row("time", "timestamp")]).collect();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    rows
}

fn kind_name(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Tag => "tag",
        ColumnKind::Integer => "integer",
        ColumnKind::UInteger => "uinteger",
        ColumnKind::Float => "float",
        ColumnKind::String => "string",
        ColumnKind::Boolean => "boolean",
    }
}

/// The rows of `databases` for databases without retention.
pub fn databases(names: &[Arc<str>]) -> Vec<DatabaseRow> {
    names.iter().map(|name| DatabaseRow { database_name: name.to_string(), ..DatabaseRow::default() }).collect()
}

/// The rows of `tables`.
pub fn tables(tables: &[TableInfo]) -> Vec<TableRow> {
    tables.iter().map(table_row).collect()
}

fn table_row(table: &TableInfo) -> TableRow {
    let tags: Vec<&str> = table.schema.tags().map(|tag| tag.name.as_ref()).collect();
    TableRow {
        database_name: table.db.to_string(),
        table_name: table.name.to_string(),
        column_count: table.schema.columns().len() as u64 + 1,
        series_key_columns: tags.join(", "),
        ..TableRow::default()
    }
}

/// The answer to `GET /api/v3/configure/database`: the names, and if asked for whether each is deleted.
///
/// # Errors
/// None that can be met.
pub fn show_databases(rows: &[DatabaseRow], show_deleted: bool) -> Result<RecordBatch, QueryError> {
    let shown: Vec<&DatabaseRow> = rows.iter().filter(|row| show_deleted || !row.deleted).collect();
    let names = shown.iter().map(|row| Some(row.database_name.as_str())).collect::<StringArray>();
    let mut fields = vec![Field::new("iox::database", DataType::Utf8, false)];
    let mut arrays: Vec<ArrayRef> = vec![Arc::new(names)];
    if show_deleted {
        fields.push(Field::new("deleted", DataType::Boolean, false));
        arrays.push(Arc::new(shown.iter().map(|row| Some(row.deleted)).collect::<BooleanArray>()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|error| QueryError::Execution(error.to_string()))
}
