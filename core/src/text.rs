//! What text begins with before it begins.

/// U+FEFF in UTF-8, which some editors and tools put in front of a text.
pub const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A text without the byte order mark that it may begin with.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mark_is_taken_from_the_front_and_none_from_elsewhere() {
        for (text, without) in [("", ""), ("\u{feff}", ""), ("\u{feff}a", "a"), ("a\u{feff}", "a\u{feff}")] {
            assert_eq!(without_mark(text), without);
            assert_eq!(text.len() - without.len(), if text.as_bytes().starts_with(BYTE_ORDER_MARK) { 3 } else { 0 });
        }
    }
}
