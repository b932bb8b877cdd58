//! Lines of the log, each read with the grammar that it was accepted with.

use bytes::Bytes;

use super::{Grammar, LineParser, ParsedWrite, Precision, SchemaSource};

/// Parsers for all grammars that lines of the log can be of.
#[derive(Default)]
pub struct LogParser {
    current: LineParser,
    /// Made when it is needed: most logs have no such lines.
    first: Option<Box<LineParser>>,
}

impl LogParser {
    /// One that reads lines of the current grammar with `current`, whose caches it fills.
    pub fn new(current: LineParser) -> Self {
        LogParser { current, first: None }
    }

    /// The parser of the current grammar.
    pub fn into_current(self) -> LineParser {
        self.current
    }

    /// Reads lines that were accepted by a parser of `version`.
    ///
    /// # Errors
    /// A line is refused, or the version is one of a newer program.
    pub fn parse(
        &mut self,
        version: u8,
        db: &str,
        lines: &Bytes,
        precision: Precision,
        schemas: &dyn SchemaSource,
    ) -> Result<ParsedWrite, String> {
        let parser = match Grammar::of_version(version) {
            Some(Grammar::Current) => &mut self.current,
            Some(Grammar::First) => {
                self.first.get_or_insert_with(|| Box::new(LineParser::with_grammar(Grammar::First))).as_mut()
            }
            None => {
                return Err(format!(
                    "the lines are of version {version} of line protocol, which this program does not know; a newer one wrote them"
                ));
            }
        };
        let parsed = parser.parse(db, lines, precision, false, schemas);
        match parsed.rejected.first() {
            None => Ok(parsed),
            Some(line) => Err(format!(
                "the line {:?}, accepted before, is refused now: {}; this is a bug or a log of a newer version",
                line.original_line, line.message
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::{Known, outcome_of};
    use super::super::oracle::Cell;
    use super::*;

    type Rows = Vec<(String, Vec<(String, Cell)>)>;

    fn rows(parser: &mut LogParser, version: u8, lines: &str) -> Result<Rows, String> {
        let body = Bytes::from(lines.to_owned());
        let parsed = parser.parse(version, "db", &body, Precision::Nanosecond, &Known::default())?;
        let tables = outcome_of(parsed).tables.into_iter();
        Ok(tables
            .flat_map(|t| t.rows.into_iter().map(move |r| (t.name.clone(), r.cells.into_iter().collect())))
            .collect())
    }

    fn tag(text: &str) -> Cell {
        Cell::Tag(text.to_owned())
    }

    #[test]
    fn lines_keep_the_meaning_that_they_were_accepted_with() {
        let mut parser = LogParser::default();
        let float = |value: f64| Cell::Float(value.to_bits());
        for (line, table, cells) in [
            ("m,a,b=1 v=1 1", "m", vec![("a,b", tag("1")), ("v", float(1.0))]),
            ("m v=1,w,x=2 1", "m", vec![("v", float(1.0)), ("w,x", float(2.0))]),
            ("\u{feff}cpu v=1 1", "\u{feff}cpu", vec![("v", float(1.0))]),
            ("m,p=C:\\\\x v=1 1", "m", vec![("p", tag("C:\\x")), ("v", float(1.0))]),
        ] {
            let cells = cells.into_iter().map(|(name, cell)| (name.to_owned(), cell)).collect();
            // Twice, since the second time the series is known.
            for _ in 0..2 {
                assert_eq!(rows(&mut parser, 1, line).unwrap(), [(table.to_owned(), Vec::clone(&cells))], "{line}");
            }
        }
        assert!(rows(&mut parser, 2, "m,a,b=1 v=1 1").unwrap_err().contains("is refused now: Tag set malformed"));
        let trailing = rows(&mut parser, 2, "m,p=C:\\\\ v=1 1").unwrap();
        assert_eq!(trailing[0].1[0], ("p".to_owned(), tag("C:\\")));
        assert!(rows(&mut parser, 3, "m v=1 1").unwrap_err().contains("version 3 of line protocol"));
    }
}
