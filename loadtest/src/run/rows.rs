//! The bodies of write requests, for all shapes.
//!
//! Mechanism: a generator belongs to one connection. `sensor` and `wide` rows are rendered while the request waits for its moment,
//! from the number of the row alone, so that two runs send the same and any connection may send any request. TSBS rows are rendered
//! before the run ([`crate::tsbs`]) and only get their timestamps.
//!
//! Row number k is at `base + k` microseconds of series `scrambled k`. A late row is moved back in time; one that overwrites takes
//! the number of an earlier row, and with it series and time.

use std::io::Write as _;

use super::scenario::{Shape, Stream, Write};
use crate::tsbs::{Dataset, Form, Source};

/// An overwritten row is at most so many rows back.
const OVERWRITE_REACH: u64 = 10_000;

/// What the bodies of a stream have in common.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The rows.
    pub write: Write,
    /// The table of the shapes that choose none themselves.
    pub table: String,
    /// Where the moment at which the request is due is to be put, for a plugin to see.
    pub probe: Option<Probe>,
    /// Time of the first row, nanoseconds since 1970.
    pub base_ns: u64,
}

/// How a plugin learns when a request was due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// By a field of the request's first row.
    Field,
    /// By a row of its own at the end of the request, in this table.
    Row(String),
}

impl Recipe {
    /// Of a stream that writes.
    pub fn new(stream: &Stream, write: &Write, base_ns: u64) -> Self {
        let tsbs = matches!(write.shape, Shape::Cpu | Shape::Devops);
        let probe = stream.is_probed().then(|| if tsbs { Probe::Row(stream.trigger_table()) } else { Probe::Field });
        Self { write: write.clone(), table: stream.name.clone(), probe, base_ns }
    }
}

/// Renders the requests of one connection.
pub struct Generator {
    recipe: Recipe,
    source: Option<Source>,
    /// The body.
    pub text: Vec<u8>,
}

impl Generator {
    /// For connection `index` of so many; each has its own hosts of the TSBS shapes.
    pub fn new(recipe: &Recipe, index: usize, connections: usize) -> Self {
        let Write { shape, series, rows, .. } = recipe.write;
        let dataset = match shape {
            Shape::Cpu => Some(Dataset::Cpu),
            Shape::Devops => Some(Dataset::Devops),
            Shape::Sensor | Shape::Wide => None,
        };
        let bound = |index: usize| series * index / connections;
        let source = dataset
            .map(|dataset| Source::new(dataset, Form::Lines, bound(index)..bound(index + 1), rows, recipe.base_ns));
        Self { recipe: recipe.clone(), source, text: Vec::new() }
    }

    /// Renders request `number`; how many rows of data it has.
    pub fn prepare(&mut self, number: u64, due_ns: u64) -> u32 {
        self.text.clear();
        let rows = match &mut self.source {
            Some(source) => {
                let body = source.next_body();
                self.text.extend_from_slice(&body.text);
                body.rows
            }
            None => {
                for index in 0..self.recipe.write.rows {
                    let due_ns = (index == 0 && self.recipe.probe.is_some()).then_some(due_ns);
                    render(&mut self.text, &self.recipe, number * self.recipe.write.rows as u64 + index as u64, due_ns);
                }
                self.recipe.write.rows
            }
        };
        if let Some(Probe::Row(table)) = &self.recipe.probe {
            let _ = writeln!(self.text, "{table} n={number}i,due={due_ns}i");
        }
        rows as u32
    }
}

/// Row `number` with its line end. Writing to memory cannot fail.
fn render(text: &mut Vec<u8>, recipe: &Recipe, number: u64, due_ns: Option<u64>) {
    let Write { shape, series, fields, late, late_by_s, overwrite, .. } = recipe.write;
    let chance = mixed(number);
    let place = if share(chance) < overwrite { number - chance % (number.min(OVERWRITE_REACH) + 1) } else { number };
    let member = mixed(place ^ 0x5EED) % series as u64;
    let _ = text.write_all(recipe.table.as_bytes());
    if shape == Shape::Wide {
        let _ = write!(text, ",machine=m{member} ");
        for field in 0..fields as u64 {
            let value = mixed(number ^ (field << 40)) % 100_000;
            let comma = if field == 0 { "" } else { "," };
            let _ = write!(text, "{comma}f{field}={}.{:02}", value / 100, value % 100);
        }
    } else {
        let _ = write!(text, ",device=d{member} temperature={}i,humidity={}i", chance % 50, chance / 50 % 100);
    }
    if let Some(due_ns) = due_ns {
        let _ = write!(text, ",due={due_ns}i");
    }
    let time_ns = recipe.base_ns + place * 1000;
    let late_ns = if share(mixed(place ^ 0x1A7E)) < late { late_by_s * 1_000_000_000 } else { 0 };
    let _ = writeln!(text, " {}", time_ns.saturating_sub(late_ns));
}

/// A small mixing function instead of a random generator: the same number gives the same row.
pub fn mixed(number: u64) -> u64 {
    let mut state = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// A number from 0 to 1 of 64 mixed bits.
fn share(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn recipe(shape: Shape, change: impl FnOnce(&mut Write)) -> Recipe {
        let mut write = Write { shape, rows: 10, series: 20, fields: 7, late: 0.0, late_by_s: 3600, overwrite: 0.0 };
        change(&mut write);
        Recipe { write, table: "t".to_owned(), probe: None, base_ns: 1_700_000_000_000_000_000 }
    }

    /// Series and time of the rows of so many requests, in the order of sending.
    fn points(recipe: &Recipe, requests: u64) -> Vec<(String, u64)> {
        let mut generator = Generator::new(recipe, 0, 1);
        let mut points = Vec::new();
        for number in 0..requests {
            generator.prepare(number, 5);
            for line in std::str::from_utf8(&generator.text).unwrap().lines() {
                let parts: Vec<&str> = line.split(' ').collect();
                points.push((parts[0].to_owned(), parts[2].parse().unwrap()));
            }
        }
        points
    }

    #[test]
    fn rows_are_new_points_unless_they_are_to_overwrite() {
        let distinct = |points: &[(String, u64)]| {
            points.iter().collect::<std::collections::HashSet<_>>().len() as f64 / points.len() as f64
        };
        assert_eq!(distinct(&points(&recipe(Shape::Sensor, |_| {}), 500)), 1.0);
        let half = distinct(&points(&recipe(Shape::Sensor, |write| write.overwrite = 0.5), 500));
        // Of the rows that are to be overwritten some had been overwritten already, before they were first sent.
        assert!((0.5..0.75).contains(&half), "{half}");
    }

    #[test]
    fn the_late_share_is_late_by_what_was_asked_for() {
        let points = points(&recipe(Shape::Wide, |write| write.late = 0.2), 500);
        let late = points.iter().filter(|(_, time)| *time < 1_700_000_000_000_000_000).count() as f64;
        assert!((0.17..0.23).contains(&(late / points.len() as f64)), "{late} of {}", points.len());
    }

    #[test]
    fn series_are_as_many_as_asked_for_and_evenly_used() {
        let mut uses: HashMap<String, usize> = HashMap::new();
        for (series, _) in points(&recipe(Shape::Sensor, |_| {}), 500) {
            *uses.entry(series).or_default() += 1;
        }
        assert_eq!(uses.len(), 20);
        assert!(uses.values().all(|count| (150..350).contains(count)), "{uses:?}");
    }

    #[test]
    fn wide_rows_are_wide_and_the_due_time_rides_in_the_first_row_only() {
        let mut recipe = recipe(Shape::Wide, |_| {});
        recipe.probe = Some(Probe::Field);
        let mut generator = Generator::new(&recipe, 0, 1);
        assert_eq!(generator.prepare(3, 77), 10);
        let text = String::from_utf8(generator.text.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].matches('=').count(), 1 + 7);
        assert!(lines[0].contains(",due=77i ") && !lines[1].contains("due"), "{text}");
    }

    #[test]
    fn tsbs_rows_bring_a_row_of_their_own_for_the_probe() {
        let mut recipe = recipe(Shape::Devops, |write| write.rows = 2);
        recipe.probe = Some(Probe::Row("p".to_owned()));
        let mut generator = Generator::new(&recipe, 0, 1);
        assert_eq!(generator.prepare(3, 77), 18);
        let text = String::from_utf8(generator.text.clone()).unwrap();
        assert!(text.ends_with("\np n=3i,due=77i\n"), "{text}");
        assert_eq!(text.lines().count(), 19);
    }
}
