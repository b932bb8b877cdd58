//! Answers of SQL that must be right, and errors of queries that say what to write instead.
