//! The word that was meant: for names that do not exist.

/// The word of `known` that `name` is most probably a slip of, if it is near enough to any.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase();
    let distances = known.iter().map(|&word| (distance(&name, &word.to_lowercase()), word));
    let (slips, word) = distances.min_by_key(|&(slips, _)| slips)?;
    (slips <= (word.chars().count() / 3).max(1)).then_some(word)
}

/// How many letters are left out, added, changed, or swapped with the next one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for (at, letter) in a.iter().enumerate() {
        let above = &rows[at];
        let mut row = vec![at + 1];
        for (to, other) in b.iter().enumerate() {
            let mut best = (above[to] + usize::from(letter != other)).min(above[to + 1] + 1).min(row[to] + 1);
            if at > 0 && to > 0 && *letter == b[to - 1] && a[at - 1] == *other {
                best = best.min(rows[at - 1][to - 1] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows.last().and_then(|row| row.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_and_another_word_finds_none() {
        let known = ["db", "precision", "accept_partial", "no_sync"];
        for (name, word) in [
            ("precison", Some("precision")),
            ("Precision", Some("precision")),
            ("acceptPartial", Some("accept_partial")),
            ("nosync", Some("no_sync")),
            ("bd", Some("db")),
            ("database", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), word, "{name}");
        }
    }
}
