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
    /// What the statement asks for cannot be computed from the values that it met: a cast, a division by zero, an integer
    /// that overflows, a pattern that is none (400).
    #[error("{0}")]
    Invalid(String),
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
/// timestamp, say) has the words of planning.
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
                None => self.external(&inner.to_string()),
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
            // What its functions say about their arguments.
            DataFusionError::Execution(_) => self.users(text()),
            // Its type coercion calls these bugs of its own.
            DataFusionError::Internal(message) if is_of_types(message) => QueryError::Planning(first_line(message)),
            DataFusionError::Internal(message) => match pattern(message) {
                Some(text) => self.users(text),
                None => QueryError::Execution(internal(message)),
            },
            DataFusionError::Collection(errors) => match errors.first() {
                Some(first) => self.error(first),
                None => QueryError::Execution("unknown error".to_owned()),
            },
            DataFusionError::IoError(_) => QueryError::Execution("input or output failed".to_owned()),
            _ => QueryError::Execution(text()),
        }
    }

    /// Errors of values are the user's; those of arrays that do not fit together are the engine's.
    fn arrow(self, error: &ArrowError) -> QueryError {
        let text = || pattern(&error.to_string()).unwrap_or_else(|| error.to_string());
        match error {
            ArrowError::NotYetImplemented(_) => QueryError::NotImplemented(text()),
            ArrowError::MemoryError(_) => out_of_memory(),
            ArrowError::OffsetOverflowError(_) => too_long_for_a_column(),
            ArrowError::IoError(..) => QueryError::Execution("input or output failed".to_owned()),
            ArrowError::ExternalError(inner) => match inner.downcast_ref::<QueryError>() {
                Some(own) => own.clone(),
                None => self.external(&inner.to_string()),
            },
            ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::ComputeError(_)
            | ArrowError::DivideByZero
            | ArrowError::ArithmeticOverflow(_) => self.users(text()),
            ArrowError::InvalidArgumentError(inner) if is_of_shape(inner) => QueryError::Execution(text()),
            ArrowError::InvalidArgumentError(_) => self.users(text()),
            _ => QueryError::Execution(text()),
        }
    }

    /// What another library says: a pattern that is none is the user's.
    fn external(self, text: &str) -> QueryError {
        match pattern(text) {
            Some(text) => self.users(text),
            None => QueryError::Execution(format!("external error: {}", text.lines().next().unwrap_or_default())),
        }
    }

    fn users(self, text: String) -> QueryError {
        match self {
            Phase::Planning => QueryError::Planning(text),
            Phase::Execution => QueryError::Invalid(text),
        }
    }
}

/// What Arrow says of batches and arrays whose parts do not belong together, which no statement can mend.
fn is_of_shape(text: &str) -> bool {
    ["schema", "same length", "number of columns", "different lengths", "length mismatch", "column types"]
        .iter()
        .any(|shape| text.contains(shape))
}

/// One line about a regular expression that is none; `None` if the text is not about one.
///
/// The library's own text draws the pattern over several lines: `regex parse error:`, the pattern, a mark, `error: ...`.
fn pattern(text: &str) -> Option<String> {
    if text.contains("exceeds size limit") {
        return Some("the regular expression is too large".to_owned());
    }
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.ends_with("regex parse error:"));
    let pattern = lines.nth(1)?;
    let cause = lines.find_map(|line| line.strip_prefix("error: "))?;
    Some(format!("'{pattern}' is no regular expression: {cause}"))
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

/// What is said of types that a statement puts together.
fn is_of_types(message: &str) -> bool {
    ["Failed to coerce types", "There isn't a common type to coerce", "Cannot run range queries on datatype"]
        .iter()
        .any(|start| message.starts_with(start))
}

/// The first line only: what follows asks to report the bug to DataFusion.
fn internal(message: &str) -> String {
    format!("internal error: {}", first_line(message))
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_is_none_is_named_in_one_line() {
        let drawn = "regex parse error:\n    a(\n     ^\nerror: unclosed group";
        assert_eq!(pattern(drawn).unwrap(), "'a(' is no regular expression: unclosed group");
        let debug = format!("Regular expression did not compile: Syntax(\n{}\n{drawn}\n)", "~".repeat(79));
        assert_eq!(pattern(&debug).unwrap(), "'a(' is no regular expression: unclosed group");
        assert_eq!(pattern("something else"), None);
    }

    #[test]
    fn errors_of_values_are_the_users_and_errors_of_shape_are_not() {
        let of = |error: ArrowError| Phase::Execution.error(&DataFusionError::from(error));
        let values = [
            ArrowError::CastError("Cannot cast string 'a' to value of Int64 type".into()),
            ArrowError::ParseError("no number".into()),
            ArrowError::DivideByZero,
            ArrowError::ArithmeticOverflow("1 + 1".into()),
            ArrowError::ComputeError("Timestamp out of range".into()),
            ArrowError::InvalidArgumentError("999 is too large to store in a Decimal128 of precision 2".into()),
        ];
        for error in values {
            let text = error.to_string();
            assert!(matches!(of(error), QueryError::Invalid(_)), "{text}");
        }
        let shapes = [
            ArrowError::InvalidArgumentError("column types must match schema types".into()),
            ArrowError::InvalidArgumentError("all columns in a record batch must have the same length".into()),
            ArrowError::SchemaError("no such field".into()),
        ];
        for error in shapes {
            let text = error.to_string();
            assert!(matches!(of(error), QueryError::Execution(_)), "{text}");
        }
        let internal = DataFusionError::Internal("a bug\nreport it".into());
        assert_eq!(Phase::Execution.error(&internal), QueryError::Execution("internal error: a bug".into()));
    }
}
