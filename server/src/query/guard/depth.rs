//! How deep the tree of a statement may become, told from its text.
//!
//! Trees are walked and dropped by recursion, and a stack that ends takes the process along. The parser bounds what is nested in the
//! text; what it does not bound are chains, `1 + 1 + 1 ...`, which become trees as deep as they are long. A pass over the text
//! counts them. It may count too much (a sign before a number), never too little by more than a few.

use saltus_core::limits::QUERY_DEPTH_MAX;

use crate::query::QueryError;

/// Words that join what is before them to what is behind them, or stand before something.
const JOINING: &[&str] =
    &["not", "is", "like", "ilike", "similar", "between", "in", "collate", "at", "div", "overlaps"];

/// Words between which there are terms of their own: what is joined within one of them does not count for the next.
const LINKING: &[&str] = &["and", "or", "xor", "union", "except", "intersect", "join"];

/// Operators of two signs.
const PAIRS: &[&[u8]] = &[b"||", b"::", b"<=", b">=", b"<>", b"!=", b"->", b"=>", b">>", b"<<", b"&&", b"=="];

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
    // Of each bracket that is open: links, and what is joined since the last of them.
    let mut open = vec![(0_usize, 0_usize)];
    let (mut sum, mut deepest, mut at) = (0_usize, 0, 0);
    while at < sql.len() {
        let (end, kind) = token(sql, at);
        at = end;
        match kind {
            Kind::Opens => open.push((0, 0)),
            Kind::Closes if open.len() > 1 => sum -= open.pop().map_or(0, |(links, joined)| links + joined),
            Kind::Closes | Kind::Other => {}
            Kind::Joins | Kind::Links | Kind::Parts => {
                let Some((links, joined)) = open.last_mut() else { continue };
                sum -= *links + *joined;
                (*links, *joined) = match kind {
                    Kind::Joins => (*links, *joined + 1),
                    Kind::Links => (*links + 1, 0),
                    _ => (0, 0),
                };
                sum += *links + *joined;
                deepest = deepest.max(sum);
            }
        }
    }
    deepest
}

enum Kind {
    Joins,
    Links,
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
            let is_one_of = |words: &[&str]| words.iter().any(|known| word.eq_ignore_ascii_case(known.as_bytes()));
            let kind = match () {
                () if is_one_of(LINKING) => Kind::Links,
                () if is_one_of(JOINING) => Kind::Joins,
                () => Kind::Other,
            };
            (end, kind)
        }
        byte if byte.is_ascii_whitespace() || byte == b']' => (at + 1, Kind::Other),
        // An operator, a subscript, a dot between names.
        _ if sql.get(at..at + 2).is_some_and(|pair| PAIRS.contains(&pair)) => (at + 2, Kind::Joins),
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
            ("SELECT 'a + b + c -- d' || \"x+y\" -- e + f\n /* g + h */", 1),
            ("SELECT a FROM t WHERE a = 1 AND b = 2 or not c", 3),
            ("SELECT 'it''s' + 1", 1),
            ("SELECT x::int::text[1][2]", 4),
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
