//! Names that are not there, and names that are like them.

use datafusion::common::Column;

/// The text for a column that is not there.
pub(super) fn column(asked: &Column, there: &[Column], sql: &str) -> String {
    let name = asked.quoted_flat_name();
    let mut text = format!("Schema error: No field named {name}.");
    let own: Vec<&str> = there.iter().map(|column| column.name.as_str()).collect();
    let like = like(&asked.name, &own);
    if let Some(same) = own.iter().find(|own| same_but_for_case(own, &asked.name)) {
        text += &format!(" There is a column \"{same}\": upper and lower case are different names.");
    } else if asked.relation.is_none() && sql.contains(&format!("\"{}\"", asked.name)) {
        text += &format!(
            " Texts are in single quotes: '{}'. Double quotes are for the names of columns and tables.",
            asked.name.replace('\'', "''")
        );
    } else if let Some(like) = like {
        text += &format!(" Did you mean \"{like}\"?");
    }
    if !there.is_empty() {
        let names: Vec<String> = there.iter().map(Column::quoted_flat_name).collect();
        text += &format!(" Valid fields are {}.", names.join(", "));
    }
    text
}

/// What is said about a table that is not there, if the text is about one and there is one like it.
pub(super) fn table(text: &str, tables: impl Fn() -> Vec<String>) -> Option<String> {
    let (_, rest) = text.split_once("table '")?;
    let (path, _) = rest.split_once("' not found")?;
    let asked = path.splitn(3, '.').last()?;
    let tables = tables();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    if let Some(same) = tables.iter().find(|there| same_but_for_case(there, asked)) {
        return Some(format!("there is a table \"{same}\": upper and lower case are different names"));
    }
    like(asked, &tables).map(|like| format!("did you mean \"{like}\"?"))
}

fn same_but_for_case(one: &str, other: &str) -> bool {
    one != other && one.to_lowercase() == other.to_lowercase()
}

/// The name that is nearest, if it is near.
fn like<'a>(asked: &str, there: &[&'a str]) -> Option<&'a str> {
    /// More names than these are not compared.
    const NAMES_MAX: usize = 2000;
    // Of one or two letters every name is near.
    if asked.chars().count() < 3 {
        return None;
    }
    let near = |name: &&str| distance(asked, name) <= asked.chars().count().div_ceil(4).min(3);
    there.iter().take(NAMES_MAX).filter(|name| near(name)).min_by_key(|name| distance(asked, name)).copied()
}

/// How many letters must be changed, added or taken away (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    /// Longer names are not like each other.
    const LETTERS_MAX: usize = 64;
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if one.len() > LETTERS_MAX || other.len() > LETTERS_MAX {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, with) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != with);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_like_the_one_asked_for_are_named() {
        let there = || vec!["Home".to_owned(), "cpu_usage".to_owned(), "a.b".to_owned()];
        let said = |name: &str| table(&format!("Error during planning: table 'public.iox.{name}' not found"), there);
        assert_eq!(said("home").unwrap(), "there is a table \"Home\": upper and lower case are different names");
        assert_eq!(said("cpu_usag").unwrap(), "did you mean \"cpu_usage\"?");
        assert_eq!(said("A.b").unwrap(), "there is a table \"a.b\": upper and lower case are different names");
        assert_eq!(said("nothing_like_it"), None);
        assert_eq!(table("something else", there), None);
    }

    #[test]
    fn columns_are_named_with_the_form_to_write() {
        let there: Vec<Column> = ["Temp", "host", "time"].map(Column::from_name).into();
        let said = |name: &str, sql: &str| column(&Column::from_name(name), &there, sql);
        assert!(said("temp", "SELECT temp FROM m").contains("There is a column \"Temp\""));
        assert!(said("hosts", "SELECT hosts FROM m").contains("Did you mean \"host\"?"));
        assert!(said("a", "SELECT host FROM m WHERE host = \"a\"").contains("single quotes: 'a'"));
        let other = said("zzz", "SELECT zzz FROM m");
        assert!(other.starts_with("Schema error: No field named zzz. Valid fields are"), "{other}");
    }

    #[test]
    fn distances() {
        for (one, other, letters) in [("", "", 0), ("a", "", 1), ("abc", "abd", 1), ("abc", "bc", 1), ("ab", "ba", 2)] {
            assert_eq!(distance(one, other), letters, "{one} {other}");
        }
    }
}
