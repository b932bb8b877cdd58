//! What the view shows and how keys change it; no terminal here.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::KeyCode;
use serde_json::Value;

use super::sample::{Snapshot, figure, rate};

/// A column of the table of triggers, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Database and name.
    Name,
    /// The lane of the next run.
    Lane,
    /// Runs per second.
    Runs,
    /// Failed runs per second.
    Errors,
    /// Median of the activation (of a schedule: of the delay).
    Activation50,
    /// Its 99th percentile.
    Activation99,
    /// 99th percentile of the run.
    Run99,
    /// Events that wait.
    Backlog,
    /// Bytes that it holds.
    Memory,
}

impl Column {
    /// All of them.
    pub const ALL: [Column; 9] = [
        Column::Name,
        Column::Lane,
        Column::Runs,
        Column::Errors,
        Column::Activation50,
        Column::Activation99,
        Column::Run99,
        Column::Backlog,
        Column::Memory,
    ];

    /// Its heading.
    pub fn heading(self) -> &'static str {
        match self {
            Column::Name => "TRIGGER",
            Column::Lane => "LANE",
            Column::Runs => "RUNS/S",
            Column::Errors => "ERRORS/S",
            Column::Activation50 => "ACT P50",
            Column::Activation99 => "ACT P99",
            Column::Run99 => "RUN P99",
            Column::Backlog => "BACKLOG",
            Column::Memory => "MEMORY",
        }
    }
}

/// One line of the table of triggers.
#[derive(Clone, Debug, PartialEq)]
pub struct TriggerLine {
    /// Database.
    pub db: String,
    /// Name.
    pub name: String,
    /// The lane of the next run.
    pub lane: String,
    /// Runs per second, once there are two moments.
    pub runs: Option<f64>,
    /// Failed runs per second.
    pub errors: Option<f64>,
    /// Failed runs since the start.
    pub errors_total: f64,
    /// Seconds.
    pub activation_50: f64,
    /// Seconds.
    pub activation_99: f64,
    /// Seconds.
    pub run_99: f64,
    /// Events.
    pub backlog: f64,
    /// Bytes; `None` where they are not counted.
    pub memory: Option<f64>,
}

/// One line of the table of shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardLine {
    /// Index.
    pub shard: u64,
    /// The core.
    pub cpu: Option<String>,
    /// Share of the time in which tasks held it.
    pub busy: Option<f64>,
    /// Share of a core that its thread used.
    pub cpu_share: Option<f64>,
    /// Stalls since the start.
    pub stalls: f64,
    /// 99th percentile of turns, seconds.
    pub turn_99: f64,
    /// Bytes in the mailbox.
    pub mailbox: f64,
    /// Open connections.
    pub connections: f64,
    /// Rows per second.
    pub rows: Option<f64>,
    /// Rounds of the log per second.
    pub rounds: Option<f64>,
    /// Bytes of the log per second.
    pub log_bytes: Option<f64>,
    /// Median of rounds, seconds.
    pub commit_50: f64,
    /// Their 99th percentile.
    pub commit_99: f64,
    /// Whether it takes no writes.
    pub poisoned: bool,
}

/// What a key asks the outside to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// End.
    Quit,
    /// Ask for the details of this trigger of this database.
    Details(String, String),
}

/// What was asked about one trigger.
#[derive(Clone, Debug, PartialEq)]
pub struct Details {
    /// Its database and name.
    pub of: (String, String),
    /// Its row of `system.processing_engine_triggers`; `None` until it is there.
    pub row: Option<Result<BTreeMap<String, Value>, String>>,
}

/// The state of the view.
#[derive(Clone, Debug)]
pub struct App {
    /// The server's address.
    pub url: String,
    /// How often it is asked.
    pub interval: Duration,
    /// The moment shown.
    pub now: Option<Snapshot>,
    /// The one before it.
    pub before: Option<Snapshot>,
    /// Why there is no newer one, and since when.
    pub trouble: Option<(String, Instant)>,
    /// Nothing new is shown.
    pub paused: bool,
    /// Column that triggers are sorted by.
    pub sort: Column,
    /// Largest first.
    pub descending: bool,
    /// Database and name of the trigger that is selected; the first line until one was chosen.
    pub chosen: Option<(String, String)>,
    /// Open details.
    pub details: Option<Details>,
}

impl App {
    /// Nothing is known yet.
    pub fn new(url: String, interval: Duration) -> Self {
        App {
            url,
            interval,
            now: None,
            before: None,
            trouble: None,
            paused: false,
            sort: Column::Runs,
            descending: true,
            chosen: None,
            details: None,
        }
    }

    /// An answer of the server, or why there is none.
    pub fn take(&mut self, answer: Result<Snapshot, String>) {
        match answer {
            Ok(_) if self.paused => self.trouble = None,
            Ok(snapshot) => {
                self.trouble = None;
                // Counters of another life are no earlier moment of this one.
                let same_life = |now: &Snapshot| now.started_s == snapshot.started_s;
                self.before = self.now.take().filter(same_life);
                self.now = Some(snapshot);
            }
            Err(error) => {
                let since = self.trouble.take().map_or_else(Instant::now, |(_, since)| since);
                self.trouble = Some((error, since));
            }
        }
    }

    /// An answer about a trigger; of no interest if another one is open by now.
    pub fn take_details(&mut self, of: (String, String), row: Result<BTreeMap<String, Value>, String>) {
        if let Some(details) = self.details.as_mut().filter(|details| details.of == of) {
            details.row = Some(row);
        }
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyCode) -> Wish {
        match key {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc if self.details.is_none() => return Wish::Quit,
            KeyCode::Esc => self.details = None,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(1),
            KeyCode::Left => self.sort_by(Column::ALL.len() - 1),
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected().saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected() + 1),
            KeyCode::Home => self.select(0),
            KeyCode::End => self.select(usize::MAX),
            KeyCode::Enter if self.details.is_some() => self.details = None,
            KeyCode::Enter => {
                let Some(line) = self.triggers().into_iter().nth(self.selected()) else { return Wish::Nothing };
                self.details = Some(Details { of: (line.db.clone(), line.name.clone()), row: None });
                return Wish::Details(line.db, line.name);
            }
            _ => {}
        }
        Wish::Nothing
    }

    fn sort_by(&mut self, further: usize) {
        let at = Column::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
        self.sort = Column::ALL[(at + further) % Column::ALL.len()];
        self.descending = !matches!(self.sort, Column::Name | Column::Lane);
    }

    fn select(&mut self, line: usize) {
        let mut lines = self.triggers();
        let last = lines.len().saturating_sub(1);
        self.chosen = (!lines.is_empty()).then(|| lines.swap_remove(line.min(last))).map(|line| (line.db, line.name));
    }

    /// The line of the trigger that is selected: it stays so wherever it is sorted to.
    pub fn selected(&self) -> usize {
        let is =
            |line: &TriggerLine| self.chosen.as_ref().is_some_and(|(db, name)| *db == line.db && *name == line.name);
        self.triggers().iter().position(is).unwrap_or(0)
    }

    /// Seconds between the two moments.
    fn between(&self) -> f64 {
        match (&self.now, &self.before) {
            (Some(now), Some(before)) => (now.at - before.at).as_secs_f64(),
            _ => 0.0,
        }
    }

    /// The lines of the table of triggers, sorted.
    pub fn triggers(&self) -> Vec<TriggerLine> {
        let Some(now) = &self.now else { return Vec::new() };
        let seconds = self.between();
        let line = |(key, trigger): (&(String, String), &super::sample::Trigger)| {
            let before = self.before.as_ref().and_then(|before| before.triggers.get(key)).map(|t| &t.figures);
            let figures = &trigger.figures;
            let first = |quantile: &str| {
                let of = |name: &str| figures.get(&format!("{name} {quantile}")).copied();
                of("activation_seconds").or_else(|| of("schedule_delay_seconds")).unwrap_or(f64::NAN)
            };
            TriggerLine {
                db: key.0.clone(),
                name: key.1.clone(),
                lane: trigger.lane.clone(),
                runs: rate(figures, before, "runs_total", seconds),
                errors: rate(figures, before, "errors_total", seconds),
                errors_total: figure(figures, "errors_total"),
                activation_50: first("0.5"),
                activation_99: first("0.99"),
                run_99: figures.get("run_seconds 0.99").copied().unwrap_or(f64::NAN),
                backlog: figure(figures, "backlog_events"),
                memory: figures.get("memory_bytes").copied(),
            }
        };
        let mut lines: Vec<TriggerLine> = now.triggers.iter().map(line).collect();
        lines.sort_by(|a, b| {
            let order = self.compare(a, b);
            if self.descending { order.reverse() } else { order }
        });
        lines
    }

    fn compare(&self, a: &TriggerLine, b: &TriggerLine) -> Ordering {
        // What is not known is the least.
        let number = |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
            (true, other) => {
                if other {
                    Ordering::Equal
                } else {
                    Ordering::Less
                }
            }
            (false, true) => Ordering::Greater,
            (false, false) => a.total_cmp(&b),
        };
        let perhaps = |a: Option<f64>, b: Option<f64>| number(a.unwrap_or(f64::NAN), b.unwrap_or(f64::NAN));
        match self.sort {
            Column::Name => (&a.db, &a.name).cmp(&(&b.db, &b.name)),
            Column::Lane => a.lane.cmp(&b.lane),
            Column::Runs => perhaps(a.runs, b.runs),
            Column::Errors => perhaps(a.errors, b.errors),
            Column::Activation50 => number(a.activation_50, b.activation_50),
            Column::Activation99 => number(a.activation_99, b.activation_99),
            Column::Run99 => number(a.run_99, b.run_99),
            Column::Backlog => number(a.backlog, b.backlog),
            Column::Memory => perhaps(a.memory, b.memory),
        }
    }

    /// The lines of the table of shards, by index.
    pub fn shards(&self) -> Vec<ShardLine> {
        let Some(now) = &self.now else { return Vec::new() };
        let seconds = self.between();
        let line = |(&shard, of): (&u64, &super::sample::Shard)| {
            let before = self.before.as_ref().and_then(|before| before.shards.get(&shard)).map(|s| &s.figures);
            let per_second = |name: &str| rate(&of.figures, before, name, seconds);
            let quantile = |name: &str| of.figures.get(name).copied().unwrap_or(f64::NAN);
            ShardLine {
                shard,
                cpu: of.cpu.clone(),
                busy: per_second("busy_seconds_total"),
                cpu_share: per_second("cpu_seconds_total"),
                stalls: figure(&of.figures, "stalls_total"),
                turn_99: quantile("turn_seconds 0.99"),
                mailbox: figure(&of.figures, "mailbox_bytes"),
                connections: figure(&of.figures, "connections"),
                rows: per_second("rows_written_total"),
                rounds: per_second("wal_rounds_total"),
                log_bytes: per_second("wal_bytes_total"),
                commit_50: quantile("commit_seconds 0.5"),
                commit_99: quantile("commit_seconds 0.99"),
                poisoned: figure(&of.figures, "poisoned") > 0.0,
            }
        };
        now.shards.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(started: u32, runs: [u32; 2]) -> Snapshot {
        let [a, b] = runs;
        let text = format!(
            "saltus_process_start_time_seconds {started}\nsaltus_shard_info{{shard=\"0\",cpu=\"3\"}} 1\n\
             saltus_shard_busy_seconds_total{{shard=\"0\"}} 1\n\
             saltus_trigger_runs_total{{db=\"d\",trigger=\"a\"}} {a}\nsaltus_trigger_runs_total{{db=\"d\",trigger=\"b\"}} {b}\n\
             saltus_trigger_activation_seconds{{db=\"d\",trigger=\"a\",quantile=\"0.5\"}} NaN\n\
             saltus_trigger_schedule_delay_seconds{{db=\"d\",trigger=\"b\",quantile=\"0.5\"}} 0.25\n"
        );
        Snapshot::read(&text).unwrap()
    }

    fn later(snapshot: Snapshot) -> Snapshot {
        Snapshot { at: snapshot.at + Duration::from_secs(2), ..snapshot }
    }

    fn names(app: &App) -> Vec<String> {
        app.triggers().into_iter().map(|line| line.name).collect()
    }

    #[test]
    fn rates_need_two_moments_of_one_life() {
        let mut app = App::new("u".into(), Duration::from_secs(1));
        app.take(Ok(snapshot(5, [0, 0])));
        assert_eq!(app.triggers()[0].runs, None);
        app.now.as_mut().unwrap().at -= Duration::from_secs(2);
        app.take(Ok(snapshot(5, [10, 40])));
        let runs = app.triggers().iter().map(|line| line.runs.unwrap().round()).collect::<Vec<_>>();
        assert_eq!((names(&app), runs), (vec!["b".to_owned(), "a".to_owned()], vec![20.0, 5.0]));
        app.take(Ok(later(snapshot(9, [1, 1]))));
        assert_eq!(app.triggers()[0].runs, None, "the server was started anew");
        assert_eq!(app.shards()[0].cpu.as_deref(), Some("3"));
    }

    #[test]
    fn what_is_not_known_sorts_as_the_least() {
        let mut app = App::new("u".into(), Duration::from_secs(1));
        app.take(Ok(snapshot(5, [0, 0])));
        while app.sort != Column::Activation50 {
            assert_eq!(app.key(KeyCode::Char('s')), Wish::Nothing);
        }
        assert_eq!(names(&app), ["b", "a"]);
        app.key(KeyCode::Char('r'));
        assert_eq!(names(&app), ["a", "b"]);
        app.key(KeyCode::Left);
        assert_eq!(app.sort, Column::Errors);
    }

    #[test]
    fn a_pause_keeps_the_moment_and_trouble_keeps_its_begin() {
        let mut app = App::new("u".into(), Duration::from_secs(1));
        app.take(Err("gone".into()));
        let since = app.trouble.clone().unwrap().1;
        app.take(Err("still gone".into()));
        assert_eq!(app.trouble, Some(("still gone".into(), since)));
        app.take(Ok(snapshot(5, [0, 0])));
        assert_eq!(app.trouble, None);
        app.key(KeyCode::Char('p'));
        app.take(Ok(snapshot(5, [7, 7])));
        assert_eq!(app.now.as_ref().unwrap().triggers[&("d".into(), "a".into())].figures["runs_total"], 0.0);
    }

    #[test]
    fn details_are_asked_for_and_late_answers_are_left() {
        let mut app = App::new("u".into(), Duration::from_secs(1));
        assert_eq!(app.key(KeyCode::Enter), Wish::Nothing, "there is nothing to select");
        app.take(Ok(snapshot(5, [0, 0])));
        app.sort = Column::Name;
        app.descending = false;
        app.key(KeyCode::Down);
        app.key(KeyCode::Down);
        assert_eq!(app.key(KeyCode::Enter), Wish::Details("d".into(), "b".into()));
        app.take_details(("d".into(), "a".into()), Err("late".into()));
        assert_eq!(app.details.as_ref().unwrap().row, None);
        app.take_details(("d".into(), "b".into()), Ok(BTreeMap::new()));
        assert!(app.details.as_ref().unwrap().row.is_some());
        assert_eq!((app.key(KeyCode::Esc), app.details.is_none()), (Wish::Nothing, true));
        assert_eq!(app.key(KeyCode::Esc), Wish::Quit);
    }
}
