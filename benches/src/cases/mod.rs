//! The cases: one table, from which both kinds of benchmarks and the tests take them.
//!
//! **Contract.** [`Measured::run`] is what is measured, and nothing else: what it needs is made by [`Measured::reset`]
//! before, what it leaves is dropped by the next reset. A case is deterministic, so that its instructions can be compared
//! with a baseline, and it comes out of `make` warm: what is measured is the hundredth request, not the first.

pub mod apply;
mod ingest;
mod mailbox;
pub mod plugins;
mod policy;
mod wal;

/// How much work a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Enough to see that it works.
    Tiny,
    /// What is measured.
    Full,
}

impl Size {
    /// `full`, or what is enough of it to see that it works.
    pub fn of(self, full: usize) -> usize {
        match self {
            Size::Tiny => full.min(10),
            Size::Full => full,
        }
    }
}

/// A case that is ready to run.
pub trait Measured {
    /// Makes what the next run needs, and drops what the last one left. Never measured.
    fn reset(&mut self);
    /// The work. The result is a checksum: it shows that the work was done.
    fn run(&mut self) -> u64;
}

/// Something that is measured.
#[derive(Clone, Copy)]
pub struct Case {
    /// The name in the baseline and in tables; an identifier.
    pub name: &'static str,
    /// What is worked on: figures are given per one of it.
    pub unit: &'static str,
    /// How many of it a full run has.
    pub units: u64,
    /// Makes it, warm and reset.
    pub make: fn(Size) -> Box<dyn Measured>,
}

/// All cases, in the order of a write's life.
pub const CASES: &[Case] = &[
    Case { name: "parser_known", unit: "row", units: ingest::ROWS as u64, make: ingest::known },
    Case { name: "parser_cold", unit: "row", units: ingest::ROWS as u64, make: ingest::cold },
    Case { name: "parser_single_row", unit: "body", units: ingest::BODIES as u64, make: ingest::single_rows },
    Case { name: "batch_building", unit: "batch", units: 1, make: ingest::freeze },
    Case { name: "apply_bulk", unit: "row", units: apply::ROWS as u64, make: apply::bulk },
    Case { name: "apply_single_row", unit: "row", units: apply::SINGLE as u64, make: apply::single_rows },
    Case { name: "table_snapshot", unit: "snapshot", units: 1, make: apply::snapshot },
    Case { name: "wal_encode_bulk", unit: "row", units: wal::ROWS as u64, make: wal::bulk },
    Case { name: "wal_encode_single_row", unit: "record", units: wal::SINGLE as u64, make: wal::single_rows },
    Case { name: "mailbox", unit: "letter", units: mailbox::LETTERS as u64, make: mailbox::push_and_pop },
    Case { name: "policy_decision", unit: "run", units: policy::RUNS as u64, make: policy::inline_runs },
    Case { name: "plugin_empty_run", unit: "run", units: plugins::RUNS as u64, make: plugins::empty },
    Case { name: "plugin_rows_to_dicts", unit: "row", units: plugins::ROWS as u64, make: plugins::rows_to_dicts },
    Case { name: "plugin_columns_to_memoryview", unit: "batch", units: 1, make: plugins::columns_to_memoryview },
];

/// The case of that name, warm and reset.
///
/// # Panics
/// If there is none.
pub fn make(name: &str, size: Size) -> Box<dyn Measured> {
    let case = CASES.iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("no case is called {name}"));
    (case.make)(size)
}

/// Lets a case run until it is warm, and resets it.
fn warm(mut measured: impl Measured + 'static, runs: usize) -> Box<dyn Measured> {
    for _ in 0..runs {
        measured.reset();
        measured.run();
    }
    measured.reset();
    Box::new(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_identifiers_and_unique() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
    }
}
