//! System tables: one plain struct per table, and its conversion to a record batch.
//!
//! Whoever knows the facts fills rows; [`batch`] makes columns of them in the order of the struct's fields. Text columns are
//! `Utf8` everywhere (InfluxDB 3 has `Utf8View` in some, which its own plugins cannot read).

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use saltus_core::catalog::TableInfo;
use saltus_core::schema::ColumnKind;

use super::QueryError;
use super::cells::{Cell, system_table};
pub use super::cells::{DurationNs, SystemRow, TimeMs, TimeNs, TimeSeconds, batch};

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
        /// What rows have for a column that their line does not name: `absent` or `none`.
        missing_columns: String,
        /// Whether plain values of its cache outlive a restart; null: as the server says.
        restore_cache: Option<bool>,
        /// The lane of the next run; null while the trigger is disabled, as are the next three.
        lane: Option<String>,
        /// Why it is that lane.
        lane_reason: Option<String>,
        /// Which interpreter of the deferred lane: `new` for triggers of which little is known, `shared` for those whose runs are
        /// short, `own` for one whose runs take long, `beside` where something lives that it shares; null in other lanes.
        interpreter: Option<String>,
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
        /// Bytes of memory that it holds after its last run; null where it is not counted.
        memory_bytes: Option<u64>,
        /// Why the trigger is disabled, if not by its user.
        disabled_reason: Option<String>,
        /// The IANA name of the zone of its schedule, if it has one of its own.
        time_zone: Option<String>,
        /// `skip`, `once` or `all`; null without a schedule.
        missed_runs: Option<String>,
        /// The last time of its schedule that was run.
        last_scheduled_time: Option<TimeNs>,
        /// The next one; null while the trigger is disabled, and if there is none any more.
        next_scheduled_time: Option<TimeNs>,
        /// Times of its schedule that were passed over since the start.
        missed_count: Option<u64>,
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
        /// Bytes of memory that the trigger held at most in the run; null where it is not counted.
        memory_peak_bytes: Option<u64>,
    }
}

system_table! {
    /// One entry of a trigger's durable state, `influxdb3_local.state`.
    TriggerStateRow = "trigger_state" {
        /// The trigger.
        trigger_name: String,
        /// The key.
        key: String,
        /// The value as JSON, with marks for what JSON has not: `{"$bytes": base64}`, `{"$tuple": [...]}`, `{"$float": "nan"}`.
        value: String,
        /// Of the whole state: how often it was changed.
        revision: u64,
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
        /// Microseconds that the run took, in the line that ends it.
        duration_us: Option<f64>,
        /// Where a plugin raised what the text says; it stands behind the text as well.
        traceback: Option<String>,
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
        /// Seconds of CPU time of its thread, system calls included.
        cpu_seconds: f64,
        /// Seconds in which tasks held it.
        busy_seconds: f64,
        /// Microseconds for which one task held it, of 99 in 100 at most.
        turn_p99_us: f64,
        /// Microseconds for which one task held it at most.
        turn_max_us: f64,
        /// How often one task held it for `loop-stall-limit` or longer.
        stalls: u64,
        /// Whether it takes writes.
        healthy: bool,
        /// Why it does not.
        reason: Option<String>,
    }
}

system_table! {
    /// Events that a trigger did not take. `saltus replay` gives them to it again.
    DeadLetterRow = "dead_letters" {
        /// When it became one.
        event_time: TimeNs,
        /// What it is known by.
        letter_id: String,
        /// The trigger.
        trigger_name: String,
        /// `failed`: all its attempts did; `disabled`: it failed, and the trigger was disabled; `lost`: nothing was attempted.
        reason: String,
        /// How often it was tried.
        attempts: u64,
        /// The last run that failed, in the life of the server in which it did.
        run_id: Option<u64>,
        /// The tables of its rows, separated by `, `.
        tables: String,
        /// Its rows, if they were counted.
        rows: Option<u64>,
        /// The ids of its events, or ranges of a log; separated by `, `.
        event_ids: String,
        /// Its first rows as line protocol.
        event: String,
        /// What went wrong.
        error: String,
        /// Where, if a plugin raised it.
        traceback: Option<String>,
    }
}

system_table! {
    /// One trigger's latencies since the start, one row per stage.
    TriggerLatencyRow = "trigger_latency" {
        /// The trigger.
        trigger_name: String,
        /// The lane.
        lane: String,
        /// `activation`: from the last byte of the write or the request to the plugin's entry; `schedule_delay`: from the time
        /// of the schedule to the entry, times that were missed left out; `queue`: waiting for the lane; `run`: the plugin
        /// itself; `response`, of request triggers: from the last byte of the request to its answer.
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
    /// A file of a trigger's plugin; in `_internal`.
    PluginFileRow = "plugin_files" {
        /// The trigger (so it is in the reference).
        plugin_name: String,
        /// The plugin's name, or the path in the plugin directory of one of a folder's files.
        file_name: String,
        /// Where it is.
        file_path: String,
        /// Its size.
        size_bytes: i64,
        /// When it was changed last, milliseconds since the epoch.
        last_modified: i64,
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

system_table! {
    /// A cache of the last values of a table's series.
    LastCacheRow = "last_caches" {
        /// The table.
        table: String,
        /// The cache.
        name: String,
        /// The columns whose values tell one entry from another, by their place in the table.
        key_column_ids: Vec<u16>,
        /// The same by name.
        key_column_names: Vec<String>,
        /// The columns it holds; null: all others, new ones too.
        value_column_ids: Option<Vec<u16>>,
        /// The same by name.
        value_column_names: Option<Vec<String>>,
        /// Rows that it holds of each key.
        count: u64,
        /// Seconds for which it holds them.
        ttl: u64,
    }
}

system_table! {
    /// A cache of the distinct values of a table's columns.
    DistinctCacheRow = "distinct_caches" {
        /// The table.
        table: String,
        /// The cache.
        name: String,
        /// Its columns, by their place in the table.
        column_ids: Vec<u16>,
        /// The same by name.
        column_names: Vec<String>,
        /// Combinations that it holds at most.
        max_cardinality: u64,
        /// Seconds for which it holds one.
        max_age_seconds: u64,
    }
}

system_table! {
    /// A Parquet file of a table.
    ParquetFileRow = "parquet_files" {
        /// The table.
        table_name: String,
        /// Where it is in the object store.
        path: String,
        /// Its size.
        size_bytes: u64,
        /// Its rows.
        row_count: u64,
        /// Nanoseconds since the epoch.
        min_time: i64,
        /// Nanoseconds since the epoch.
        max_time: i64,
    }
}

system_table! {
    /// A token; in `_internal`. Without authentication there is no column `hash`, as in InfluxDB 3, and no row.
    TokenRow = "tokens" {
        /// Its number.
        token_id: u64,
        /// Its name.
        name: String,
        /// When it was made.
        created_at: TimeMs,
        /// What for.
        description: Option<String>,
        /// With which token.
        created_by_token_id: Option<u64>,
        /// When it was changed.
        updated_at: Option<TimeMs>,
        /// With which token.
        updated_by_token_id: Option<u64>,
        /// When it ends; null: never.
        expiry: Option<TimeMs>,
        /// What it may.
        permissions: String,
    }
}

system_table! {
    /// A node; in `_internal`. There is one.
    NodeRow = "nodes" {
        /// Its name.
        node_id: String,
        /// Its number.
        node_catalog_id: u32,
        /// What tells this catalog from all others.
        instance_id: String,
        /// What it does.
        mode: Vec<String>,
        /// Processors that it may use.
        core_count: u64,
        /// `running`.
        state: String,
        /// When it was started.
        updated_at: Option<TimeMs>,
        /// The settings that were given, as JSON.
        cli_params: Option<String>,
    }
}

system_table! {
    /// How long the time is that one file of a generation covers; in `_internal`. Saltus has no generations, and so no row.
    GenerationDurationRow = "generation_durations" {
        /// The generation.
        level: u8,
        /// Seconds.
        duration_seconds: u64,
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
