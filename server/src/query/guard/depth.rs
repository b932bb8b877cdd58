//! How deep the tree of a statement may become, told from its text.
//!
//! Trees are walked and dropped by recursion, and a stack that ends takes the process along. The parser bounds what is nested in the
//! text; what it does not bound are chains, `1 + 1 + 1 ...`, which become trees as deep as they are long. A pass over the text
//! counts them. It may count too much (a sign before a number), never too little by more than a few.

use saltus_core::limits::QUERY_DEPTH_MAX;

use crate::query::QueryError;

/// Words that join what is before them to what is behind them, or stand before something.
const JOINING: &[&str] = &[
    "and",
    "or",
    "not",
    "is",
    "like",
    "ilike",
    "similar",
    "between",
    "in",
    "collate",
    "at",
    "union",
    "except",
    "intersect",
    "join",
    "div",
    "xor",
    "overlaps",
];

/// Refuses a statement whose tree would be too deep.
pub(crate) fn check_depth(sql: &str) -> Result<(), QueryError> {
    if sql.len() <= QUERY_DEPTH_MAX {
        return Ok(());
    }
    let depth = depth(sql.as_bytes());
    if depth <= QUERY_DEPTH_MAX {
        return Ok(());
    }
    Err(QueryError::Planning(format!(
        "Error during planning: the statement joins {depth} terms in one chain, the limit is {QUERY_DEPTH_MAX}: use IN for a list of \
         values, or several statements"
    )))
}

/// The longest chain, those around it included.
fn depth(sql: &[u8]) -> usize {
    // The chain of each bracket that is open.
    let mut open = vec![0_usize];
    let (mut sum, mut deepest, mut at) = (0_usize, 0, 0);
    while at < sql.len() {
        let (end, kind) = token(sql, at);
        match kind {
            Kind::Joins => {
                if let Some(chain) = open.last_mut() {
                    *chain += 1;
                }
                sum += 1;
                deepest = deepest.max(sum);
            }
            Kind::Opens => open.push(0),
            Kind::Closes if open.len() > 1 => sum -= open.pop().unwrap_or(0),
            Kind::Parts => sum -= open.last_mut().map_or(0, std::mem::take),
            Kind::Closes | Kind::Other => {}
        }
        at = end;
    }
    deepest
}

enum Kind {
    Joins,
    Opens,
    Closes,
    /// A comma or the end of a statement.
    Parts,
    Other,
}

/// The end of the token that begins at `at`, and what it is.
fn token(sql: &[u8], at: usize) -> (usize, Kind) {
    let while_ = |from: usize, fits: fn(u8) -> bool| {
        from + sql[from..].iter().position(|byte| !fits(*byte)).unwrap_or(sql.len() - from)
    };
    match sql[at] {
        quote @ (b'\'' | b'"' | b'`') => {
            let end = sql[at + 1..].iter().position(|byte| *byte == quote);
            (end.map_or(sql.len(), |end| at + end + 2), Kind::Other)
        }
        b'-' if sql[at..].starts_with(b"--") => (while_(at, |byte| byte != b'\n'), Kind::Other),
        b'/' if sql[at..].starts_with(b"/*") => {
            let end = sql[at + 2..].windows(2).position(|pair| pair == b"*/");
            (end.map_or(sql.len(), |end| at + end + 4), Kind::Other)
        }
        b'(' => (at + 1, Kind::Opens),
        b')' => (at + 1, Kind::Closes),
        b',' | b';' => (at + 1, Kind::Parts),
        byte if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 => {
            let end = while_(at, |byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80);
            let word = &sql[at..end];
            let joins = JOINING.iter().any(|joining| word.eq_ignore_ascii_case(joining.as_bytes()));
            (end, if joins { Kind::Joins } else { Kind::Other })
        }
        byte if byte.is_ascii_whitespace() || byte == b']' => (at + 1, Kind::Other),
        // An operator, a subscript, a dot between names.
        b'[' | b'.' => (at + 1, Kind::Joins),
        _ => (at + 1, Kind::Joins),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_count_and_lists_do_not() {
        for (sql, expected) in [
            ("SELECT 1", 0),
            ("SELECT 1 + 2 + 3", 2),
            ("SELECT 1, 2 + 3, 4", 1),
            ("SELECT (1 + 2) * (3 + 4 + 5)", 3),
            ("SELECT f(1 + 2, 3 + 4)", 1),
            ("SELECT 'a + b + c -- d' || \"x+y\" -- e + f\n /* g + h */", 2),
            ("SELECT a FROM t WHERE a = 1 AND b = 2 or not c", 5),
            ("SELECT 'it''s' + 1", 1),
            ("SELECT x::int::text[1][2]", 6),
            ("SELECT a UNION ALL SELECT b union select c", 2),
            ("SELECT \"unclosed + ", 0),
            ("SELECT )))) + 1", 1),
            ("", 0),
        ] {
            assert_eq!(depth(sql.as_bytes()), expected, "{sql}");
        }
    }

    #[test]
    fn a_chain_that_is_too_long_is_refused_and_a_long_list_is_not() {
        let chain = |with: &str, terms: usize| format!("SELECT {}", vec!["1"; terms].join(with));
        assert!(check_depth(&chain(" + ", QUERY_DEPTH_MAX)).is_ok());
        assert!(check_depth(&chain(", ", 100_000)).is_ok());
        assert!(check_depth(&format!("SELECT a FROM t WHERE a IN ({})", vec!["-1.5"; 100_000].join(","))).is_ok());
        for with in [" + ", " OR ", "||", " union select ", "::", "+(1)+"] {
            let error = check_depth(&chain(with, QUERY_DEPTH_MAX + 2)).unwrap_err();
            assert!(error.to_string().contains(&format!("the limit is {QUERY_DEPTH_MAX}")), "{error}");
        }
    }
}
