//! Of the names that there are, the one that somebody probably meant: for messages about a name that there is not.

/// Edits between two names that may be a slip.
const EDITS_MAX: usize = 3;
/// A part of a name that is shorter than this says nothing.
const PART_MIN: usize = 4;

/// The known name nearest to `given`, if it is near: a slip or two apart, spelt as in another language (`errorBehavior`), or with a part
/// of it left out.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = plain(given);
    let mut best: Option<(usize, &'a str)> = None;
    for name in known {
        let candidate = plain(name);
        let edits = distance(&wanted, &candidate);
        // Short names are near to everything.
        let is_slip = edits <= EDITS_MAX && edits * 2 < candidate.len().max(2);
        let is_part = wanted.len() >= PART_MIN && candidate.contains(&wanted)
            || candidate.len() >= PART_MIN && wanted.contains(&candidate);
        let edits = if is_slip { edits } else { EDITS_MAX + edits };
        if (is_slip || is_part) && best.is_none_or(|(least, _)| edits < least) {
            best = Some((edits, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Lower case, and nothing but letters and digits.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Edit distance, of names that are a few bytes long.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_other_spellings_and_parts_are_near() {
        let known = [
            "db",
            "precision",
            "accept_partial",
            "no_sync",
            "trigger_name",
            "trigger_settings",
            "trigger_specification",
            "error_behavior",
            "limits",
            "http-bind",
        ];
        for (given, near) in [
            ("errorBehavior", Some("error_behavior")),
            ("error_behaviour", Some("error_behavior")),
            ("trigger_setings", Some("trigger_settings")),
            ("triggerSettings", Some("trigger_settings")),
            ("trigger_spec", Some("trigger_specification")),
            ("triger-name", Some("trigger_name")),
            ("DB", Some("db")),
            ("htp-bind", Some("http-bind")),
            ("limit", Some("limits")),
            ("precison", Some("precision")),
            ("acceptPartial", Some("accept_partial")),
            ("nosync", Some("no_sync")),
            ("database", None),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, known), near, "{given}");
        }
    }
}
