//! Draws an [`App`]: a line of totals, the shards, the triggers, and the details of one over them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap};
use serde_json::Value;

use super::app::{App, Column, Details, ShardLine, TriggerLine};

/// Share of a core above which a shard is marked.
const BUSY: f64 = 0.8;
const NOTHING: &str = "-";
const KEYS: &str = "q quit   up/down select   enter details   s sort by next   r reverse   p pause";
const SHARD_HEADINGS: [&str; 13] = [
    "SHARD",
    "CPU",
    "BUSY",
    "THREAD",
    "STALLS",
    "TURN P99",
    "MAILBOX",
    "CONNS",
    "ROWS/S",
    "ROUNDS/S",
    "LOG/S",
    "COMMIT P50",
    "P99",
];
const SHARD_WIDTHS: [u16; 13] = [6, 4, 6, 7, 7, 9, 9, 6, 8, 9, 9, 11, 8];
const TRIGGER_WIDTHS: [u16; 8] = [9, 8, 9, 9, 9, 9, 9, 9];

/// Lines that [`draw`] needs to show everything.
pub fn height(app: &App) -> u16 {
    let lines = app.shards().len() + app.triggers().len() + 8;
    u16::try_from(lines).unwrap_or(u16::MAX)
}

/// Draws all of it.
pub fn draw(app: &App, frame: &mut Frame<'_>) {
    let shards = app.shards();
    let shards_height = u16::try_from(shards.len()).unwrap_or(u16::MAX).saturating_add(2);
    let [head, totals, shards_area, triggers_area, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Max(shards_height),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(app), head);
    let lines = app.triggers();
    frame.render_widget(sums(&shards, &lines), totals);
    frame.render_widget(shard_table(&shards), shards_area);
    let mut state = TableState::default().with_selected(Some(app.selected()));
    frame.render_stateful_widget(trigger_table(app, &lines), triggers_area, &mut state);
    if lines.is_empty() && app.now.is_some() && triggers_area.height > 1 {
        let below = Rect { y: triggers_area.y + 1, height: 1, ..triggers_area };
        frame.render_widget(Paragraph::new("no enabled trigger"), below);
    }
    frame.render_widget(Paragraph::new(KEYS).dim(), foot);
    if let Some(details) = &app.details {
        draw_details(details, frame);
    }
}

fn heading(app: &App) -> Paragraph<'static> {
    let mut spans = vec![Span::from(format!("saltus top  {}", app.url)).bold()];
    if let Some(now) = &app.now {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let up = Duration::from_secs_f64((since_epoch - now.started_s).max(0.0).trunc());
        spans.push(Span::from(format!("  version {}, up {}", now.version, humantime::format_duration(up))));
    }
    if app.paused {
        spans.push(Span::from("  PAUSED").yellow().bold());
    }
    if let Some((error, since)) = &app.trouble {
        let text = format!("  NO ANSWER for {} s, trying again: {error}", since.elapsed().as_secs());
        spans.push(Span::from(text).red().bold());
    } else if let Some(late) = late(app) {
        spans.push(Span::from(format!("  NO ANSWER for {} s", late.as_secs())).red().bold());
    } else if app.now.is_none() {
        spans.push(Span::from("  asking the server ..."));
    }
    Paragraph::new(Line::from(spans))
}

/// A server may take a request and not answer it.
fn late(app: &App) -> Option<Duration> {
    let since = app.now.as_ref().filter(|_| !app.paused)?.at.elapsed();
    (since > app.interval * 3 + Duration::from_secs(1)).then_some(since)
}

fn sums(shards: &[ShardLine], triggers: &[TriggerLine]) -> Paragraph<'static> {
    let of =
        |values: &mut dyn Iterator<Item = Option<f64>>| values.collect::<Option<Vec<_>>>().map(|all| all.iter().sum());
    let text = format!(
        "{} rows/s   {} runs/s   {} errors/s   {}/s to the log   {} connections   {} events wait",
        count(of(&mut shards.iter().map(|shard| shard.rows))),
        count(of(&mut triggers.iter().map(|trigger| trigger.runs))),
        count(of(&mut triggers.iter().map(|trigger| trigger.errors))),
        bytes(of(&mut shards.iter().map(|shard| shard.log_bytes))),
        shards.iter().map(|shard| shard.connections).sum::<f64>(),
        count(Some(triggers.iter().map(|trigger| trigger.backlog).sum())),
    );
    Paragraph::new(if shards.is_empty() { String::new() } else { text })
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

fn headings<'a>(names: impl IntoIterator<Item = Line<'a>>) -> Row<'a> {
    Row::new(names.into_iter().map(Cell::from)).style(Style::new().reversed())
}

fn shard_table(shards: &[ShardLine]) -> Table<'static> {
    let rows = shards.iter().map(|shard| {
        let row = Row::new([
            right(shard.shard.to_string()),
            right(shard.cpu.clone().unwrap_or_else(|| NOTHING.to_owned())),
            right(percent(shard.busy)),
            right(percent(shard.cpu_share)),
            right(count(Some(shard.stalls))),
            right(time(shard.turn_99)),
            right(bytes(Some(shard.mailbox))),
            right(count(Some(shard.connections))),
            right(count(shard.rows)),
            right(count(shard.rounds)),
            right(bytes(shard.log_bytes)),
            right(time(shard.commit_50)),
            right(time(shard.commit_99)),
        ]);
        match shard {
            ShardLine { poisoned: true, .. } => row.style(Style::new().fg(Color::Red)),
            shard if shard.busy.is_some_and(|busy| busy >= BUSY) => row.style(Style::new().fg(Color::Yellow)),
            _ => row,
        }
    });
    let names = SHARD_HEADINGS.map(|name| Line::from(name).alignment(Alignment::Right));
    Table::new(rows, SHARD_WIDTHS.map(Constraint::Length)).header(headings(names))
}

fn trigger_table(app: &App, lines: &[TriggerLine]) -> Table<'static> {
    let rows = lines.iter().map(|line| {
        let row = Row::new([
            Cell::from(format!("{}.{}", line.db, line.name)),
            Cell::from(line.lane.clone()),
            right(count(line.runs)),
            right(count(line.errors)),
            right(time(line.activation_50)),
            right(time(line.activation_99)),
            right(time(line.run_99)),
            right(count(Some(line.backlog))),
            right(bytes(line.memory)),
        ]);
        if line.errors.is_some_and(|errors| errors > 0.0) { row.style(Style::new().fg(Color::Red)) } else { row }
    });
    let names = Column::ALL.map(|column| {
        let mark = if column != app.sort {
            ""
        } else if app.descending {
            "v"
        } else {
            "^"
        };
        let line = Line::from(format!("{}{mark}", column.heading()));
        if matches!(column, Column::Name | Column::Lane) { line } else { line.alignment(Alignment::Right) }
    });
    let widths = std::iter::once(Constraint::Fill(1)).chain(TRIGGER_WIDTHS.map(Constraint::Length));
    Table::new(rows, widths).header(headings(names)).row_highlight_style(Style::new().bold().underlined())
}

/// What is worth a line, of a trigger's row.
const DETAILS: [(&str, &str); 17] = [
    ("plugin", "plugin_filename"),
    ("specification", "trigger_specification"),
    ("lane", "lane"),
    ("because", "lane_reason"),
    ("since", "lane_since"),
    ("not inline because", "lane_barred"),
    ("execution", "execution"),
    ("isolation", "isolation"),
    ("on errors", "error_behavior"),
    ("limits", "limits"),
    ("overlapping runs", "run_async"),
    ("runs", "run_count"),
    ("errors", "error_count"),
    ("memory", "memory_bytes"),
    ("next time", "next_scheduled_time"),
    ("missed times", "missed_count"),
    ("last error", "last_error"),
];

fn draw_details(details: &Details, frame: &mut Frame<'_>) {
    let area = frame.area();
    let [area] = Layout::horizontal([Constraint::Percentage(90)]).flex(ratatui::layout::Flex::Center).areas(area);
    let [area] = Layout::vertical([Constraint::Percentage(80)]).flex(ratatui::layout::Flex::Center).areas(area);
    let lines: Vec<Line<'_>> = match &details.row {
        None => vec![Line::from("asking the server ...")],
        Some(Err(error)) => vec![Line::from(error.as_str()).red()],
        Some(Ok(row)) => DETAILS
            .iter()
            .filter_map(|(name, column)| {
                let text = match row.get(*column)? {
                    Value::Null => return None,
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                Some(Line::from(vec![Span::from(format!("{name:>18}: ")).dim(), Span::from(text)]))
            })
            .collect(),
    };
    let (db, name) = &details.of;
    let block = Block::bordered().title(format!(" {db}.{name} ")).title_bottom(" esc: back ");
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }).block(block), area);
}

/// Seconds, with a unit that fits.
fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_nan() => NOTHING.to_owned(),
        s if s < 1e-3 => format!("{:.1}us", s * 1e6),
        s if s < 1.0 => format!("{:.1}ms", s * 1e3),
        s => format!("{s:.1}s"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NOTHING.to_owned(), |share| format!("{:.0}%", share * 100.0))
}

fn count(number: Option<f64>) -> String {
    match number {
        None => NOTHING.to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(n) if n < 10.0 && n.fract() != 0.0 => format!("{n:.1}"),
        Some(n) if n < 10_000.0 => format!("{n:.0}"),
        Some(n) if n < 1e6 => format!("{:.1}k", n / 1e3),
        Some(n) => format!("{:.1}M", n / 1e6),
    }
}

fn bytes(bytes: Option<f64>) -> String {
    const KIB: f64 = 1024.0;
    match bytes {
        None => NOTHING.to_owned(),
        Some(b) if b < KIB => format!("{b:.0}B"),
        Some(b) if b < KIB * KIB => format!("{:.1}KiB", b / KIB),
        Some(b) if b < KIB * KIB * KIB => format!("{:.1}MiB", b / KIB / KIB),
        Some(b) => format!("{:.1}GiB", b / KIB / KIB / KIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_unit_that_fits() {
        assert_eq!([time(f64::NAN), time(12.34e-6), time(0.0123), time(2.0)], ["-", "12.3us", "12.3ms", "2.0s"]);
        assert_eq!([count(None), count(Some(0.0)), count(Some(0.25)), count(Some(1234.0))], ["-", "0", "0.2", "1234"]);
        assert_eq!([count(Some(12_345.0)), count(Some(2e6)), percent(Some(0.5))], ["12.3k", "2.0M", "50%"]);
        assert_eq!(
            [bytes(Some(5.0)), bytes(Some(2048.0)), bytes(Some(3.0 * 1024.0 * 1024.0))],
            ["5B", "2.0KiB", "3.0MiB"]
        );
    }
}
