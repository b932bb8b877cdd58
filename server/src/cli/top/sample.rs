//! From the text of `/metrics` to what is shown: counters of one moment, and rates between two.

use std::collections::BTreeMap;
use std::time::Instant;

/// One sample of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels, unescaped.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// The samples of Prometheus' text format.
///
/// # Errors
/// The first line that is none, with its number.
pub fn parse(text: &str) -> Result<Vec<Sample>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| sample(line).ok_or_else(|| format!("line {} of /metrics is no sample: {line}", at + 1)))
        .collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels behind the opening brace, and what comes behind the closing one.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut unescaped = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => unescaped.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, character) => unescaped.push(character),
            }
        };
        labels.insert(name.to_owned(), unescaped);
        rest = &value[end + 1..];
    }
}

/// Everything that is shown, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was asked for.
    pub at: Instant,
    /// The server's version.
    pub version: String,
    /// When the server started, seconds since the epoch.
    pub started_s: f64,
    /// By index.
    pub shards: BTreeMap<u64, Shard>,
    /// By database and name.
    pub triggers: BTreeMap<(String, String), Trigger>,
}

/// A shard's figures since its start; times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    /// The core it is pinned to.
    pub cpu: Option<String>,
    /// By name without `saltus_shard_`, summaries by name and quantile, as in `turn_seconds 0.99`.
    pub figures: BTreeMap<String, f64>,
}

/// A trigger's figures since the start of the server; times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trigger {
    /// The lane of its next run.
    pub lane: String,
    /// As of [`Shard::figures`], without `saltus_trigger_`.
    pub figures: BTreeMap<String, f64>,
}

impl Snapshot {
    /// What the text of `/metrics` says.
    ///
    /// # Errors
    /// It is not what a Saltus server answers; the text says why.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut snapshot = Snapshot {
            at: Instant::now(),
            version: String::new(),
            started_s: 0.0,
            shards: BTreeMap::new(),
            triggers: BTreeMap::new(),
        };
        for sample in parse(text)? {
            snapshot.take(sample);
        }
        if snapshot.shards.is_empty() {
            return Err("/metrics has no shards: this is no Saltus server, or another version".to_owned());
        }
        Ok(snapshot)
    }

    fn take(&mut self, sample: Sample) {
        let Sample { name, labels, value } = sample;
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let figure = |short: &str| match labels.get("quantile") {
            Some(quantile) => format!("{short} {quantile}"),
            None => short.to_owned(),
        };
        if let Some(short) = name.strip_prefix("saltus_shard_") {
            let Ok(shard) = label("shard").parse() else { return };
            let shard = self.shards.entry(shard).or_default();
            match short {
                "info" => shard.cpu = labels.get("cpu").filter(|cpu| !cpu.is_empty()).cloned(),
                short => drop(shard.figures.insert(figure(short), value)),
            }
        } else if let Some(short) = name.strip_prefix("saltus_trigger_") {
            let trigger = self.triggers.entry((label("db"), label("trigger"))).or_default();
            match short {
                "lane" => trigger.lane = label("lane"),
                short => drop(trigger.figures.insert(figure(short), value)),
            }
        } else {
            match name.as_str() {
                "saltus_build_info" => self.version = label("version"),
                "saltus_process_start_time_seconds" => self.started_s = value,
                _ => {}
            }
        }
    }
}

/// A figure, or zero.
pub(super) fn figure(figures: &BTreeMap<String, f64>, name: &str) -> f64 {
    figures.get(name).copied().unwrap_or(0.0)
}

/// How much a counter rose per second; `None` without an earlier moment. A server that was started anew counts from zero.
pub(super) fn rate(
    now: &BTreeMap<String, f64>,
    before: Option<&BTreeMap<String, f64>>,
    name: &str,
    seconds: f64,
) -> Option<f64> {
    let (now, before) = (figure(now, name), figure(before?, name));
    (seconds > 0.0).then(|| if now < before { now } else { now - before } / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_names_labels_and_values() {
        let text =
            "# HELP a b\n# TYPE a gauge\na 1\nb{x=\"q\\\"\\\\\\n}\",quantile=\"0.5\"} NaN\nc{} 2e3 1234\n# EOF\n";
        let samples = parse(text).unwrap();
        assert_eq!(samples[0], Sample { name: "a".into(), labels: BTreeMap::new(), value: 1.0 });
        assert_eq!(samples[1].labels["x"], "q\"\\\n}");
        assert!(samples[1].value.is_nan());
        assert_eq!(samples[2].value, 2000.0);
        assert_eq!(parse("x\n").unwrap_err(), "line 1 of /metrics is no sample: x");
    }

    #[test]
    fn another_programs_metrics_are_refused() {
        assert!(Snapshot::read("go_goroutines 1\n").unwrap_err().contains("no Saltus server"));
    }

    #[test]
    fn rates_are_per_second_and_start_anew_with_the_server() {
        let figures = |value: f64| BTreeMap::from([("n".to_owned(), value)]);
        assert_eq!(rate(&figures(30.0), Some(&figures(10.0)), "n", 2.0), Some(10.0));
        assert_eq!(rate(&figures(4.0), Some(&figures(10.0)), "n", 2.0), Some(2.0));
        assert_eq!(rate(&figures(4.0), None, "n", 2.0), None);
    }
}
