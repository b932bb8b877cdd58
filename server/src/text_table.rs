//! Small tables of text, drawn as the `pretty` result format draws them.
//!
//! For lists of names that are at hand as strings; results of queries are drawn by the query side.

use std::fmt::Write as _;

/// A table of text cells.
#[derive(Clone, Debug, Default)]
pub struct TextTable {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Self {
        TextTable { headings: headings.iter().map(|&h| h.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len(), "a row fills the table");
        self.rows.push(cells);
    }

    /// The table with lines drawn in ASCII; no newline at the end.
    pub fn pretty(&self) -> String {
        let widths: Vec<usize> = (0..self.headings.len()).map(|at| self.width(at)).collect();
        let line: String = widths.iter().map(|w| format!("+{}", "-".repeat(w + 2))).collect::<String>() + "+";
        let mut out = format!("{line}\n{}\n{line}\n", draw_row(&self.headings, &widths));
        for row in &self.rows {
            let _ = writeln!(out, "{}", draw_row(row, &widths));
        }
        if self.rows.is_empty() {
            out.pop();
            return out;
        }
        out + &line
    }

    /// One header line, then one line per row; RFC 4180 quoting.
    pub fn csv(&self) -> String {
        std::iter::once(&self.headings)
            .chain(&self.rows)
            .map(|row| row.iter().map(|c| csv_cell(c)).collect::<Vec<_>>().join(",") + "\n")
            .collect()
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[column].chars().count());
        cells.chain([self.headings[column].chars().count()]).max().unwrap_or(0)
    }
}

fn draw_row(cells: &[String], widths: &[usize]) -> String {
    cells.iter().zip(widths).map(|(cell, width)| format!("| {cell:<width$} ")).collect::<String>() + "|"
}

fn csv_cell(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::new(&["name", "n"]);
        table.row(vec!["alpha".into(), "1".into()]);
        assert_eq!(table.pretty(), "+-------+---+\n| name  | n |\n+-------+---+\n| alpha | 1 |\n+-------+---+");
    }

    #[test]
    fn csv_cells_with_separators_are_quoted() {
        let mut table = TextTable::new(&["a"]);
        table.row(vec!["x,\"y\"".into()]);
        assert_eq!(table.csv(), "a\n\"x,\"\"y\"\"\"\n");
    }
}
