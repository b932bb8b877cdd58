//! The results for people: a section for each scenario, in Markdown, and what rivals do better.

use std::fmt::Write;

use super::outcome::{Measure, Outcome, Ran, StreamOutcome};
use crate::report::Machine;

/// A rival is ahead, or behind, by more than this; less is noise.
const MARGIN: f64 = 1.05;

/// Load averages above this are somebody else's work.
const IDLE_LOAD_MAX: f64 = 0.5;

/// The whole report. Pictures are expected in `plots`, a folder seen from the file, without the last slash.
pub fn report(machine: &Machine, command: &str, all: &[Ran], plots: &str) -> String {
    let mut text = format!(
        "- Machine: {}, {} processors, kernel {}; commit {}.\n- Command: `{command}`\n\
         - Latencies run from the moment at which a request was *due* (from send where that is said), microseconds. The hiccups are \
         what the machine did to a thread that only wanted to sleep for a millisecond, in the same seconds.\n\n",
        machine.cpu, machine.cpus, machine.kernel, machine.commit
    );
    if machine.load_average > IDLE_LOAD_MAX {
        text += &format!(
            "**The machine was not quiet**: its load average was {:.1} before the run. Compare targets, and see the hiccups; do not take \
             the figures for what the machine can do.\n\n",
            machine.load_average
        );
    }
    for ran in all {
        text += &section(ran, plots);
    }
    text + &losses(all)
}

/// One scenario.
pub fn section(ran: &Ran, plots: &str) -> String {
    let scenario = &ran.scenario;
    let mut text = format!("### {}\n\n`{}`: {}\n\n", scenario.title, scenario.name, scenario.about);
    text += &latencies(ran);
    text += &throughput(ran);
    for outcome in &ran.outcomes {
        let _ = writeln!(text, "- {}: {}", outcome.target, outcome.note);
    }
    for (name, why) in &ran.left_out {
        let _ = writeln!(text, "- {name} is left out: {why}");
    }
    for trouble in ran.outcomes.iter().flat_map(troubles) {
        let _ = writeln!(text, "- **{trouble}**");
    }
    let name = &scenario.name;
    let _ = writeln!(
        text,
        "\n![Latency by percentile: {name}]({plots}/{name}.svg)\n\n![Latency over time: {name}]({plots}/{name}-time.svg)\n"
    );
    text
}

/// Whether the whole of a scenario is worth more than its latencies: nothing in it has a rate.
fn is_closed(ran: &Ran) -> bool {
    ran.scenario.streams.iter().all(|stream| stream.rate.is_none() && stream.schedule.is_none())
}

fn latencies(ran: &Ran) -> String {
    const HEAD: [&str; 12] = [
        "target",
        "stream",
        "what",
        "count",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "hiccups p99",
        "hiccups max",
    ];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for outcome in &ran.outcomes {
        for (stream, measure) in outcome.measures() {
            let summary = &measure.summary;
            let mut row =
                vec![outcome.target.clone(), stream.stream.clone(), measure.label(), summary.count.to_string()];
            row.extend([50.0, 90.0, 99.0, 99.9, 99.99].map(|percent| us(summary.at(percent))));
            row.push(us(summary.max_ns));
            row.extend([us(outcome.hiccups.at(99.0)), us(outcome.hiccups.max_ns)]);
            rows.push(row);
        }
    }
    table(&rows, 3)
}

fn throughput(ran: &Ran) -> String {
    const HEAD: [&str; 7] = ["target", "stream", "requests/s", "rows/s", "CPU us/row", "refused (503)", "failed"];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    for outcome in &ran.outcomes {
        for stream in outcome.streams.iter().filter(|stream| stream.counts.requests > 0) {
            let per_row = outcome.processor_us_per_row.filter(|_| stream.rows_per_s > 0.0);
            rows.push(vec![
                outcome.target.clone(),
                stream.stream.clone(),
                format!("{:.0}", stream.requests_per_s),
                format!("{:.0}", stream.rows_per_s),
                per_row.map_or_else(|| "-".to_owned(), |us| format!("{us:.2}")),
                stream.counts.busy.to_string(),
                stream.counts.failed.to_string(),
            ]);
        }
    }
    if rows.len() == 1 { String::new() } else { table(&rows, 2) }
}

/// What a reader must know before the figures.
fn troubles(outcome: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    for StreamOutcome { stream, counts, measures, .. } in &outcome.streams {
        let whose = format!("{}, stream {stream}", outcome.target);
        if counts.unsent > 0 {
            all.push(format!(
                "{whose}: it could not keep up; {} of {} requests were never sent, and count with the time that they waited",
                counts.unsent, counts.requests
            ));
        }
        if counts.never_entered > 0 {
            let why = counts.never_entered_because.as_deref().unwrap_or("its log has no error of it");
            all.push(format!("{whose}: {} events did not reach the plugin in time: {why}", counts.never_entered));
        }
        if let (Some(error), 1..) = (&counts.first_error, counts.failed) {
            all.push(format!("{whose}: {} requests failed, the first with: {error}", counts.failed));
        }
        if measures.is_empty() {
            all.push(format!("{whose}: nothing was measured"));
        }
    }
    all
}

/// Where a rival is better than the first system.
pub fn losses(all: &[Ran]) -> String {
    let mut lines = Vec::new();
    for ran in all {
        let Some((own, rivals)) = ran.outcomes.split_first() else { continue };
        for rival in rivals {
            lines.extend(rival.streams.iter().zip(&own.streams).flat_map(|(theirs, ours)| {
                let of = format!("`{}`, {}", ran.scenario.name, rival.name_of(theirs));
                compare(&of, ours, theirs, is_closed(ran))
            }));
        }
    }
    if all.iter().all(|ran| ran.outcomes.len() < 2) {
        return String::new();
    }
    if lines.is_empty() {
        return "### What we lose\n\nNothing in this run.\n".to_owned();
    }
    format!("### What we lose\n\n{}", lines.concat())
}

impl Outcome {
    fn name_of(&self, stream: &StreamOutcome) -> String {
        if self.streams.len() > 1 { format!("{}, stream {}", self.target, stream.stream) } else { self.target.clone() }
    }
}

fn compare(of: &str, ours: &StreamOutcome, theirs: &StreamOutcome, closed: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let better = |lines: &mut Vec<String>, what: &str, theirs: f64, ours: f64, unit: &str| {
        lines.push(format!("- {of}: {what} {theirs:.0} {unit} against our {ours:.0} {unit}\n"));
    };
    if closed {
        if theirs.rows_per_s > ours.rows_per_s * MARGIN {
            better(&mut lines, "takes", theirs.rows_per_s, ours.rows_per_s, "rows/s");
        }
        return lines;
    }
    for measure in theirs.measures.iter().filter(|measure| measure.from == "due") {
        let same = |other: &&Measure| (other.what, other.from) == (measure.what, measure.from);
        let Some(own) = ours.measures.iter().find(same) else { continue };
        for percent in [50.0, 99.0, 99.9] {
            let (theirs, ours) = (measure.summary.at(percent) as f64 / 1000.0, own.summary.at(percent) as f64 / 1000.0);
            if ours > theirs * MARGIN {
                better(&mut lines, &format!("{}, p{percent}:", measure.what), theirs, ours, "us");
            }
        }
    }
    lines
}

fn us(ns: u64) -> String {
    let us = ns as f64 / 1000.0;
    if us < 100.0 { format!("{us:.1}") } else { format!("{us:.0}") }
}

/// An aligned table; all columns but the first `texts` are numbers.
fn table(rows: &[Vec<String>], texts: usize) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column < texts { write!(text, "| {cell:<width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let end = if column < texts { "-" } else { ":" };
                let _ = write!(text, "|{}{end}", "-".repeat(width + 1));
            }
            text += "|\n";
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::drive::{Fate, Sample, Sent, Window};
    use super::super::gather::Gathered;
    use super::super::scenario::Scenario;
    use super::*;

    fn outcome(scenario: &Scenario, name: &str, latency_us: u64) -> Outcome {
        let window = Window { start_ns: 0, warm_ns: 0, end_ns: 1_000_000_000 };
        let sample = |number: u64| Sample {
            due_ns: number * 1_000_000,
            sent_ns: number * 1_000_000,
            done_ns: number * 1_000_000 + latency_us * 1000,
            entered_ns: None,
            rows: 1,
            fate: if number == 7 { Fate::Failed } else { Fate::Done },
        };
        let sent = Sent { samples: (0..100).map(sample).collect(), first_error: Some("400: no".to_owned()) };
        let mut gathered = Gathered::new(name.to_owned(), 1);
        gathered.add_requests(&scenario.streams, &window, &[sent]);
        gathered.end_slice(&window, &[]);
        Outcome::of(scenario, gathered)
    }

    fn ran(ours_us: u64, theirs_us: u64) -> Ran {
        let scenario = Scenario::load("single-row").unwrap();
        let outcomes = vec![outcome(&scenario, "saltus", ours_us), outcome(&scenario, "postgres", theirs_us)];
        Ran { scenario, outcomes, left_out: vec![("victoria-metrics".to_owned(), "it has no plugins".to_owned())] }
    }

    #[test]
    fn a_section_has_figures_troubles_and_what_was_left_out() {
        let text = section(&ran(100, 200), "plots");
        assert!(text.contains("| saltus   | writes | ack            |    99 |"), "{text}");
        assert!(text.contains("- victoria-metrics is left out: it has no plugins"), "{text}");
        assert!(text.contains("1 requests failed, the first with: 400: no"), "{text}");
        assert!(text.contains("(plots/single-row.svg)"), "{text}");
        let widths: Vec<usize> = text.lines().filter(|line| line.starts_with('|')).map(str::len).take(4).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn a_machine_that_had_other_work_is_told_of() {
        let machine = |load_average| Machine { load_average, ..Machine::here() };
        assert!(
            report(&machine(3.25), "x", &[], ".").contains("**The machine was not quiet**: its load average was 3.2")
        );
        assert!(!report(&machine(0.1), "x", &[], ".").contains("not quiet"));
    }

    #[test]
    fn what_a_rival_does_better_is_said_and_what_it_does_worse_is_not() {
        let lost = losses(&[ran(300, 100)]);
        assert!(lost.contains("- `single-row`, postgres: ack, p50: 100 us against our 300 us"), "{lost}");
        assert!(losses(&[ran(100, 300)]).contains("Nothing in this run"));
        let mut alone = ran(1, 1);
        alone.outcomes.truncate(1);
        assert_eq!(losses(&[alone]), "");
    }
}
