//! `lead`, `lag`, `first_value`, `last_value` and `nth_value` against a loop that anybody can check, over random tables.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use saltus_core::schema::ColumnKind;

use crate::query::tests::{Fixture, fixture, table, tags, times};

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A row: its partition and its value; its place is its time.
type Row = (&'static str, Option<i64>);

fn rows(random: &mut Random) -> Vec<Row> {
    let count = random.below(24) + 1;
    let nulls = random.pick(&[0, 2, 5, 9]);
    (0..count).map(|at| (random.pick(&["a", "b"]), (random.below(10) >= nulls).then_some(at as i64 + 1))).collect()
}

fn add(it: &Fixture, name: &str, rows: &[Row], chunk: usize) {
    let chunks = rows.chunks(chunk).enumerate().map(|(at, rows)| {
        let first = (at * chunk) as i64;
        vec![
            ("g", tags(&rows.iter().map(|(g, _)| *g).collect::<Vec<_>>())),
            ("x", Arc::new(Int64Array::from(rows.iter().map(|(_, x)| *x).collect::<Vec<_>>())) as ArrayRef),
            ("time", times(&(first..first + rows.len() as i64).collect::<Vec<_>>())),
        ]
    });
    it.memory.add(table("db", name, &[("g", ColumnKind::Tag), ("x", ColumnKind::Integer)], chunks.collect()));
}

/// What `NULL` is printed as.
const NULL: i64 = -999;

/// A window function of `x`, and how its value is found.
struct Case {
    call: String,
    ignore_nulls: bool,
    partitioned: bool,
    backwards: bool,
    frame: Option<(i64, i64)>,
    limit: Option<u64>,
    of: Of,
}

#[derive(Clone, Copy)]
enum Of {
    /// So many rows back; negative is forward. And what there is if there is none.
    Shift(i64, Option<i64>),
    First,
    Last,
    Nth(usize),
}

fn case(random: &mut Random) -> Case {
    let (call, of) = match random.below(8) {
        0 => ("first_value(x)".to_owned(), Of::First),
        1 => ("last_value(x)".to_owned(), Of::Last),
        2 => {
            let n = random.below(3) + 1;
            (format!("nth_value(x, {n})"), Of::Nth(n as usize))
        }
        shift => {
            let (name, sign) = if shift < 6 { ("lead", -1) } else { ("lag", 1) };
            let offset = random.pick(&[1, 1, 2, 2, 3, 5, -1, -2, 40]);
            let default = random.pick(&[None, Some(77)]);
            let call = match default {
                Some(default) => format!("{name}(x, {offset}, {default})"),
                None => format!("{name}(x, {offset})"),
            };
            (call, Of::Shift(sign * offset, default))
        }
    };
    let low = random.below(4) as i64 - 3;
    let frame = match (random.below(3), &of) {
        (0, Of::Shift(..)) => None,
        (0, _) => Some((i64::MIN, 0)),
        (1, _) => Some((i64::MIN, random.below(4) as i64 - 1)),
        _ => Some((low, low + random.below(4) as i64)),
    };
    Case {
        call,
        ignore_nulls: random.below(3) > 0,
        partitioned: random.below(2) == 0,
        backwards: random.below(2) == 0,
        frame,
        limit: (random.below(3) == 0).then(|| random.below(6) + 1),
        of,
    }
}

fn bound(at: i64) -> String {
    match at {
        i64::MIN => "UNBOUNDED PRECEDING".to_owned(),
        i64::MAX => "UNBOUNDED FOLLOWING".to_owned(),
        0 => "CURRENT ROW".to_owned(),
        at if at < 0 => format!("{} PRECEDING", -at),
        at => format!("{at} FOLLOWING"),
    }
}

fn sql(case: &Case, name: &str) -> String {
    let mut window = String::new();
    if case.partitioned {
        window.push_str("PARTITION BY g ");
    }
    window.push_str(if case.backwards { "ORDER BY time DESC" } else { "ORDER BY time" });
    if let Some((low, high)) = case.frame {
        write!(window, " ROWS BETWEEN {} AND {}", bound(low), bound(high)).unwrap();
    }
    let nulls = if case.ignore_nulls { " IGNORE NULLS" } else { "" };
    let limit = case.limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default();
    format!("SELECT coalesce({}{nulls} OVER ({window}), {NULL}) AS v FROM {name} ORDER BY time{limit}", case.call)
}

/// The value of each row, by looking at every other.
fn right(case: &Case, rows: &[Row]) -> Vec<i64> {
    let of = |at: usize| {
        let mut partition: Vec<usize> =
            (0..rows.len()).filter(|other| !case.partitioned || rows[*other].0 == rows[at].0).collect();
        if case.backwards {
            partition.reverse();
        }
        let here = partition.iter().position(|other| *other == at).unwrap();
        let values: Vec<Option<i64>> = partition.iter().map(|at| rows[*at].1).collect();
        match case.of {
            Of::Shift(back, default) => {
                let mut places: Vec<usize> =
                    if back > 0 { (0..here).rev().collect() } else { (here + 1..values.len()).collect() };
                places.retain(|place| !case.ignore_nulls || values[*place].is_some());
                match places.get(back.unsigned_abs() as usize - 1) {
                    Some(place) => values[*place],
                    None => default,
                }
            }
            of => {
                let (low, high) = case.frame.unwrap();
                let first = (here as i64).saturating_add(low).max(0);
                let end = ((here as i64).saturating_add(high) + 1).clamp(0, values.len() as i64);
                let mut frame: Vec<Option<i64>> =
                    (first..end.max(first)).filter_map(|place| values.get(place as usize).copied()).collect();
                frame.retain(|value| !case.ignore_nulls || value.is_some());
                match of {
                    Of::First => frame.first().copied().flatten(),
                    Of::Last => frame.last().copied().flatten(),
                    Of::Nth(n) => frame.get(n - 1).copied().flatten(),
                    Of::Shift(..) => unreachable!(),
                }
            }
        }
        .unwrap_or(NULL)
    };
    let all = (0..rows.len()).map(of);
    all.take(case.limit.unwrap_or(u64::MAX) as usize).collect()
}

#[test]
fn windows_are_as_a_loop_would_have_them() {
    let it = fixture();
    let mut random = Random(7);
    let mut wrong = Vec::new();
    for round in 0..60 {
        let rows = rows(&mut random);
        let name = format!("w{round}");
        add(&it, &name, &rows, random.pick(&[1, 3, 50]));
        for _ in 0..25 {
            let case = case(&mut random);
            let sql = sql(&case, &name);
            let expected = right(&case, &rows).iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
            let got = it.rows(&sql);
            if got != expected {
                wrong.push(format!("{sql}\n  of  {rows:?}\n  got {got}\n  not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
}

#[test]
fn the_values_that_were_lost_are_there() {
    let it = fixture();
    let values = [Some(1), Some(2), Some(3), Some(4), None, None, Some(7), Some(8), None];
    add(&it, "w", &values.map(|value| ("a", value)), 50);
    let shifted = |call: &str| it.rows(&format!("SELECT coalesce({call}, -1) AS v FROM w ORDER BY time"));
    assert_eq!(shifted("lead(x, 2) IGNORE NULLS OVER (ORDER BY time)"), "3 4 7 8 8 8 -1 -1 -1");
    assert_eq!(shifted("lag(x, 2) IGNORE NULLS OVER (ORDER BY time)"), "-1 -1 1 2 3 3 3 4 7");
    let framed = "SELECT lead(x) IGNORE NULLS OVER (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS v \
                  FROM w WHERE x >= 3 OR x IS NULL LIMIT 1";
    assert_eq!(it.rows(framed), "4");
}
