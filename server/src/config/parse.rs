//! Values as people write them: sizes, times, lists of cores.

use std::time::Duration;

/// A size with unit, in powers of 1024. A bare number is refused unless it is 0.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| not_a_size(&text))?;
    let shift = match unit.trim() {
        "b" => 0,
        "kb" | "k" | "kib" => 10,
        "mb" | "m" | "mib" => 20,
        "gb" | "g" | "gib" => 30,
        "tb" | "t" | "tib" => 40,
        "" if number == 0 => 0,
        _ => return Err(not_a_size(&text)),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

fn not_a_size(text: &str) -> String {
    format!("'{text}' is no size; write a whole number and a unit, for instance 64kb, 256mb or 2gb")
}

/// A size, or a share of `memory` such as `20%`.
pub fn size_or_share(text: &str, memory: u64) -> Result<u64, String> {
    let Some(share) = text.trim().strip_suffix('%') else { return size(text) };
    match share.trim().parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 100.0 => Ok((memory as f64 * share / 100.0) as u64),
        _ => Err(format!("'{text}' is no share of memory; write for instance 20%")),
    }
}

/// A share of a core in per cent, such as `25%`.
pub fn percent(text: &str) -> Result<u32, String> {
    let share = text.trim().strip_suffix('%').and_then(|share| share.trim().parse().ok());
    share
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| format!("'{text}' is no share of a core; write 1% to 100%"))
}

/// A share from 0 to 1, such as `0.01`.
pub fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.trim().parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| format!("'{text}' is no share; write a number from 0 to 1, such as 0.01"))
}

/// A time such as `10ms`, `30s`, `5m`; `0s` is allowed.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("'{text}' is no time ({error}); write for instance 10ms, 30s or 5m"))
}

/// What an inline run should take: from a microsecond to a second.
pub fn inline_budget(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let sensible = Duration::from_micros(1)..=Duration::from_secs(1);
    if sensible.contains(&time) { Ok(time) } else { Err(format!("'{text}': expected 1us to 1s")) }
}

/// A whole number.
pub fn number(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| format!("'{text}' is no whole number"))
}

/// Yes or no.
pub fn flag(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

/// Cores as `0,2-5`, in the order given, none twice.
pub fn cpus(text: &str) -> Result<Vec<usize>, String> {
    let bad = || format!("'{text}' is no list of cores; write for instance 0,2-5");
    let mut list = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| bad())?;
        let last: usize = last.trim().parse().map_err(|_| bad())?;
        if last < first || last >= 4096 {
            return Err(bad());
        }
        for cpu in first..=last {
            if list.contains(&cpu) {
                return Err(format!("'{text}' names core {cpu} twice"));
            }
            list.push(cpu);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("64kb"), Ok(65536));
        assert_eq!(size(" 256 MB"), Ok(256 << 20));
        assert_eq!(size("0"), Ok(0));
        assert!(size("10").unwrap_err().contains("write a whole number and a unit"));
        assert!(size("99999999999tb").unwrap_err().contains("too large"));
        assert_eq!(size_or_share("25%", 400), Ok(100));
        assert!(size_or_share("0%", 400).is_err());
        assert_eq!((ratio("0.01"), ratio("1")), (Ok(0.01), Ok(1.0)));
        assert!(ratio("1.5").is_err() && ratio("nan").is_err() && ratio("1%").unwrap_err().contains("from 0 to 1"));
        assert_eq!(percent(" 25 %"), Ok(25));
        for bad in ["25", "0%", "101%", "1.5%", "-1%", "%"] {
            assert!(percent(bad).unwrap_err().contains("1% to 100%"), "{bad}");
        }
    }

    #[test]
    fn core_lists_have_ranges_and_no_repeats() {
        assert_eq!(cpus("0,2-5"), Ok(vec![0, 2, 3, 4, 5]));
        assert_eq!(cpus("3"), Ok(vec![3]));
        assert!(cpus("1,0-2").unwrap_err().contains("core 1 twice"));
        assert!(cpus("5-2").is_err());
        assert!(cpus("").is_err());
    }
}
