//! The plots of a scenario: percentiles, and how the latencies went over time. As SVG, and as PNG made from that.
//!
//! The percentile axis is that of HdrHistogram: equal steps for 90, 99, 99.9 %, which is the logarithm of `1 / (1 - quantile)`.
//! Latency is logarithmic too. The colours are those of Okabe and Ito, which people tell apart however they see colours; what belongs
//! to the machine is grey and dashed. The PNG has a font of its own, so that it looks the same on a machine without any.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::files::save;
use super::gather::Series;
use super::outcome::{Measure, Outcome, Ran};

/// Roboto Regular, the part of it that plots use.
const FONT: &[u8] = include_bytes!("../../fonts/Roboto-subset.ttf");
const FAMILY: &str = "Roboto, Helvetica, Arial, sans-serif";
const WIDTH: u32 = 1080;
/// To the right of a plot, for the legend, where no line is.
const LEGEND_WIDTH: u32 = 220;
const PERCENTILES_HEIGHT: u32 = 540;
const PANEL_HEIGHT: u32 = 250;
const TITLE_HEIGHT: u32 = 36;
/// More panels would be smaller than what they show.
const PANELS_MAX: usize = 8;
/// How much larger the PNG is than the SVG says.
const PNG_SCALE: f32 = 1.5;

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
const GREY: RGBColor = RGBColor(120, 120, 120);
/// Lines of this colour are dashed in the end.
const DASHED_GREY: RGBColor = RGBColor(120, 120, 121);
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// Writes `NAME.svg`, `NAME.png`, `NAME-time.svg` and `NAME-time.png` into a folder; these names.
///
/// # Errors
/// They cannot be written, or there is nothing to plot.
pub fn write(folder: &Path, ran: &Ran) -> anyhow::Result<Vec<String>> {
    let name = &ran.scenario.name;
    let mut names = Vec::new();
    let plots = [(name.clone(), percentiles(ran)?), (format!("{name}-time"), time_lines(ran)?)];
    for (name, svg) in plots {
        save(&folder.join(format!("{name}.png")), &png(&svg)?)?;
        save(&folder.join(format!("{name}.svg")), svg.as_bytes())?;
        names.extend([format!("{name}.png"), format!("{name}.svg")]);
    }
    Ok(names)
}

/// A line, with its latencies in microseconds.
struct Curve {
    label: String,
    points: Vec<(f64, f64)>,
    colour: RGBColor,
}

/// Latency by percentile, a line for each measure that counts from when it was due.
fn percentiles(ran: &Ran) -> anyhow::Result<String> {
    let curves = curves(ran);
    let x_max = curves.iter().flat_map(|curve| curve.points.last()).map(|point| point.0).fold(100.0, f64::max);
    let (y_min, y_max) = decades(curves.iter().flat_map(|curve| &curve.points).map(|point| point.1));
    draw(PERCENTILES_HEIGHT, |area| {
        let area = area.titled(&ran.scenario.title, font(20))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(LEGEND_WIDTH)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(Decades::with_median(x_max * 1.05), Decades::new(y_min, y_max))?;
        chart
            .configure_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .label_style(font(14))
            .x_desc("percentile")
            .y_desc("latency from when it was due")
            .x_label_formatter(&|x| percent(*x))
            .y_label_formatter(&|us| duration(*us))
            .draw()?;
        for Curve { points, colour, .. } in &curves {
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        }
        legend(&area, &curves)
    })
}

fn curves(ran: &Ran) -> Vec<Curve> {
    let several = ran.outcomes.len() > 1;
    let mut curves = Vec::new();
    for outcome in &ran.outcomes {
        for (stream, measure) in outcome.measures().filter(|(_, measure)| measure.from == "due") {
            let label = label(outcome, &stream.stream, measure, ran.scenario.streams.len() > 1, several);
            let colour = COLOURS[curves.len() % COLOURS.len()];
            curves.push(Curve { label, points: by_percentile(&measure.histogram), colour });
        }
    }
    let hiccups = ran.outcomes.first().map(|outcome| by_percentile(&outcome.hiccup_series.histogram()));
    if let Some(points) = hiccups {
        let label = if several { format!("hiccups beside {}", ran.outcomes[0].target) } else { "hiccups".to_owned() };
        curves.push(Curve { label, points, colour: DASHED_GREY });
    }
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

fn label(outcome: &Outcome, stream: &str, measure: &Measure, streams: bool, systems: bool) -> String {
    let mut words = Vec::new();
    if systems {
        words.push(outcome.target.as_str());
    }
    if streams {
        words.push(stream);
    }
    let what = measure.label();
    words.push(&what);
    words.join(": ")
}

/// `1 / (1 - quantile)` and microseconds. The line ends with the largest value, at the place of its rank.
fn by_percentile(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const TICKS_PER_HALF: u32 = 20;
    let last = histogram.len() as f64;
    let steps = histogram.iter_quantiles(TICKS_PER_HALF);
    let points = steps.map(|step| {
        let rest = 1.0 - step.quantile_iterated_to();
        ((1.0 / rest.max(1e-12)).min(last.max(1.0)), step.value_iterated_to() as f64 / 1000.0)
    });
    points.collect()
}

/// One panel for each measure and system, with the machine's hiccups of the same seconds; all of one scale.
fn time_lines(ran: &Ran) -> anyhow::Result<String> {
    let several = ran.outcomes.len() > 1;
    let mut panels = Vec::new();
    for outcome in &ran.outcomes {
        for (stream, measure) in outcome.measures().filter(|(_, measure)| measure.from == "due") {
            let label = label(outcome, &stream.stream, measure, ran.scenario.streams.len() > 1, several);
            panels.push(Panel::new(label, &measure.series, &outcome.hiccup_series));
        }
    }
    let title = match panels.len() {
        0..=PANELS_MAX => format!("{}, second by second", ran.scenario.title),
        more => format!("{}, second by second (the first {PANELS_MAX} of {more})", ran.scenario.title),
    };
    panels.truncate(PANELS_MAX);
    anyhow::ensure!(!panels.is_empty(), "nothing was measured");
    let points = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
    let scale = decades(points.map(|point| point.1));
    draw(TITLE_HEIGHT + PANEL_HEIGHT * panels.len() as u32, |area| {
        let area = area.titled(&title, font(20))?;
        for (part, panel) in area.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            panel.draw(part, scale)?;
        }
        Ok(())
    })
}

/// One measure of one system over time.
struct Panel {
    label: String,
    lines: Vec<Curve>,
    seconds: f64,
}

impl Panel {
    fn new(label: String, series: &Series, hiccups: &Series) -> Self {
        let (seconds, machine) = (series.seconds(), hiccups.seconds());
        let line = |label: &str, seconds: &[Histogram<u64>], quantile: f64, colour| {
            let some = seconds.iter().enumerate().filter(|(_, second)| !second.is_empty());
            let points = some.map(|(at, second)| (at as f64 + 0.5, second.value_at_quantile(quantile) as f64 / 1000.0));
            Curve { label: label.to_owned(), points: points.collect(), colour }
        };
        let lines = vec![
            line("p50", &seconds, 0.5, COLOURS[0]),
            line("p99", &seconds, 0.99, COLOURS[5]),
            line("max", &seconds, 1.0, COLOURS[1]),
            line("hiccups, max", &machine, 1.0, DASHED_GREY),
        ];
        Self { label, lines, seconds: seconds.len().max(machine.len()).max(1) as f64 }
    }

    fn draw(&self, area: &Area<'_>, (y_min, y_max): (f64, f64)) -> Drawn {
        let mut chart = ChartBuilder::on(area)
            .caption(&self.label, font(15))
            .margin(8)
            .margin_right(LEGEND_WIDTH)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..self.seconds, Decades::new(y_min, y_max))?;
        chart
            .configure_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .label_style(font(13))
            .x_desc("seconds")
            .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
            .y_label_formatter(&|us| duration(*us))
            .draw()?;
        for Curve { points, colour, .. } in &self.lines {
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            if *colour != DASHED_GREY {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
            }
        }
        legend(area, &self.lines)
    }
}

type Backend<'a> = SVGBackend<'a>;
type Area<'a> = DrawingArea<Backend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// At the right end, from the top.
fn legend(area: &Area<'_>, lines: &[Curve]) -> Drawn {
    let (width, _) = area.dim_in_pixel();
    let left = (width - LEGEND_WIDTH) as i32 + 14;
    for (index, Curve { label, colour, .. }) in lines.iter().enumerate() {
        let y = 50 + 22 * index as i32;
        area.draw(&PathElement::new([(left, y), (left + 22, y)], colour.stroke_width(2)))?;
        area.draw(&Text::new(label.clone(), (left + 28, y - 7), font(14)))?;
    }
    Ok(())
}

fn draw(height: u32, paint: impl FnOnce(&Area<'_>) -> Drawn) -> anyhow::Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let painted = area.fill(&WHITE).map_err(Into::into).and_then(|()| paint(&area));
    painted.map_err(|error| anyhow!("drawing a plot: {error}"))?;
    area.present().context("drawing a plot")?;
    drop(area);
    // The library would make an element of every dash.
    let RGBColor(red, green, blue) = DASHED_GREY;
    let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
    Ok(svg.replace(&stroke, &format!("{stroke} stroke-dasharray=\"6 4\"")))
}

fn font(size: u32) -> TextStyle<'static> {
    (FAMILY, size).into_font().color(&BLACK)
}

/// Whole powers of ten around the values.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
    for value in values.filter(|value| *value > 0.0) {
        (low, high) = (low.min(value), high.max(value));
    }
    if !low.is_finite() {
        return (1.0, 10.0);
    }
    let low = 10_f64.powf(low.log10().floor());
    (low, 10_f64.powf(high.log10().ceil()).max(low * 10.0))
}

/// `90%` of 10, `99.9%` of 1000.
fn percent(x: f64) -> String {
    if x == MEDIAN {
        return "50%".to_owned();
    }
    let nines = x.log10().round() as usize;
    match nines {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        more => format!("99.{}%", "9".repeat(more - 2)),
    }
}

/// Microseconds with the unit that fits.
fn duration(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{us} us"),
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.0} s", us / 1e6),
    }
}

/// Where half of all lies on the axis of percentiles.
const MEDIAN: f64 = 2.0;

/// A logarithmic axis with marks at the powers of ten, and one more where it is of percentiles.
struct Decades {
    low: f64,
    high: f64,
    more: &'static [f64],
}

impl Decades {
    fn new(low: f64, high: f64) -> Self {
        Self { low, high, more: &[] }
    }

    fn with_median(high: f64) -> Self {
        Self { low: 1.0, high, more: &[MEDIAN] }
    }
}

impl Ranged for Decades {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light lines are not drawn.
        if !matches!(hint.weight(), plotters::coord::ranged1d::KeyPointWeight::Bold) {
            return Vec::new();
        }
        let first = self.low.log10().ceil() as i32;
        let powers = (first..).map(|power| 10_f64.powi(power)).take_while(|mark| *mark <= self.high * 1.0001);
        powers.chain(self.more.iter().copied()).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Decades {
    fn format_ext(&self, value: &f64) -> String {
        duration(*value)
    }
}

/// The picture of an SVG.
fn png(svg: &str) -> anyhow::Result<Vec<u8>> {
    use resvg::{tiny_skia, usvg};
    let mut options = usvg::Options { font_family: "Roboto".to_owned(), ..usvg::Options::default() };
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(FONT.to_vec());
    fonts.set_sans_serif_family("Roboto");
    let tree = usvg::Tree::from_str(svg, &options).context("reading the plot back")?;
    let size = tree.size().to_int_size().scale_by(PNG_SCALE).context("a plot without a size")?;
    let mut picture = tiny_skia::Pixmap::new(size.width(), size.height()).context("a plot without a size")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut picture.as_mut());
    picture.encode_png().context("encoding a plot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_named_as_people_read_them() {
        assert_eq!([1.0, 2.0, 10.0, 100.0, 1e3, 1e5].map(percent), ["0%", "50%", "90%", "99%", "99.9%", "99.999%"]);
        assert_eq!([0.1, 10.0, 1e3, 1e5, 1e7].map(duration), ["0.1 us", "10 us", "1 ms", "100 ms", "10 s"]);
    }

    #[test]
    fn axes_end_at_powers_of_ten_even_with_one_value_or_none() {
        assert_eq!(decades([45.0, 2300.0].into_iter()), (10.0, 10_000.0));
        assert_eq!(decades([100.0].into_iter()), (100.0, 1000.0));
        assert_eq!(decades(std::iter::empty()), (1.0, 10.0));
    }

    #[test]
    fn curves_end_at_the_rank_of_the_largest_value() {
        let mut histogram = crate::report::new_histogram();
        (1..=1000_u64).for_each(|us| histogram.record(us * 1000).unwrap());
        let points = by_percentile(&histogram);
        let (x, y) = *points.last().unwrap();
        assert!((x - 1000.0).abs() < 1.0 && (y - 1000.0).abs() < 1.0, "{x} {y}");
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
    }

    /// Three systems that behave differently, for ten seconds.
    fn ran() -> Ran {
        use super::super::drive::{Fate, Sample, Sent, Window};
        use super::super::gather::Gathered;
        use super::super::rows::mixed;
        use super::super::systems::Entry;
        let scenario = super::super::scenario::Scenario::load("single-row").unwrap();
        let window = Window { start_ns: 0, warm_ns: 0, end_ns: 10_000_000_000 };
        let outcomes = [("saltus", 300_u64), ("postgres", 500), ("victoria-metrics", 150)].map(|(name, us)| {
            // Now and then a request takes very long.
            let latency = |number: u64| us * 1000 + 2_000_000_000 / (1 + mixed(number) % 20_000);
            let due = |number: u64| number * 2_000_000;
            let sample = |number: u64| Sample {
                due_ns: due(number),
                sent_ns: due(number) + 1000,
                done_ns: due(number) + latency(number),
                entered_ns: None,
                rows: 1,
                fate: Fate::Done,
            };
            let sent = Sent { samples: (0..5000).map(sample).collect(), first_error: None };
            let mut gathered = Gathered::new(name.to_owned(), 1);
            gathered.add_requests(&scenario.streams, &window, &[sent]);
            if name != "victoria-metrics" {
                let entry = |number: u64| Entry { due_ns: due(number), after_ns: latency(number) / 3 };
                gathered.add_entries(0, &window, 5000, &(0..5000).map(entry).collect::<Vec<_>>());
            }
            let hiccup = |number: u64| crate::hiccup::Hiccup {
                at_ns: number * 1_000_000,
                late_ns: 60_000 + 10_000_000 / (1 + mixed(number) % 1000),
            };
            gathered.end_slice(&window, &(0..10_000).map(hiccup).collect::<Vec<_>>());
            Outcome::of(&scenario, gathered)
        });
        Ran { scenario, outcomes: outcomes.into(), left_out: Vec::new() }
    }

    #[test]
    fn plots_name_what_they_show_and_pictures_have_their_letters() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &ran()).unwrap();
        let svg = std::fs::read_to_string(folder.path().join("single-row.svg")).unwrap();
        for text in ["Single rows, durable", "99.9%", "100 us", "postgres: entry", "hiccups", "percentile", "dasharray"]
        {
            assert!(svg.contains(text), "no {text:?} in the plot");
        }
        let time = std::fs::read_to_string(folder.path().join("single-row-time.svg")).unwrap();
        for text in ["victoria-metrics: ack", "p99", "seconds"] {
            assert!(time.contains(text), "no {text:?} in the time line");
        }
        let with_letters = std::fs::read(folder.path().join("single-row.png")).unwrap();
        assert!(with_letters.starts_with(b"\x89PNG"));
        let without = png(&svg.replace("<text", "<desc").replace("</text", "</desc")).unwrap();
        assert!(with_letters.len() > without.len() + 2000, "{} and {}", with_letters.len(), without.len());
    }
}
