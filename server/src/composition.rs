//! From a configuration to a serving process, and back: the only place where engine, Python, queries and surface meet.
//!
//! Order of start: signals, data directory (its lock), registry, Python (main interpreter, on this thread), queries, `Engine::start`, then the halves
//! that need the engine are given it: the table source of queries, the registry (which puts the enabled triggers in force).
//! Stop goes the other way round, on the first signal and within `shutdown_timeout`; a second signal ends the process at
//! once. Interpreters are never destroyed: the end is a flush and an immediate exit.

mod host;
mod loop_watch;
mod plugins;
mod sql;
mod system;
mod tables;
mod tester;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use saltus_core::ports::{PluginCode, PluginRuntime};
use saltus_python::{PythonConfig, PythonRuntime};
use saltus_shards::data_dir::DataDir;
use saltus_shards::engine::{Engine, EngineHandle};

use crate::config::Config;
use crate::http::metrics::MetricsSource;
use crate::http::{HttpOptions, HttpParts, HttpService};
use crate::logs::PluginLogs;
use crate::quarantine::Quarantine;
use crate::query::{QueryConfig, QueryEngine};
use crate::registry::Registry;
use crate::registry::imports::PluginChecks;
use crate::runs::RunRecords;
use crate::signals::StopSignal;
use crate::traces::{Exporter, Tracer};

/// Rows of `system.queries`.
const QUERY_LOG_ENTRIES: usize = 1000;

/// The engine's handle, once there is an engine: what is built before it holds this.
pub(crate) type LateEngine = Arc<OnceLock<EngineHandle>>;

/// Why the server did not start or did not stop well; the text names the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(pub String);

impl ServeError {
    fn of(error: impl std::fmt::Display) -> Self {
        ServeError(error.to_string())
    }
}

/// Serves until a signal asks to stop.
///
/// # Errors
/// Anything that keeps the server from starting.
pub fn serve(config: Config) -> Result<(), ServeError> {
    let mut signal = StopSignal::install().map_err(ServeError::of)?;
    let mut data_dir = DataDir::open(&config.data_dir, config.accept_loss).map_err(ServeError::of)?;
    let late = LateEngine::default();
    let logs = PluginLogs::open(&config.data_dir).map_err(|error| {
        ServeError(format!("cannot keep plugin logs in {}: {error}", config.data_dir.join("plugin-logs").display()))
    })?;
    let logs = Arc::new(logs);
    let runs = Arc::new(RunRecords::default());
    let collector = logs.start_collector().map_err(ServeError::of)?;
    let registry = Registry::open(&mut data_dir, config.plugin_dir.as_deref()).map_err(ServeError::of)?;
    let sources = system::System::new(late.clone(), registry.clone(), logs.clone(), runs.clone(), &config);
    let query = Arc::new(
        QueryEngine::new(
            Arc::new(tables::Tables::new(late.clone(), registry.clone())),
            Arc::new(sources),
            &query_config(&config),
        )
        .map_err(ServeError::of)?,
    );
    let quarantine = Quarantine::open(&config.data_dir).map_err(ServeError::of)?;
    let (tracer, exporter) = start_traces(&config).map_err(ServeError::of)?;
    let host = Arc::new(host::Host::new(
        logs.clone(),
        runs,
        query.clone(),
        registry.clone(),
        late.clone(),
        quarantine,
        tracer.clone(),
    ));
    let python = start_python(&config, host.clone());
    let sql = Arc::new(sql::Sql::new(query.clone()));
    let service = HttpService::new(HttpParts {
        options: HttpOptions {
            request_bytes_max: config.http_request_bytes_max,
            idle_timeout: config.http_idle_timeout,
            request_timeout: config.http_request_timeout,
            shutdown_timeout: config.shutdown_timeout,
            trigger_kinds: config.trigger_kinds.clone(),
        },
        registry: registry.clone(),
        query: sql.clone(),
        tests: Arc::new(tester::Tester::new(late.clone(), registry.clone(), host.clone(), config.engine().limits)),
        logs: logs.clone(),
        metrics: further_metrics(sql, python.as_ref(), tracer.as_ref()),
        tracer,
    });
    let runtime = python.clone().map(|p| p as Arc<dyn PluginRuntime>);
    let mut engine =
        Engine::start(config.engine(), data_dir, runtime, host, Arc::new(service)).map_err(ServeError::of)?;
    drop(late.set(engine.handle()));
    if let Some(python) = python.clone() {
        let check =
            move |path: &Path, code: &PluginCode, before: Option<&PluginCode>| python.check_version(path, code, before);
        futures_lite::future::block_on(registry.check_versions_with(Box::new(check))).map_err(ServeError::of)?;
    }
    let checks = python.clone().map(|python| plugin_checks(python, &config, logs));
    futures_lite::future::block_on(registry.connect(Box::new(engine.handle()), checks)).map_err(ServeError::of)?;
    let stall = loop_watch::LoopStall { limit: config.loop_stall_limit, backtrace: config.loop_stall_backtrace };
    let watch = loop_watch::start(&engine.handle(), registry.clone(), stall).map_err(ServeError::of)?;
    engine.accept_connections();
    tracing::info!(node = %config.node_id, address = %engine.local_addr(), "serving");
    println!("saltus is serving on http://{}", engine.local_addr());
    let name = signal.wait();
    tracing::info!(signal = name, "stopping; a second signal stops at once");
    let clean = stop(&config, engine, &registry, python);
    drop(watch);
    drop(exporter);
    drop(collector);
    tracing::info!(clean, "stopped");
    if clean {
        Ok(())
    } else {
        Err(ServeError(
            "not everything was finished within --shutdown-timeout; what was acknowledged is durable, unless it was written with no_sync".into(),
        ))
    }
}

fn stop(config: &Config, engine: Engine, registry: &Registry, python: Option<Arc<PythonRuntime>>) -> bool {
    let end = Instant::now() + config.shutdown_timeout;
    let left = || end.saturating_duration_since(Instant::now());
    // Runs in hand may finish in most of the time; the rest is for interrupting them, and for the last cursors after that.
    let patience = left().mul_f64(0.8);
    let mut engine = engine.stop(patience);
    let undisturbed = engine.wait(patience);
    if let Some(python) = python {
        python.stop(left().mul_f64(0.8).min(Duration::from_secs(2)));
    }
    let drained = undisturbed || engine.wait(left());
    registry.stop();
    drained
}

/// What `/metrics` has besides the engine's figures.
fn further_metrics(
    sql: Arc<sql::Sql>,
    python: Option<&Arc<PythonRuntime>>,
    tracer: Option<&Arc<Tracer>>,
) -> Vec<Arc<dyn MetricsSource>> {
    let mut sources: Vec<Arc<dyn MetricsSource>> = vec![sql];
    sources.extend(python.map(|python| Arc::new(plugins::Plugins(python.clone())) as Arc<dyn MetricsSource>));
    sources.extend(tracer.map(|tracer| tracer.clone() as Arc<dyn MetricsSource>));
    sources
}

/// Who traces writes and who sends the spans, if that is wanted.
fn start_traces(config: &Config) -> std::io::Result<(Option<Arc<Tracer>>, Option<Exporter>)> {
    let Some(options) = &config.traces else { return Ok((None, None)) };
    let tracer = Arc::new(Tracer::new(options.ratio));
    let exporter = Exporter::start(tracer.clone(), options.clone())?;
    Ok((Some(tracer), Some(exporter)))
}

fn query_config(config: &Config) -> QueryConfig {
    let at_least_one = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    QueryConfig {
        threads: at_least_one(config.query_threads),
        memory_bytes: usize::try_from(config.query_memory_bytes).unwrap_or(usize::MAX),
        max_concurrent: at_least_one(config.query_concurrency),
        timeout: config.query_timeout,
        query_log_entries: QUERY_LOG_ENTRIES,
        shard_cpus: config.cpus.clone(),
    }
}

/// Where a virtual environment has its packages.
fn site_packages(venv: &Path) -> PathBuf {
    let series = PythonRuntime::python_series();
    let packages = venv.join(format!("lib/python{series}/site-packages"));
    if !packages.is_dir() {
        tracing::warn!(venv = %venv.display(), "the virtual environment is not of Python {series}, which this server embeds: its packages cannot be imported; make it anew with python{series} -m venv");
    }
    packages
}

/// What plugins look for in their environment: where they lie, and which virtual environment is active. What the server was
/// started with stays, but for the environment that is active.
fn plugin_environment(config: &Config) -> Vec<(String, String)> {
    let text = |path: &Path| std::path::absolute(path).as_deref().unwrap_or(path).to_string_lossy().into_owned();
    let mut variables = Vec::new();
    for name in ["PLUGIN_DIR", "INFLUXDB3_PLUGIN_DIR"] {
        if let Some(directory) = config.plugin_dir.as_deref().filter(|_| std::env::var_os(name).is_none()) {
            variables.push((name.to_owned(), text(directory)));
        }
    }
    if let Some(venv) = &config.virtual_env {
        let path = std::env::var("PATH").unwrap_or_default();
        variables.push(("VIRTUAL_ENV".to_owned(), text(venv)));
        variables.push(("PATH".to_owned(), format!("{}:{path}", text(&venv.join("bin")))));
    }
    variables
}

/// What is found out about plugins before they run.
fn plugin_checks(python: Arc<PythonRuntime>, config: &Config, logs: Arc<PluginLogs>) -> PluginChecks {
    let compiles = python.clone();
    PluginChecks {
        source: Box::new(move |source, file_name| compiles.check_source(source, file_name)),
        imports: Box::new(move |code, told| python.try_imports(code, told)),
        virtual_env: config.virtual_env.clone(),
        log: Box::new(move |line| logs.log(line)),
    }
}

/// Python trouble never stops the database: it is degraded, and says why.
fn start_python(config: &Config, host: Arc<host::Host>) -> Option<Arc<PythonRuntime>> {
    config.plugin_dir.as_ref()?;
    let python = PythonConfig {
        plugin_dir: config.plugin_dir.clone(),
        site_packages: config.virtual_env.iter().map(|venv| site_packages(venv)).collect(),
        environment: plugin_environment(config),
        deferred_workers: config.deferred_workers,
        own_interpreters: config.own_interpreters,
        own_interpreters_memory: config.own_interpreters_memory,
        shard_cpus: config.cpus.iter().copied().collect(),
        hardened: config.python_hardened,
        stall_limit: config.stall_limit,
        deferred_grace: config.deferred_grace,
        stall_abort: config.stall_abort,
        cache_file: Some(config.data_dir.join("plugin-caches")),
        restore_caches: config.restore_caches,
        ..PythonConfig::default()
    };
    match PythonRuntime::start(python, host) {
        Ok(runtime) => {
            tracing::info!(version = %runtime.python_version(), "Python is ready");
            Some(runtime)
        }
        Err(error) => {
            tracing::error!(%error, "Python cannot be used: triggers will not run until this is mended");
            None
        }
    }
}
