//! Lines of a text that is not parsed: for those who send it in pieces, join texts, or look for the line that was refused.
//!
//! Lines end here where they end for the parser, which has the same functions at its bottom: a quote means something only behind
//! an `=` of the fields, and a string takes its line ends with it.

use super::line_end;
use crate::text::BYTE_ORDER_MARK;

/// A line of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Behind its text, the line end excluded.
    pub end: usize,
    /// Where the next line begins.
    pub next: usize,
    /// Whether it counts: it is neither blank nor a comment, or it is no UTF-8 and will be refused.
    pub counts: bool,
    /// Whether it ends by itself. The last line of a text need not, and what is put behind it goes on with it: in a string that
    /// is not closed even behind a line end.
    pub ended: bool,
}

/// The line of `text` that begins at `from`, which is the text's begin or where a line before it ended.
pub fn line_at(text: &[u8], from: usize) -> Line {
    let mut first = from;
    loop {
        first += text[first..].iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
        if !text[first..].starts_with(BYTE_ORDER_MARK) {
            break;
        }
        first += BYTE_ORDER_MARK.len();
    }
    let (end, next) = line_end(text, first, first);
    let blank = first >= end;
    let comment = text.get(first) == Some(&b'#');
    let counts = if blank || comment { std::str::from_utf8(&text[from..end]).is_err() } else { true };
    Line { end, next, counts, ended: next > from && text[next - 1] == b'\n' && next > end }
}

/// What a text is, as far as it matters to whoever puts others behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// How many lines count.
    pub lines: usize,
    /// Its last line has a string that does not end, which would swallow what is put behind it.
    pub open: bool,
}

/// Looks at a whole text.
pub fn look_at(text: &[u8]) -> Text {
    let mut found = Text::default();
    let mut from = 0;
    while from < text.len() {
        let line = line_at(text, from);
        found.lines += usize::from(line.counts);
        // What ends no line in front of a line end is in a string.
        found.open = !line.ended && line.counts && is_open(&text[from..]);
        from = line.next;
    }
    found
}

/// Whether a line would go on behind a line end put behind it.
fn is_open(line: &[u8]) -> bool {
    let mut longer = Vec::with_capacity(line.len() + 1);
    longer.extend_from_slice(line);
    longer.push(b'\n');
    !line_at(&longer, 0).ended
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every line of a text: what is in it, and whether it counts.
    fn lines(text: &str) -> Vec<(&str, bool)> {
        let (mut all, mut from) = (Vec::new(), 0);
        while from < text.len() {
            let line = line_at(text.as_bytes(), from);
            all.push((&text[from..line.end], line.counts));
            from = line.next;
        }
        all
    }

    #[test]
    fn lines_end_where_the_parser_ends_them() {
        for (text, expected) in [
            ("a f=1\nb f=2", vec![("a f=1", true), ("b f=2", true)]),
            ("a f=1\r\n\r\n# \"c\n", vec![("a f=1", true), ("", false), ("# \"c", false)]),
            ("a f=\"x\ny\"\nb f=2\n", vec![("a f=\"x\ny\"", true), ("b f=2", true)]),
            ("m,h=q k\"ey=1 1\nb f=2\n", vec![("m,h=q k\"ey=1 1", true), ("b f=2", true)]),
            ("m\"x,t=\"y f=1\nb f=2\n", vec![("m\"x,t=\"y f=1", true), ("b f=2", true)]),
            ("a f=\"x\\\"\nb f=2\n", vec![("a f=\"x\\\"\nb f=2\n", true)]),
            (
                "\u{feff}# c\n\u{feff}a f=1\n\u{feff}\n",
                vec![("\u{feff}# c", false), ("\u{feff}a f=1", true), ("\u{feff}", false)],
            ),
            ("a,t=x\\ f=\"\nb f=2", vec![("a,t=x\\ f=\"", true), ("b f=2", true)]),
        ] {
            assert_eq!(lines(text), expected, "{text:?}");
        }
        assert!(line_at(b"# caf\xe9\n", 0).counts, "it is refused, and so it counts");
    }

    #[test]
    fn a_text_is_open_if_a_string_in_it_is() {
        for (text, lines, open) in [
            ("", 0, false),
            ("\n \n# c", 0, false),
            ("m f=1", 1, false),
            ("m f=1\n", 1, false),
            ("m f=\"a\" 1", 1, false),
            ("m f=\"a", 1, true),
            ("m f=\"a\n", 1, true),
            ("m f=\"a\\\"", 1, true),
            ("m f=1\\", 1, false),
            ("m f=1\nm f=\"a\nm f=2", 2, true),
            ("# \"c", 0, false),
        ] {
            assert_eq!(look_at(text.as_bytes()), Text { lines, open }, "{text:?}");
        }
    }
}
