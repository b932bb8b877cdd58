//! A strict reader of Prometheus' text format: what a scraper or a linter would refuse, it refuses.

use std::collections::{BTreeMap, BTreeSet};

/// One family as it stands in the text.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Name with suffix, labels, value.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// The families of a text, by name; panics with the line that breaks a rule.
pub fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current: Option<(String, bool)> = None;
    let mut ended = false;
    assert!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        assert!(!ended, "{line} comes after the end");
        if line == "# EOF" {
            ended = true;
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(is_name(name, ":"), "{line}");
            assert!(!help.trim().is_empty() && help.ends_with('.'), "{line}");
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "twice: {line}");
            current = Some((name.to_owned(), false));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no kind: {line}"));
            let (open, typed) = current.as_mut().unwrap_or_else(|| panic!("no help before {line}"));
            assert!(open == name && !*typed, "{line} does not follow its help");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            *typed = true;
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            assert!(!line.starts_with('#'), "a comment that is none of HELP, TYPE, EOF: {line}");
            let (name, typed) = current.as_ref().unwrap_or_else(|| panic!("no family: {line}"));
            assert!(*typed, "no kind: {line}");
            let sample = sample(line);
            assert!(belongs(name, &families[name].kind, &sample), "{line} is not of {name}");
            families.get_mut(name).unwrap().samples.push(sample);
        }
    }
    for (name, family) in &families {
        check(name, family);
    }
    families
}

fn is_name(name: &str, also: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || also.contains(c))
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let name = &line[..end];
    assert!(is_name(name, ":"), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("a label without a value: {line}"));
            assert!(is_name(label, "") && !label.starts_with("__"), "{line}");
            let (value, behind) = quoted(value).unwrap_or_else(|| panic!("a value without an end: {line}"));
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
            match behind.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = behind.strip_prefix('}').unwrap_or_else(|| panic!("labels without an end: {line}"));
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space before the value: {line}"));
    assert!(!value.contains(' '), "more than a value: {line}");
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => match characters.next()?.1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                _ => return None,
            },
            (_, c) => value.push(c),
        }
    }
}

fn belongs(family: &str, kind: &str, sample: &(String, BTreeMap<String, String>, f64)) -> bool {
    let (name, labels, _) = sample;
    match (kind, name.strip_prefix(family)) {
        ("summary", Some("")) => labels.contains_key("quantile"),
        ("summary", Some("_sum" | "_count")) => !labels.contains_key("quantile"),
        (_, Some("")) => !labels.contains_key("quantile"),
        _ => false,
    }
}

fn check(name: &str, family: &Family) {
    let Family { kind, samples, .. } = family;
    assert!(!samples.is_empty(), "{name} has no sample");
    assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
    for unit in ["_ns", "_us", "_ms", "_milliseconds", "_nanoseconds", "_kb", "_mb", "_percent"] {
        assert!(!name.trim_end_matches("_total").ends_with(unit), "{name} is not in a base unit");
    }
    let mut seen = BTreeSet::new();
    for (full, labels, value) in samples {
        assert!(seen.insert((full, labels)), "{full} {labels:?} twice");
        if kind == "counter" || full.ends_with("_count") {
            assert!(value.is_finite() && *value >= 0.0, "{full} counts {value}");
        }
    }
    if kind == "summary" {
        check_summary(name, samples);
    }
}

/// Every series has its quantiles in order, a sum and a count; without a count there are no quantiles to tell.
fn check_summary(name: &str, samples: &[(String, BTreeMap<String, String>, f64)]) {
    let mut series: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    let of = |suffix: &str, labels: &BTreeMap<String, String>| {
        let full = format!("{name}{suffix}");
        let found = samples.iter().find(|(sample, own, _)| *sample == full && own == labels);
        found.unwrap_or_else(|| panic!("{full} {labels:?} is missing")).2
    };
    for (_, labels, value) in samples.iter().filter(|(sample, _, _)| sample == name) {
        let mut labels = labels.clone();
        let quantile = labels.remove("quantile").unwrap().parse().unwrap();
        series.entry(labels).or_default().push((quantile, *value));
    }
    for (labels, quantiles) in series {
        let (sum, count) = (of("_sum", &labels), of("_count", &labels));
        assert_eq!(quantiles.iter().map(|(q, _)| *q).collect::<Vec<_>>(), [0.5, 0.9, 0.99, 0.999], "{name} {labels:?}");
        if count == 0.0 {
            assert!(sum == 0.0 && quantiles.iter().all(|(_, value)| value.is_nan()), "{name} {labels:?}");
        } else {
            assert!(quantiles.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {labels:?}: {quantiles:?}");
            assert!(sum > 0.0 && quantiles[0].1 > 0.0, "{name} {labels:?}");
        }
    }
}
