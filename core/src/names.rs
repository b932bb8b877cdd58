//! Names of databases: the rules of the reference, section 3.3, with its exact error texts.

use crate::limits::DB_NAME_BYTES_MAX;

/// Why a database name was refused; the text is what clients see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DbNameError {
    /// No bytes at all.
    #[error("db name cannot be empty")]
    Empty,
    /// The first byte is neither a letter nor a digit.
    #[error("db name did not start with a number or letter")]
    Start,
    /// A byte outside letters, digits, `_`, `-` and one `/`.
    #[error(
        "invalid character in database or rp name: must be ASCII, containing only letters, numbers, underscores, or hyphens"
    )]
    Character,
    /// More than one `/`, or one at the end.
    #[error(
        "db name with invalid retention policy, if providing a retention policy name, must be of form '<db_name>/<rp_name>'"
    )]
    RetentionPolicy,
    /// Longer than the limit.
    #[error("db name too long: max {DB_NAME_BYTES_MAX}")]
    TooLong,
}

/// The database every node has; it cannot be written, created or deleted by users.
pub const INTERNAL_DB: &str = "_internal";

/// Checks a database name: ASCII, first a letter or digit, then `[A-Za-z0-9_-]` and at most one `/` that is not
/// last, 1 to 511 bytes.
///
/// # Errors
/// The first rule that `name` breaks.
pub fn check_db_name(name: &str) -> Result<(), DbNameError> {
    let bytes = name.as_bytes();
    let first = *bytes.first().ok_or(DbNameError::Empty)?;
    if !first.is_ascii_alphanumeric() {
        return Err(DbNameError::Start);
    }
    let mut slash_seen = false;
    for (at, &byte) in bytes.iter().enumerate() {
        match byte {
            b'/' if slash_seen || at + 1 == bytes.len() => {
                return Err(DbNameError::RetentionPolicy);
            }
            b'/' => slash_seen = true,
            b'_' | b'-' => {}
            _ if byte.is_ascii_alphanumeric() => {}
            _ => return Err(DbNameError::Character),
        }
    }
    if bytes.len() > DB_NAME_BYTES_MAX {
        return Err(DbNameError::TooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_reference() {
        for good in ["a", "1", "my_db-2", "db/autogen", &"x".repeat(511)] {
            assert_eq!(check_db_name(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", DbNameError::Empty),
            ("_internal", DbNameError::Start),
            ("a b", DbNameError::Character),
            ("a/", DbNameError::RetentionPolicy),
            ("a/b/c", DbNameError::RetentionPolicy),
            (&"x".repeat(512), DbNameError::TooLong),
        ] {
            assert_eq!(check_db_name(bad), Err(why), "{bad}");
        }
    }
}
