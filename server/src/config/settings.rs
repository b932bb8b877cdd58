//! The settings of `serve`: keys, other names, environment variables; and the flags of InfluxDB 3 that mean nothing here.
//!
//! What a setting does and its default stand in `config.toml` and nowhere else.

/// Whether a flag takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// `--flag VALUE`
    Value,
    /// `--flag`, or `--flag true|false`
    Switch,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The key in `config.toml`, and the flag's name.
    pub key: &'static str,
    /// Whether the flag takes a value.
    pub kind: FlagKind,
    /// Other names of the flag.
    pub aliases: &'static [&'static str],
    /// Environment variables; the first that is set counts.
    pub env: &'static [&'static str],
}

const fn value(key: &'static str, env: &'static [&'static str]) -> Setting {
    Setting { key, kind: FlagKind::Value, aliases: &[], env }
}

const fn switch(key: &'static str, env: &'static [&'static str]) -> Setting {
    Setting { key, kind: FlagKind::Switch, aliases: &[], env }
}

/// Every setting, in the order of `config.toml`.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "node-id",
        kind: FlagKind::Value,
        aliases: &["host-id"],
        env: &["SALTUS_NODE_ID", "INFLUXDB3_NODE_ID", "INFLUXDB3_NODE_IDENTIFIER_PREFIX"],
    },
    value(
        "node-id-from-env",
        &["SALTUS_NODE_ID_FROM_ENV", "INFLUXDB3_NODE_ID_FROM_ENV", "INFLUXDB3_NODE_IDENTIFIER_FROM_ENV"],
    ),
    value("object-store", &["SALTUS_OBJECT_STORE", "INFLUXDB3_OBJECT_STORE"]),
    value("data-dir", &["SALTUS_DATA_DIR", "INFLUXDB3_DATA_DIR", "INFLUXDB3_DB_DIR"]),
    value("plugin-dir", &["SALTUS_PLUGIN_DIR", "INFLUXDB3_PLUGIN_DIR"]),
    switch("python-hardened", &["SALTUS_PYTHON_HARDENED"]),
    switch("restore-caches", &["SALTUS_RESTORE_CACHES"]),
    value("virtual-env-location", &["SALTUS_VIRTUAL_ENV_LOCATION", "INFLUXDB3_VIRTUAL_ENV_LOCATION"]),
    value("http-bind", &["SALTUS_HTTP_BIND_ADDR", "INFLUXDB3_HTTP_BIND_ADDR"]),
    switch("without-auth", &["SALTUS_WITHOUT_AUTH", "INFLUXDB3_WITHOUT_AUTH", "INFLUXDB3_START_WITHOUT_AUTH"]),
    value("max-http-request-size", &["SALTUS_MAX_HTTP_REQUEST_SIZE", "INFLUXDB3_MAX_HTTP_REQUEST_SIZE"]),
    value("http-idle-timeout", &["SALTUS_HTTP_IDLE_TIMEOUT"]),
    value("http-request-timeout", &["SALTUS_HTTP_REQUEST_TIMEOUT"]),
    value("shards", &["SALTUS_SHARDS"]),
    value("cpus", &["SALTUS_CPUS"]),
    value("numa", &["SALTUS_NUMA"]),
    value("busy-poll", &["SALTUS_BUSY_POLL"]),
    value("huge-pages", &["SALTUS_HUGE_PAGES"]),
    value("mailbox-size", &["SALTUS_MAILBOX_SIZE"]),
    value("wal-segment-size", &["SALTUS_WAL_SEGMENT_SIZE"]),
    switch("accept-loss", &["SALTUS_ACCEPT_LOSS"]),
    value("run-rows-max", &["SALTUS_RUN_ROWS_MAX"]),
    value("inline-deadline", &["SALTUS_INLINE_DEADLINE"]),
    value("inline-budget", &["SALTUS_INLINE_BUDGET"]),
    value("loop-stall-limit", &["SALTUS_LOOP_STALL_LIMIT"]),
    switch("loop-stall-backtrace", &["SALTUS_LOOP_STALL_BACKTRACE"]),
    value("stall-limit", &["SALTUS_STALL_LIMIT"]),
    value("stall-abort", &["SALTUS_STALL_ABORT"]),
    value("deferred-deadline", &["SALTUS_DEFERRED_DEADLINE"]),
    value("deferred-grace", &["SALTUS_DEFERRED_GRACE"]),
    value("deferred-workers", &["SALTUS_DEFERRED_WORKERS"]),
    value("own-interpreters", &["SALTUS_OWN_INTERPRETERS"]),
    value("own-interpreters-memory", &["SALTUS_OWN_INTERPRETERS_MEMORY"]),
    value("trigger-memory", &["SALTUS_TRIGGER_MEMORY"]),
    value("trigger-output-rows", &["SALTUS_TRIGGER_OUTPUT_ROWS"]),
    value("trigger-log-rate", &["SALTUS_TRIGGER_LOG_RATE"]),
    value("trigger-queue-size", &["SALTUS_TRIGGER_QUEUE_SIZE"]),
    Setting {
        key: "trigger-concurrency",
        kind: FlagKind::Value,
        aliases: &["async-trigger-concurrency-limit"],
        env: &["SALTUS_TRIGGER_CONCURRENCY", "INFLUXDB3_ASYNC_TRIGGER_CONCURRENCY_LIMIT"],
    },
    value("trigger-cpu-share", &["SALTUS_TRIGGER_CPU_SHARE"]),
    value("trigger-lag-size", &["SALTUS_TRIGGER_LAG_SIZE"]),
    value(
        "restrict-plugin-triggers-to",
        &["SALTUS_RESTRICT_PLUGIN_TRIGGERS_TO", "INFLUXDB3_RESTRICT_PLUGIN_TRIGGERS_TO"],
    ),
    value("query-threads", &["SALTUS_QUERY_THREADS"]),
    value("query-memory", &["SALTUS_QUERY_MEMORY"]),
    value("query-timeout", &["SALTUS_QUERY_TIMEOUT"]),
    value("query-concurrency", &["SALTUS_QUERY_CONCURRENCY"]),
    value("shutdown-timeout", &["SALTUS_SHUTDOWN_TIMEOUT", "INFLUXDB3_SHUTDOWN_TIMEOUT"]),
    value("otlp-endpoint", &["SALTUS_OTLP_ENDPOINT"]),
    value("trace-sample-ratio", &["SALTUS_TRACE_SAMPLE_RATIO"]),
    value("log-filter", &["SALTUS_LOG_FILTER", "INFLUXDB3_LOG_FILTER"]),
    value("log-format", &["SALTUS_LOG_FORMAT", "INFLUXDB3_LOG_FORMAT"]),
];

/// A flag of InfluxDB 3 that is taken and not followed.
#[derive(Clone, Copy, Debug)]
pub struct ForeignFlag {
    /// Its name.
    pub name: &'static str,
    /// Whether it takes a value.
    pub kind: FlagKind,
    /// What to use instead, or empty.
    pub instead: &'static str,
}

const fn foreign(name: &'static str) -> ForeignFlag {
    ForeignFlag { name, kind: FlagKind::Value, instead: "" }
}

const fn foreign_switch(name: &'static str) -> ForeignFlag {
    ForeignFlag { name, kind: FlagKind::Switch, instead: "" }
}

const fn replaced(name: &'static str, instead: &'static str) -> ForeignFlag {
    ForeignFlag { name, kind: FlagKind::Value, instead }
}

/// The flags of InfluxDB 3.10 and 3.11 that have no meaning here: taken, noted in the log once each.
pub const FOREIGN: &[ForeignFlag] = &[
    foreign("bucket"),
    foreign("aws-access-key-id"),
    foreign("aws-secret-access-key"),
    foreign("aws-default-region"),
    foreign("aws-endpoint"),
    foreign("aws-session-token"),
    foreign("aws-credentials-file"),
    foreign_switch("aws-allow-http"),
    foreign_switch("aws-skip-signature"),
    foreign("google-service-account"),
    foreign("azure-storage-account"),
    foreign("azure-storage-access-key"),
    foreign("azure-endpoint"),
    foreign_switch("azure-allow-http"),
    foreign("object-store-connection-limit"),
    foreign("object-store-request-timeout"),
    foreign_switch("object-store-http2-only"),
    foreign("object-store-http2-max-frame-size"),
    foreign("object-store-max-retries"),
    foreign("object-store-retry-timeout"),
    foreign("object-store-cache-endpoint"),
    foreign("disable-authz"),
    foreign_switch("admin-token-recovery-http-bind"),
    foreign("admin-token-file"),
    foreign("permission-tokens-file"),
    replaced("exec-mem-pool-bytes", "query-memory"),
    replaced("exec-mem-pool-size", "query-memory"),
    foreign("gen1-duration"),
    foreign("gen1-lookback-duration"),
    foreign("wal-flush-interval"),
    foreign("wal-snapshot-size"),
    foreign("wal-files-per-snapshot"),
    replaced("wal-max-write-buffer-size", "mailbox-size"),
    replaced("wal-max-buffered-writes", "mailbox-size"),
    foreign_switch("wal-replay-fail-on-error"),
    foreign("wal-replay-concurrency-limit"),
    foreign("snapshotted-wal-files-to-keep"),
    foreign("checkpoint-interval"),
    foreign("snapshot-concurrency-limit"),
    foreign("force-snapshot-mem-threshold"),
    foreign("force-snapshot-mem-size"),
    foreign("query-log-size"),
    foreign("query-log-max-entries"),
    replaced("max-concurrent-queries", "query-concurrency"),
    foreign("query-file-limit"),
    foreign("parquet-mem-cache-size"),
    foreign("parquet-mem-cache-prune-percentage"),
    foreign("parquet-mem-cache-prune-interval"),
    foreign("parquet-mem-cache-query-path-duration"),
    foreign_switch("disable-parquet-mem-cache"),
    foreign("file-cache-size"),
    foreign("file-cache-recency"),
    foreign_switch("disable-file-cache"),
    foreign("table-index-cache-max-entries"),
    foreign("table-index-cache-concurrency-limit"),
    foreign("last-cache-eviction-interval"),
    foreign("distinct-cache-eviction-interval"),
    foreign("retention-check-interval"),
    foreign("hard-delete-default-duration"),
    foreign("delete-grace-period"),
    replaced("num-io-threads", "shards"),
    replaced("datafusion-num-threads", "query-threads"),
    foreign("datafusion-runtime-type"),
    foreign_switch("datafusion-runtime-disable-lifo-slot"),
    foreign("datafusion-runtime-event-interval"),
    foreign("datafusion-runtime-global-queue-interval"),
    foreign("datafusion-runtime-max-blocking-threads"),
    foreign("datafusion-runtime-max-io-events-per-tick"),
    foreign("datafusion-runtime-thread-keep-alive"),
    foreign("datafusion-runtime-thread-priority"),
    foreign("datafusion-max-parquet-fanout"),
    foreign_switch("datafusion-use-cached-parquet-loader"),
    foreign("datafusion-config"),
    foreign("log-destination"),
    foreign_switch("disable-telemetry-upload"),
    foreign("telemetry-endpoint"),
    foreign("package-manager"),
    foreign_switch("disable-package-management"),
    foreign("plugin-repo"),
    foreign_switch("plugin-dir-only"),
    foreign("tcp-listener-file-path"),
    foreign("mode"),
    foreign("cluster-id"),
];

/// Flags that would be dangerous to take and not follow, with the reason.
pub const REFUSED: &[(&str, &str)] = &[
    ("tls-key", "this version does not speak TLS: put a proxy that does in front, and bind to loopback"),
    ("tls-cert", "this version does not speak TLS: put a proxy that does in front, and bind to loopback"),
    ("tls-minimum-version", "this version does not speak TLS: put a proxy that does in front, and bind to loopback"),
];

/// The environment variable that InfluxDB 3 has for a flag.
pub fn foreign_env(flag: &str) -> String {
    format!("INFLUXDB3_{}", flag.to_uppercase().replace('-', "_"))
}
