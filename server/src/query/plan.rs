//! From a statement to a physical plan.
//!
//! What may be asked is an allow-list of statements; DataFusion's own check of the logical plan stands behind it, for what
//! hides inside a question (`SELECT ... INTO`).

use std::sync::Arc;

use datafusion::common::config::Dialect;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::QueryError;
use super::catalog::{Catalogs, INTERNAL_DB, QueryCatalog, Sources};
use super::error::Phase;
use super::guard::check_depth;
use super::hints;
use super::request::{QueryRequest, param_values};
use super::table::PARALLEL_ROWS_MIN;

/// A plan, and the session that it was made in and runs in.
pub(super) struct Planned {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    pub(super) session: SessionState,
    /// Held by a query that uses several threads.
    pub(super) several: Option<OwnedSemaphorePermit>,
}

/// Plans `request` in a copy of `base`: for several threads if it reads many rows and `several` has room, else for one.
pub(super) async fn plan(
    base: &SessionState,
    sources: &Sources,
    request: &QueryRequest,
    several: &Arc<Semaphore>,
) -> Result<Planned, QueryError> {
    let db = request.db.as_deref();
    if let Some(missing) = db.filter(|db| *db != INTERNAL_DB && !sources.database_exists(db)) {
        return Err(QueryError::DatabaseNotFound(missing.to_owned()));
    }
    let catalog = Arc::new(QueryCatalog::new(sources.clone(), db));
    let mut session = base.clone();
    session.register_catalog_list(Arc::new(Catalogs(catalog.clone())));
    session.mark_start_execution();
    let failed = |error: DataFusionError| {
        let tables = || sources.table_names(db);
        hints::explain(Phase::Planning.error(&error), &error, request, tables)
    };
    let logical = logical_plan(&session, request, failed).await?;
    let many = catalog.rows_hint() >= PARALLEL_ROWS_MIN && session.config().target_partitions() > 1;
    let several = if many { several.clone().try_acquire_owned().ok() } else { None };
    if several.is_none() {
        session.config_mut().options_mut().execution.target_partitions = 1;
        session.mark_start_execution();
    }
    let plan = session.create_physical_plan(&logical).await.map_err(failed)?;
    Ok(Planned { plan, session, several })
}

async fn logical_plan(
    session: &SessionState,
    request: &QueryRequest,
    failed: impl Fn(DataFusionError) -> QueryError,
) -> Result<LogicalPlan, QueryError> {
    check_depth(&request.sql)?;
    let statement = session.sql_to_statement(&request.sql, &Dialect::Generic).map_err(&failed)?;
    allow(&statement)?;
    let plan = session.statement_to_plan(statement).await.map_err(&failed)?;
    let questions = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    questions.verify_plan(&plan).map_err(|_| not_a_question("SELECT INTO"))?;
    plan.with_param_values(param_values(&request.params)).map_err(failed)
}

fn allow(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Explain(explain) => allow(&explain.statement),
        Statement::Statement(sql) => allow_sql(sql),
        other => Err(not_a_question(&first_word(other))),
    }
}

fn allow_sql(statement: &SqlStatement) -> Result<(), QueryError> {
    match statement {
        SqlStatement::Explain { statement, .. } => allow_sql(statement),
        SqlStatement::Query(_)
        | SqlStatement::ExplainTable { .. }
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ShowVariable { .. } => Ok(()),
        other => Err(not_a_question(&first_word(other))),
    }
}

fn first_word(statement: &impl ToString) -> String {
    statement.to_string().split_whitespace().next().unwrap_or_default().to_owned()
}

fn not_a_question(statement: &str) -> QueryError {
    QueryError::NotImplemented(format!("This feature is not implemented: Unsupported SQL statement: {statement}"))
}
