//! Every bound of the engine, in one place, with the arithmetic that relates them.
//!
//! A bound that operators may change is the default of a setting of the same name.

/// Tags and fields of one table together; `time` is exempt.
pub const COLUMNS_PER_TABLE_MAX: usize = 4096;
/// Tables of all databases together.
pub const TABLES_MAX: usize = 100_000;
/// Databases, `_internal` not counted.
pub const DATABASES_MAX: usize = 10_000;
/// Bytes of a measurement, tag key or field key, unescaped.
pub const NAME_BYTES_MAX: usize = 64 * 1024 - 1;
/// Bytes of a tag value, unescaped.
pub const TAG_VALUE_BYTES_MAX: usize = 64 * 1024 - 1;
/// Bytes of a string field's value, unescaped (reference, 6.1: 1 MiB).
pub const STRING_FIELD_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a database name (reference, 3.3).
pub const DB_NAME_BYTES_MAX: usize = 511;
/// Bytes of a trigger's name.
pub const TRIGGER_NAME_BYTES_MAX: usize = 1024;
/// Bytes of a request body after decompression, default of `--max-http-request-size`.
pub const HTTP_REQUEST_BYTES_MAX: usize = 10 * 1024 * 1024;
/// Bytes of a body that are read and dropped once its request is answered, so that a client that sends all before it reads gets
/// to read the answer.
pub const HTTP_UNREAD_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// How long that may take.
pub const HTTP_UNREAD_MS: u64 = 30_000;
/// Values of one table in one request, absent ones counted: columns are dense, so rows times columns is what memory pays for.
pub const LINE_CELLS_MAX: usize = 64 * 1024 * 1024;
/// Rejected lines described in one reply; further ones are only counted.
pub const LINE_ERRORS_REPORTED_MAX: usize = 1000;
/// Bytes of a refused line that logs and plugins are shown.
pub const REFUSED_LINE_BYTES_SHOWN_MAX: usize = 200;
/// Refused lines of one run that are shown one by one; the rest is counted.
pub const REFUSED_LINES_SHOWN_MAX: usize = 20;

/// Bytes of known series and tag dictionaries that one parser keeps; beyond them it starts anew.
pub const LINE_CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a body that the parser accepts: offsets in it and in its columns fit 32 bits.
pub const LINE_BODY_BYTES_MAX: usize = WAL_RECORD_BYTES_MAX;

/// Rows in the growable tail of a table before it becomes a chunk.
pub const TAIL_ROWS_MAX: usize = 8192;
/// A batch of at least this many rows becomes a chunk of its own: its buffers are the table's buffers.
pub const CHUNK_DIRECT_ROWS_MIN: usize = 1024;
/// Rows beyond which two chunks are not merged any more.
pub const CHUNK_ROWS_MAX: usize = 1024 * 1024;

/// Items in one shard's mailbox.
pub const MAILBOX_ITEMS_MAX: usize = 64 * 1024;
/// Bytes of batches under way to one shard, default of `--mailbox-size`.
pub const MAILBOX_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A WAL frame carries at most this many payload bytes, unless one record alone is larger.
pub const WAL_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Size of a preallocated WAL segment.
pub const WAL_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Size of the first segment of a stream; each further one is four times as large, up to the full size: a life without many writes
/// costs little.
pub const WAL_FIRST_SEGMENT_BYTES: u64 = 1024 * 1024;
/// What the engine notes for itself (cursors, triggers) while the disk is full, in bytes; beyond, it is refused as writes are.
pub const WAL_NOTES_WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Milliseconds that a write waits for a full disk before it is answered; it is tried on after that.
pub const DISK_FULL_ANSWER_MS: u64 = 1_000;
/// Alignment of frames, for O_DIRECT.
pub const WAL_ALIGN: usize = 4096;
/// One record, that is one accepted body for one table, may not exceed this (reference default body: 10 MiB).
pub const WAL_RECORD_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// Items in all containers of one cache value that an inline run may change: it is copied first.
pub const INLINE_CACHE_VALUE_ITEMS_MAX: usize = 1_000;
/// Items in all containers of one trigger's cache that moves from lane to lane.
pub const INLINE_CACHE_ITEMS_MAX: usize = 50_000;
/// Log lines of one inline run, which are held until it has succeeded.
pub const INLINE_LOG_LINES_MAX: usize = 1_000;
/// Bytes of them.
pub const INLINE_LOG_BYTES_MAX: usize = 256 * 1024;
/// Modules that one version of a plugin may import while it runs inline, one discarded run each.
pub const INLINE_IMPORTS_MAX: usize = 64;
/// Milliseconds until a trigger's progress is in the log, at most; what it finished since then is given again after a crash.
pub const CURSOR_DELAY_MS: u64 = 50;
/// Rows handed to one run of a plugin.
pub const RUN_ROWS_MAX: usize = 100_000;
/// Bytes of line protocol that one run of a plugin may queue.
pub const RUN_OUTPUT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Lines that one run of a plugin may write.
pub const RUN_OUTPUT_ROWS_MAX: u64 = 1_000_000;
/// Bytes that the runs of one trigger may hold. In the process lane: what its worker may take beyond what it needs to start, of
/// which libraries of linear algebra take some per processor.
pub const TRIGGER_MEMORY_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Log lines per second of one trigger: as many as are kept of all.
pub const TRIGGER_LOG_LINES_PER_SECOND_MAX: u32 = LOG_ROWS_MAX as u32;
/// Events waiting in memory for one trigger, in bytes of their batches.
pub const TRIGGER_BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Runs of one trigger under way at once, where it lets them overlap (`run_async`).
pub const TRIGGER_CONCURRENCY_MAX: u32 = 16;
/// Requests that wait for one trigger; more are refused with 503. The trigger's `queue_size` bounds their bytes as well.
pub const REQUESTS_WAITING_MAX: usize = 256;
/// Bytes of a plugin's answer that is not streamed.
pub const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of one piece of a streamed answer; longer ones are cut.
pub const RESPONSE_PIECE_BYTES_MAX: usize = 64 * 1024;
/// Pieces of a streamed answer that wait for their reader; then the plugin waits.
pub const RESPONSE_PIECES_MAX: usize = 8;
/// Test runs of plugins at once; more are refused with 503.
pub const PLUGIN_TESTS_MAX: usize = 8;
/// Seconds that an entry of a test run's cache is kept if its plugin does not say.
pub const PLUGIN_TEST_CACHE_SECS: u64 = 30 * 60;
/// Bytes of log lines, and of an answer, that one test run gives back.
pub const PLUGIN_TEST_OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Seconds that a query may take, default of `--query-timeout`. Time in which its result waits to be read does not count.
pub const QUERY_SECS_MAX: u64 = 300;
/// Queries that run at once, default of `--query-concurrency`: each has a thread of its own.
pub const QUERIES_AT_ONCE_MAX: usize = 64;
/// The most that `--query-concurrency` may be.
pub const QUERIES_AT_ONCE_LIMIT: usize = 4096;
/// Queries that wait for one of those to end; more are refused with 503.
pub const QUERIES_WAITING_MAX: usize = 256;
/// Milliseconds after its time was over until a query that does not notice it is answered for.
pub const QUERY_GRACE_MS: u64 = 1_000;
/// Milliseconds that a query waits before it is refused with 503.
pub const QUERY_WAIT_MS: u64 = 10_000;
/// Queries at once that may use several threads each; further ones have one.
pub const QUERIES_PARALLEL_MAX: usize = 4;
/// Terms that one chain of operators of a statement may join: it becomes a tree as deep as it is long.
pub const QUERY_DEPTH_MAX: usize = 2_000;
/// Bytes of a constant that a query's plan computes beforehand; larger ones are computed when the query runs.
pub const QUERY_CONSTANT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes that a query makes in one step between two looks at its bounds, unless one value alone is larger.
pub const QUERY_STEP_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the rows that operators hand on at once where long values are put into rows, unless one row alone is larger.
pub const QUERY_PIECE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one text or list that a query makes, and of one row of its result: a row is written, sent and read as a whole.
pub const QUERY_VALUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of rows that are written in a format of results at once, unless one row alone is larger.
pub const QUERY_ENCODE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of the result of one query of a plugin, as Arrow columns.
pub const PLUGIN_QUERY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of the durable state of one trigger, keys and values together.
pub const STATE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a key of it.
pub const STATE_KEY_BYTES_MAX: usize = 1024;
/// Bytes of changes of a state in the log before all of it is written again, at least: recovery needs nothing older.
pub const STATE_CHECKPOINT_BYTES_MIN: usize = 64 * 1024;
/// Bytes of the global cache's plain values; beyond, those that were put longest ago go.
pub const GLOBAL_CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of one value of it that other interpreters see.
pub const GLOBAL_CACHE_VALUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Seconds between two searches for expired entries of caches.
pub const CACHE_SWEEP_SECS: u64 = 10;
/// Bytes of one trigger's cache that are kept for the next start.
pub const CACHE_SAVED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of all triggers' caches that are kept for the next start.
pub const CACHES_SAVED_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Milliseconds that a shard or a worker process has to give its caches at the stop.
pub const CACHE_SAVE_MS: u64 = 2_000;
/// Per cent of one core that the runs of one trigger may use outside of the inline lane, over time.
pub const TRIGGER_CPU_SHARE_PERCENT: u32 = 100;
/// Milliseconds whose share of CPU time a trigger may save up.
pub const CPU_SHARE_WINDOW_MS: u64 = 1_000;
/// Files of one plugin that is a folder.
pub const PLUGIN_FILES_MAX: usize = 1000;
/// Bytes of all files of one plugin.
pub const PLUGIN_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Milliseconds between two looks at all plugin files.
pub const PLUGIN_LOOK_MS: u64 = 200;
/// Milliseconds since the last change of a plugin file within which its next change may leave the same time stamp.
pub const PLUGIN_FILE_RACY_MS: u64 = 2_000;
/// Milliseconds between two looks while a plugin is being changed.
pub const PLUGIN_LOOK_AGAIN_MS: u64 = 50;
/// Milliseconds without a change after which the files of a plugin count as a new version.
pub const PLUGIN_QUIET_MS: u64 = 500;
/// Deferred workers that a shard has from the start; more are hired when all of them are busy.
pub const DEFERRED_WORKERS_MIN: usize = 2;
/// Runs waiting for the deferred workers of one shard.
pub const DEFERRED_QUEUE_MAX: usize = 1024;
/// Milliseconds an inline run may take before it is interrupted.
pub const INLINE_DEADLINE_MS: u64 = 10;
/// Microseconds that an inline run of a trigger that is left to the policy should take, at its 99th percentile.
pub const INLINE_RUN_BUDGET_US: u64 = 250;
/// Microseconds of inline runs per turn of a shard's loop.
pub const INLINE_TURN_BUDGET_US: u64 = 1_000;
/// Of a shard's time that inline runs may take, in per cent.
pub const INLINE_SHARE_PERCENT_MAX: u64 = 30;
/// Runs that are due begin before a write that does not wait for the disk is acknowledged, if together they take less than this:
/// about what the acknowledgement itself takes.
pub const RUNS_BEFORE_ANSWER_US: u64 = 20;
/// Microseconds of CPU time beyond which an event holds the interpreter for long: its trigger is to have one of its own.
pub const LONG_RUN_US: u64 = 5_000;
/// Interpreters of their own that triggers with long runs may have, in the whole process; each shard may have one in any case.
pub const OWN_INTERPRETERS_MAX: usize = 16;
/// Bytes that such interpreters may hold together, with all that their triggers hold in them, before no more are made.
pub const OWN_INTERPRETERS_BYTES_MAX: u64 = 1 << 30;
/// Milliseconds a deferred run may take before it is interrupted.
pub const DEFERRED_DEADLINE_MS: u64 = 60_000;
/// Milliseconds of an inline run that cannot be interrupted after which its code goes into quarantine.
pub const STALL_LIMIT_MS: u64 = 2_000;
/// Milliseconds of such a run after which the process is aborted.
pub const STALL_ABORT_MS: u64 = 10_000;
/// Milliseconds after a deferred run's deadline, which interrupts it, until it is left behind.
pub const DEFERRED_GRACE_MS: u64 = 5_000;
/// Milliseconds that an interpreter has to show that it is sound.
pub const CANARY_MS: u64 = 5_000;
/// Deferred interpreters that the process may give up before it asks for a restart.
pub const INTERPRETERS_GIVEN_UP_MAX: usize = 3;
/// Threads that a shard may leave behind in runs that wait for ever, before its deferred interpreter is given up for them.
pub const THREADS_LEFT_BEHIND_MAX: usize = 16;
/// Worker processes of the process lane at once.
pub const PROCESS_WORKERS_MAX: usize = 64;
/// Runs that may wait for one worker process, the one under way included.
pub const PROCESS_QUEUE_MAX: usize = 64;
/// Milliseconds that a worker process has to start.
pub const PROCESS_START_MS: u64 = 30_000;
/// Milliseconds after a run's deadline, which interrupts it, until its worker process is killed.
pub const PROCESS_KILL_GRACE_MS: u64 = 1_000;
/// Seconds without a run after which a worker process is ended.
pub const PROCESS_IDLE_SECS: u64 = 600;
/// Milliseconds before a worker process that died twice is started again; twice as long after each further death.
pub const PROCESS_RESTART_PAUSE_MIN_MS: u64 = 100;
/// Milliseconds before a worker process is started again, at most.
pub const PROCESS_RESTART_PAUSE_MAX_MS: u64 = 30_000;
/// Queries that one worker process may have under way.
pub const PROCESS_QUERIES_MAX: usize = 16;
/// Bytes of a message between server and worker process; results of queries and rows are beside it.
pub const PROCESS_MESSAGE_BYTES_MAX: usize = 4 * RUN_OUTPUT_BYTES_MAX;
/// Bytes of a packet between server and worker process; what is longer goes beside it, through shared memory.
pub const PROCESS_PACKET_BYTES_MAX: usize = 64 * 1024;
/// Milliseconds after which the server looks after a run that a shard has handed to a worker process itself, if nothing was heard of it.
pub const PROCESS_LOOK_MS: u64 = 20;
/// Bytes kept of what a worker process says on its standard error, for the account of its death.
pub const PROCESS_STDERR_BYTES_MAX: usize = 8 * 1024;
/// Milliseconds that the imports of one plugin may take when they are tried before its first run.
pub const IMPORT_TRIAL_MS: u64 = 20_000;
/// Milliseconds for which a change of a trigger waits for that.
pub const IMPORT_TRIAL_WAIT_MS: u64 = 3_000;
/// Milliseconds for which the first run of a version of a plugin does.
pub const IMPORT_TRIAL_RUN_WAIT_MS: u64 = 1_000;
/// Versions of plugins whose imports wait to be tried.
pub const IMPORT_TRIALS_MAX: usize = 1024;
/// Versions of plugins, and modules, of which is kept what was found.
pub const IMPORT_FINDINGS_MAX: usize = 16 * 1024;
/// Modules in the process that tries imports, beyond which a new one takes its place.
pub const IMPORT_TRIAL_MODULES_MAX: usize = 3_000;
/// Bytes of memory that this process may take.
pub const IMPORT_TRIAL_BYTES_MAX: u64 = 2 << 30;
/// Seconds without anything to try after which it is ended.
pub const IMPORT_TRIAL_IDLE_SECS: u64 = 10;
/// How often a plugin's output may trigger further runs in one chain.
pub const CHAIN_DEPTH_MAX: u8 = 8;
/// How often an event is tried again with `error_behavior=retry` before it is given up.
pub const RETRIES_MAX: u32 = 5;
/// Bytes of dead letters that a shard keeps at hand; beyond it the oldest are forgotten, and that is said.
pub const DEAD_LETTERS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of an event's rows, as line protocol, in the dead letter that it becomes.
pub const DEAD_LETTER_EVENT_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a traceback in a dead letter.
pub const DEAD_LETTER_TRACEBACK_BYTES_MAX: usize = 16 * 1024;
/// Milliseconds before the first repetition; twice as long before each further one.
pub const RETRY_PAUSE_MIN_MS: u64 = 100;
/// Milliseconds between two attempts at most.
pub const RETRY_PAUSE_MAX_MS: u64 = 60_000;
/// Times of a schedule that are made up for at most, with `missed_runs=all`.
pub const SCHEDULE_CATCH_UP_MAX: u64 = 1_000;
/// Missed times of a cron expression that are counted; beyond it their number is a lower bound.
pub const SCHEDULE_COUNTED_MAX: u64 = 1_000;
/// Milliseconds after which a time of a schedule counts as missed although nothing stood against its run.
pub const SCHEDULE_LATE_MS: u64 = 60_000;
/// Milliseconds by which the clock may be set back before schedules start over from the new time.
pub const SCHEDULE_CLOCK_BACK_MS: u64 = 60_000;
/// Milliseconds after which schedules look whether the clock was set, and write down how far they have come.
pub const SCHEDULE_LOOK_MS: u64 = 1_000;
/// Column names that an interpreter keeps as Python strings, per thread; a table has up to `COLUMNS_PER_TABLE_MAX`.
pub const INTERNED_NAMES_MAX: usize = 2 * COLUMNS_PER_TABLE_MAX;
/// Rows of `system.processing_engine_logs` kept per node: so many that plugins said, and as many that the engine says of runs.
pub const LOG_ROWS_MAX: usize = 10_000;
/// Rows of `system.trigger_runs` kept per node.
pub const RUN_RECORDS_MAX: usize = 8_192;
/// Bytes of one log text; the rest is cut and the cut is said.
pub const LOG_TEXT_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(CHUNK_DIRECT_ROWS_MIN <= TAIL_ROWS_MAX, "a batch that fits no tail must become a chunk");
const _: () = assert!(WAL_FRAME_BYTES_MAX.is_multiple_of(WAL_ALIGN), "full frames are aligned");
const _: () =
    assert!(INLINE_RUN_BUDGET_US < INLINE_TURN_BUDGET_US, "a turn has room for several runs that fit their budget");
const _: () = assert!(INLINE_RUN_BUDGET_US * 4 <= LONG_RUN_US, "what may be promoted to the inline lane is not long");
const _: () =
    assert!(INLINE_TURN_BUDGET_US < INLINE_DEADLINE_MS * 1000, "a run is interrupted long after it is too slow");
const _: () = assert!(RUN_OUTPUT_BYTES_MAX <= LINE_BODY_BYTES_MAX, "what a run may queue can be written");
const _: () = assert!(RUN_OUTPUT_BYTES_MAX * 2 < PROCESS_MESSAGE_BYTES_MAX, "what a run may queue fits a message");
const _: () = assert!(
    IMPORT_TRIAL_RUN_WAIT_MS < IMPORT_TRIAL_MS && IMPORT_TRIAL_WAIT_MS < IMPORT_TRIAL_MS,
    "what is not waited for any longer may still be found"
);
const _: () = assert!(RESPONSE_BYTES_MAX < PROCESS_MESSAGE_BYTES_MAX, "an answer fits what a worker process may send");
const _: () = assert!(STATE_BYTES_MAX * 8 < PROCESS_MESSAGE_BYTES_MAX, "a state fits a message");
const _: () = assert!(STATE_BYTES_MAX + RUN_OUTPUT_BYTES_MAX < WAL_RECORD_BYTES_MAX, "rows and state fit one frame");
const _: () = assert!(
    GLOBAL_CACHE_VALUE_BYTES_MAX * 8 < PROCESS_MESSAGE_BYTES_MAX
        && CACHE_SAVED_BYTES_MAX * 8 < PROCESS_MESSAGE_BYTES_MAX,
    "what a cache gives or gets fits a message"
);
const _: () = assert!(HTTP_REQUEST_BYTES_MAX < WAL_RECORD_BYTES_MAX, "a body always fits one record");
const _: () = assert!(
    LINE_BODY_BYTES_MAX + LINE_CACHE_BYTES_MAX < i32::MAX as usize,
    "a dictionary that is full and grows by one body still has 32-bit offsets"
);
const _: () = assert!(QUERY_CONSTANT_BYTES_MAX <= QUERY_STEP_BYTES_MAX, "a constant beside a row fits a step");
const _: () = assert!(QUERY_STEP_BYTES_MAX <= QUERY_VALUE_BYTES_MAX, "only what is made by itself can be too large");
const _: () = assert!(HTTP_REQUEST_BYTES_MAX * 4 <= MAILBOX_BYTES_MAX, "several full bodies fit a mailbox");
