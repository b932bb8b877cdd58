//! Why a query failed, by what the caller should do about it.
//!
//! Texts are shown to users: they name what the user wrote (tables, columns, functions), never files or source positions.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// Why a query failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// There is no such database (404).
    #[error("query error: database not found: {0}")]
    DatabaseNotFound(String),
    /// The statement cannot be planned: fix it (400).
    #[error("{0}")]
    Planning(String),
    /// The statement is no question, or uses what is not there (405).
    #[error("{0}")]
    NotImplemented(String),
    /// The statement was fine and failed all the same (500).
    #[error("{0}")]
    Execution(String),
    /// The query did not end within its time: ask for less (400).
    #[error("{0}")]
    TimedOut(String),
    /// The query needs more memory than queries may have: ask for less (400).
    #[error("{0}")]
    TooLarge(String),
    /// Others have what the query needs now: ask later (503).
    #[error("{0}")]
    ResourcesExhausted(String),
}

impl QueryError {
    /// The text of `QueryError` in a plugin (reference, 1.4).
    pub fn plugin_text(&self, db: &str, sql: &str) -> String {
        match self {
            QueryError::Planning(_) | QueryError::NotImplemented(_) => {
                format!("error: error while planning query: {self} executing query on {db}: {sql}")
            }
            _ => format!("error: {self} executing query on {db}: {sql}"),
        }
    }
}

/// Which of a query's two halves failed: what DataFusion calls an execution error while it plans (a literal that is no
/// timestamp, say) is the user's to fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Planning,
    Execution,
}

impl Phase {
    /// Sorts DataFusion's error into our kinds.
    pub(super) fn error(self, error: &DataFusionError) -> QueryError {
        let root = error.find_root();
        let text = || root.strip_backtrace();
        match root {
            DataFusionError::External(inner) => match inner.downcast_ref::<QueryError>() {
                Some(own) => own.clone(),
                None => QueryError::Execution("external error".to_owned()),
            },
            DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::SQL(..) => {
                QueryError::Planning(text())
            }
            DataFusionError::NotImplemented(_) => QueryError::NotImplemented(text()),
            DataFusionError::ResourcesExhausted(_) => out_of_memory(),
            DataFusionError::ArrowError(inner, _) => self.arrow(inner),
            // What DataFusion's streams say when the runtime that fed them is gone (its physical plan's `stream.rs`).
            DataFusionError::Execution(text) if text.starts_with("Non Panic Task error") => aborted(),
            DataFusionError::ExecutionJoin(task) if task.is_cancelled() => aborted(),
            DataFusionError::Execution(_) => self.by_phase(text()),
            DataFusionError::Internal(message) => QueryError::Execution(internal(message)),
            DataFusionError::Collection(errors) => match errors.first() {
                Some(first) => self.error(first),
                None => QueryError::Execution("unknown error".to_owned()),
            },
            DataFusionError::IoError(_) => QueryError::Execution("input or output failed".to_owned()),
            _ => QueryError::Execution(text()),
        }
    }

    fn arrow(self, error: &ArrowError) -> QueryError {
        match error {
            ArrowError::NotYetImplemented(_) => QueryError::NotImplemented(error.to_string()),
            ArrowError::MemoryError(_) => out_of_memory(),
            ArrowError::OffsetOverflowError(_) => too_long_for_a_column(),
            ArrowError::IoError(..) => QueryError::Execution("input or output failed".to_owned()),
            _ => self.by_phase(error.to_string()),
        }
    }

    fn by_phase(self, text: String) -> QueryError {
        match self {
            Phase::Planning => QueryError::Planning(text),
            Phase::Execution => QueryError::Execution(text),
        }
    }
}

/// A query whose task ended without a word.
pub(super) fn aborted() -> QueryError {
    QueryError::Execution("the query was aborted".to_owned())
}

impl From<QueryError> for DataFusionError {
    fn from(error: QueryError) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

/// A step of the query made more of one column than a column holds.
pub(super) fn too_long_for_a_column() -> QueryError {
    QueryError::TooLarge(format!(
        "the query makes texts or lists of more than {} bytes in one step, which is more than a column can hold (the bound of \
         --query-memory aside): make shorter ones",
        i32::MAX
    ))
}

/// What it is is said by the query's guard, which knows the bound and who has it.
fn out_of_memory() -> QueryError {
    QueryError::ResourcesExhausted("the query needs more memory than queries may use".to_owned())
}

/// The first line only: what follows asks to report the bug to DataFusion.
fn internal(message: &str) -> String {
    format!("internal error: {}", message.lines().next().unwrap_or_default())
}
