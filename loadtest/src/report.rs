//! Figures for people (a table) and for programs (one line of JSON).

use std::fmt::Write;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

/// A histogram of nanoseconds up to two minutes, three significant digits.
pub fn new_histogram() -> Histogram<u64> {
    /// Anything slower counts as this much.
    const LATENCY_NS_MAX: u64 = 120_000_000_000;
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constant and valid")
}

/// The percentiles of one measured thing, in microseconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Percentiles {
    /// What was measured.
    pub what: String,
    /// How many values.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Largest value.
    pub max_us: f64,
}

impl Percentiles {
    /// Of a histogram of nanoseconds.
    pub fn of(what: &str, histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            what: what.to_owned(),
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
        }
    }
}

/// The rows as an aligned table, microseconds with one digit.
pub fn table(rows: &[Percentiles]) -> String {
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0).max("microseconds".len());
    let mut text = format!(
        "{:<width$} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
        "microseconds", "count", "p50", "p90", "p99", "p99.9", "max"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<width$} {:>9} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
            row.what, row.count, row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us
        );
    }
    text
}

/// What was promised, and whether it holds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Goal {
    /// Of what.
    pub what: String,
    /// What was measured.
    pub figure: f64,
    /// What was promised; none where the figure is for information.
    pub goal: Option<f64>,
    /// Whether it holds.
    pub met: Option<bool>,
}

impl Goal {
    /// The figure is to be below `goal`.
    pub fn below(what: &str, figure: f64, goal: f64) -> Self {
        Self { what: what.to_owned(), figure, goal: Some(goal), met: Some(figure < goal) }
    }

    /// Nothing was promised.
    pub fn information(what: &str, figure: f64) -> Self {
        Self { what: what.to_owned(), figure, goal: None, met: None }
    }

    /// The figure is to be at least `goal`, if there is one.
    pub fn above(what: &str, figure: f64, goal: Option<f64>) -> Self {
        Self { what: what.to_owned(), figure, goal, met: goal.map(|goal| figure >= goal) }
    }
}

/// Goals as a table in Markdown.
pub fn goals_table(goals: &[Goal]) -> String {
    let width = goals.iter().map(|goal| goal.what.len()).max().unwrap_or(0).max("goal".len());
    let mut text = format!(
        "| {:<width$} | measured |   goal | met |\n|{}|---------:|-------:|-----|\n",
        "goal",
        "-".repeat(width + 2)
    );
    for Goal { what, figure, goal, met } in goals {
        let goal = goal.map_or_else(|| "-".to_owned(), |goal| format!("{goal:.1}"));
        let met = met.map_or("-", |met| if met { "yes" } else { "no" });
        let _ = writeln!(text, "| {what:<width$} | {figure:>8.1} | {goal:>6} | {met:<3} |");
    }
    text
}

/// Where a result was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The checked-out commit, if this runs inside a checkout.
    pub commit: String,
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// How many tasks ran or wanted to, on average over the last minute.
    pub load_average: f64,
}

impl Machine {
    /// Asks the operating system.
    pub fn here() -> Self {
        let commit = Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12"])
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok());
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            commit: commit.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            load_average: read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// One result as one line of JSON, for a file that is only ever appended to.
pub fn json_line(command: &str, options: &impl Serialize, result: &impl Serialize) -> String {
    serde_json::json!({ "command": command, "machine": Machine::here(), "options": options, "result": result })
        .to_string()
}

/// Appends the line to the file, or prints it where there is none.
pub fn keep(line: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = file else {
        println!("{line}");
        return Ok(());
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes())
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_microseconds_and_the_maximum_is_kept() {
        let mut histogram = new_histogram();
        for microseconds in 1..=1000_u64 {
            histogram.record(microseconds * 1000).unwrap();
        }
        let row = Percentiles::of("ack", &histogram);
        assert_eq!(row.count, 1000);
        assert!((row.p50_us - 500.0).abs() < 1.0, "{}", row.p50_us);
        assert!((row.p99_us - 990.0).abs() < 1.0, "{}", row.p99_us);
        assert!((row.max_us - 1000.0).abs() < 1.0, "{}", row.max_us);
    }

    #[test]
    fn the_table_lines_up() {
        let text = table(&[Percentiles::of("a long name of a thing", &new_histogram())]);
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(widths[0], widths[1], "{text}");
    }

    #[test]
    fn a_result_is_one_line_with_the_machine_in_it() {
        let line = json_line("probe", &"options", &"result");
        assert!(!line.contains('\n'));
        assert!(line.contains("\"kernel\":"), "{line}");
    }
}
