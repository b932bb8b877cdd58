//! The raw results: percentile files (`.hgrm`) and interval logs (`.hlog`) that the tools of HdrHistogram read.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use super::gather::Series;
use super::outcome::{Outcome, Ran};

/// Lines of a percentile file for each halving of the distance to 100 %.
const TICKS_PER_HALF: u32 = 5;

/// Writes both files of every measure of a scenario into a folder; their names.
///
/// # Errors
/// They cannot be written.
pub fn write(folder: &Path, ran: &Ran) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for outcome in &ran.outcomes {
        for (stream, measure) in outcome.measures() {
            let what = format!("{}-{}", stream.stream, measure.label().replace(", ", "-").replace(' ', "-"));
            names.extend(both(folder, &file_name(ran, outcome, &what), &measure.histogram, &measure.series)?);
        }
        let hiccups = &outcome.hiccup_series;
        names.extend(both(folder, &file_name(ran, outcome, "hiccups"), &hiccups.histogram(), hiccups)?);
    }
    Ok(names)
}

fn file_name(ran: &Ran, outcome: &Outcome, what: &str) -> String {
    format!("{}-{}-{what}", ran.scenario.name, outcome.target)
}

fn both(folder: &Path, name: &str, histogram: &Histogram<u64>, series: &Series) -> anyhow::Result<[String; 2]> {
    let names = [format!("{name}.hgrm"), format!("{name}.hlog")];
    save(&folder.join(&names[0]), hgrm(histogram).as_bytes())?;
    save(&folder.join(&names[1]), &hlog(series)?)?;
    Ok(names)
}

/// Writes a file.
///
/// # Errors
/// It cannot be written.
pub fn save(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// The percentile distribution in microseconds, in the form of HdrHistogram's `outputPercentileDistribution`.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let us = |ns: f64| ns / 1000.0;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        count += step.count_since_last_iteration();
        let (value, quantile) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
        text += &if quantile < 1.0 {
            format!("{value:>12.3} {quantile:>14.12} {count:>10} {:>14.2}\n", 1.0 / (1.0 - quantile))
        } else {
            format!("{value:>12.3} {quantile:>14.12} {count:>10}\n")
        };
    }
    // The parsers of such files take what stands behind the equals signs.
    text += &format!("#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]\n", us(histogram.mean()), us(histogram.stdev()));
    text += &format!("#[Max     = {:>12.3}, Total count    = {:>12}]\n", us(histogram.max() as f64), histogram.len());
    text + &format!("#[Buckets = {:>12}, SubBuckets     = {:>12}]\n", histogram.buckets(), SUB_BUCKETS)
}

/// Of a histogram with three digits.
const SUB_BUCKETS: u32 = 2048;

/// An interval log with one histogram for each second; values in nanoseconds, maxima in milliseconds.
///
/// # Errors
/// None but those of memory.
pub fn hlog(series: &Series) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let seconds = series.seconds();
    let start =
        SystemTime::now().checked_sub(Duration::from_secs(seconds.len() as u64)).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("latencies in nanoseconds, one histogram for each measured second")
        .with_start_time(start)
        .with_base_time(start)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer)?;
    for (second, histogram) in seconds.iter().enumerate() {
        log.write_histogram(histogram, Duration::from_secs(second as u64), Duration::from_secs(1), None)
            .map_err(|error| anyhow::anyhow!("encoding a histogram: {error:?}"))?;
    }
    bytes.flush()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::gather::Point;
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn series() -> Series {
        let point = |number: u64| Point { at_ns: number * 2_000_000, ns: (number + 1) * 1000 };
        Series { points: (0..1000).map(point).collect() }
    }

    #[test]
    fn percentile_files_have_the_columns_and_the_end_that_plotters_look_for() {
        let text = hgrm(&series().histogram());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]);
        assert!(lines[1].is_empty());
        let median = lines.iter().find(|line| line.get(1) == Some(&"0.500000000000")).unwrap();
        assert!((median[0].parse::<f64>().unwrap() - 500.0).abs() < 1.0, "{median:?}");
        assert_eq!((median[2], median[3]), ("500", "2.00"));
        assert!(text.contains("#[Max     =     1000.") && text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn interval_logs_are_read_back_second_by_second() {
        let bytes = hlog(&series()).unwrap();
        let mut counts = Vec::new();
        for entry in IntervalLogIterator::new(&bytes) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let encoded = interval.encoded_histogram();
                let raw = base64_decoded(encoded);
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut raw.as_slice()).unwrap();
                counts.push((interval.start_timestamp().as_secs(), histogram.len()));
            }
        }
        assert_eq!(counts, [(0, 500), (1, 500)]);
    }

    fn base64_decoded(text: &str) -> Vec<u8> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bits = 0_u32;
        let mut have = 0;
        let mut bytes = Vec::new();
        for letter in text.bytes().filter(|letter| *letter != b'=') {
            bits = (bits << 6) | ALPHABET.iter().position(|known| *known == letter).unwrap() as u32;
            have += 6;
            if have >= 8 {
                have -= 8;
                bytes.push((bits >> have) as u8);
            }
        }
        bytes
    }
}
