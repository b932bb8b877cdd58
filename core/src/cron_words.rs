//! What is wrong with a cron expression, in words: which field, which part of it, and what is expected there.
//!
//! Asked only about expressions that [`cron_schedules`](crate::trigger::cron_schedules) has refused.

/// What stands in a field.
struct Rule {
    name: &'static str,
    min: u32,
    max: u32,
    /// What is said behind the numbers.
    note: &'static str,
    names: &'static [&'static str],
    /// `?` means every value.
    any: bool,
    /// The numbers and the steps of Unix cron, read by this crate itself.
    unix: bool,
}

const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: &[&str] = &["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

const fn rule(name: &'static str, min: u32, max: u32) -> Rule {
    Rule { name, min, max, note: "", names: &[], any: false, unix: false }
}

const SECOND: Rule = rule("second", 0, 59);
const MINUTE: Rule = rule("minute", 0, 59);
const HOUR: Rule = rule("hour", 0, 23);
const DAY: Rule = Rule { any: true, ..rule("day of the month", 1, 31) };
const MONTH: Rule = Rule { names: MONTHS, ..rule("month", 1, 12) };
const WEEKDAY: Rule = Rule { names: DAYS, any: true, note: " (1 is Sunday)", ..rule("weekday", 1, 7) };
const UNIX_WEEKDAY: Rule = Rule { names: DAYS, any: true, unix: true, ..rule("weekday", 0, 7) };
const YEAR: Rule = rule("year", 1970, 2100);

/// The forms there are.
const FORMS: &str = "expected five fields (minute hour day month weekday), six (second first) or seven (year last), such as */5 * * * *";

/// What is wrong with an expression.
pub fn fault(expression: &str) -> String {
    if let Some(name) = expression.trim().strip_prefix('@') {
        return format!("'@{name}' is not known: expected @hourly, @daily, @weekly, @monthly or @yearly; or fields");
    }
    let fields: Vec<&str> = expression.split_whitespace().collect();
    let rules: &[Rule] = match fields.len() {
        5 => &[MINUTE, HOUR, DAY, MONTH, UNIX_WEEKDAY],
        6 => &[SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY],
        7 => &[SECOND, MINUTE, HOUR, DAY, MONTH, WEEKDAY, YEAR],
        many => return format!("{FORMS}; there are {many}"),
    };
    let mut faults = fields.iter().zip(rules).filter_map(|(field, rule)| {
        let found = field.split(',').find_map(|item| rule.item(item).err())?;
        Some(format!("{}: {found}", rule.name))
    });
    faults.next().unwrap_or_else(|| FORMS.to_owned())
}

impl Rule {
    fn item(&self, item: &str) -> Result<(), String> {
        if item.is_empty() {
            return Err("an item of the list is empty: there is a comma too many".to_owned());
        }
        let (range, step) = item.split_once('/').map_or((item, None), |(range, step)| (range, Some(step)));
        if let Some(step) = step {
            self.step(item, step)?;
        }
        match range {
            "*" => return Ok(()),
            "?" if self.any => return Ok(()),
            "?" => return Err("'?' is for the day of the month and the weekday: write *".to_owned()),
            _ => {}
        }
        let Some((first, last)) = range.split_once('-').filter(|(first, _)| !first.is_empty()) else {
            self.value(range)?;
            let named = range.starts_with(|first: char| first.is_ascii_alphabetic());
            return match (self.unix, named && step.is_some(), range == "7" && step.is_some()) {
                (false, true, _) => Err(format!("'{item}': a step behind a name is not understood: write the number")),
                (true, _, true) => Err(format!("'{item}' is empty: the week ends with day 6")),
                _ => Ok(()),
            };
        };
        let (from, to) = (self.value(first)?, self.value(last)?);
        let named = |text: &str| text.starts_with(|first: char| first.is_ascii_alphabetic());
        if !self.unix && named(first) != named(last) {
            return Err(format!("'{range}': write two numbers or two names"));
        }
        // A week that ends on Sunday by name.
        let to = if self.unix && to == 0 && from > 0 { 7 } else { to };
        if from > to {
            let (least, most) = (self.min, if self.unix { 6 } else { self.max });
            return Err(format!("'{range}' runs backwards: write {from}-{most},{least}-{to}, or {last}-{first}"));
        }
        Ok(())
    }

    fn step(&self, item: &str, step: &str) -> Result<(), String> {
        let most = if self.unix { u32::MAX } else { self.max };
        match step.parse::<u32>() {
            Ok(0) => Err(format!("'{item}': the step is 0, and must be 1 or more")),
            Ok(number) if number <= most => Ok(()),
            Ok(_) => Err(format!("'{item}': the step is more than {most}")),
            Err(_) => Err(format!("'{item}': the step '{step}' is not a number")),
        }
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let Rule { min, max, note, .. } = self;
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse::<u32>().ok().filter(|number| (*min..=*max).contains(number));
            return number.ok_or_else(|| format!("{text} is not {min} to {max}{note}"));
        }
        let lower = text.to_ascii_lowercase();
        let is_name = |name: &&str| lower == **name || name.get(..3) == Some(&*lower);
        if let Some(at) = self.names.iter().position(is_name) {
            let at = u32::try_from(at).unwrap_or_default();
            return Ok(if self.unix { at } else { at + 1 });
        }
        let expected = match self.names {
            [first, .., last] => {
                let short = |name: &str| name.get(..3).unwrap_or(name).to_ascii_uppercase();
                format!("{min} to {max}{note}, {} to {}", short(first), short(last))
            }
            _ => format!("{min} to {max}{note}"),
        };
        let hint = if self.any && text.contains(['L', 'W', '#']) { " (there is no L, W or #)" } else { "" };
        Err(format!("'{text}' is not understood: expected {expected}, *, first-last, or one of these with /step{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trigger::cron_schedules;

    #[test]
    fn refusals_name_the_field_and_the_part_of_it() {
        for (expression, words) in [
            ("60 * * * *", "minute: 60 is not 0 to 59"),
            ("* 24 * * *", "hour: 24 is not 0 to 23"),
            ("* * 0 * *", "day of the month: 0 is not 1 to 31"),
            ("* * 32 * *", "day of the month: 32 is not 1 to 31"),
            ("* * * 13 *", "month: 13 is not 1 to 12"),
            ("* * * 0 *", "month: 0 is not 1 to 12"),
            ("* * * * 8", "weekday: 8 is not 0 to 7"),
            ("60 * * * * *", "second: 60 is not 0 to 59"),
            ("* 60 * * * *", "minute: 60 is not 0 to 59"),
            ("* * 24 * * *", "hour: 24 is not 0 to 23"),
            ("0 0 0 * * 0", "weekday: 0 is not 1 to 7 (1 is Sunday)"),
            ("0 0 0 * * * 2101", "year: 2101 is not 1970 to 2100"),
            ("0 0 0 * * * 1969", "year: 1969 is not 1970 to 2100"),
            ("99999999999 * * * *", "minute: 99999999999 is not 0 to 59"),
            ("*/0 * * * *", "minute: '*/0': the step is 0, and must be 1 or more"),
            ("* */24 * * *", "hour: '*/24': the step is more than 23"),
            ("*/x * * * *", "minute: '*/x': the step 'x' is not a number"),
            ("*/ * * * *", "minute: '*/': the step '' is not a number"),
            ("* * * FOO *", "month: 'FOO' is not understood: expected 1 to 12, JAN to DEC"),
            ("* * * * FOO", "weekday: 'FOO' is not understood: expected 0 to 7, SUN to SAT"),
            ("x * * * *", "minute: 'x' is not understood: expected 0 to 59"),
            ("-5 * * * *", "minute: '-5' is not understood"),
            ("1.5 * * * *", "minute: '1.5' is not understood"),
            ("5- * * * *", "minute: '' is not understood"),
            ("0-60 * * * *", "minute: 60 is not 0 to 59"),
            ("30-10 * * * *", "minute: '30-10' runs backwards: write 30-59,0-10, or 10-30"),
            ("* 22-6 * * *", "hour: '22-6' runs backwards: write 22-23,0-6, or 6-22"),
            ("* * * NOV-FEB *", "month: 'NOV-FEB' runs backwards: write 11-12,1-2, or FEB-NOV"),
            ("* * * * 3-1", "weekday: '3-1' runs backwards: write 3-6,0-1, or 1-3"),
            ("* * * JAN-3 *", "month: 'JAN-3': write two numbers or two names"),
            ("* * * JAN/2 *", "month: 'JAN/2': a step behind a name is not understood"),
            ("1,,2 * * * *", "minute: an item of the list is empty"),
            ("1,2, * * * *", "minute: an item of the list is empty"),
            ("1,61 * * * *", "minute: 61 is not 0 to 59"),
            ("? * * * *", "minute: '?' is for the day of the month and the weekday"),
            ("* * L * *", "day of the month: 'L' is not understood"),
            ("", "expected five fields (minute hour day month weekday)"),
            (
                "* * * *",
                "expected five fields (minute hour day month weekday), six (second first) or seven (year last)",
            ),
            ("* * * * * * * *", "such as */5 * * * *; there are 8"),
            ("@reboot", "'@reboot' is not known: expected @hourly, @daily"),
        ] {
            assert!(cron_schedules(expression).is_none(), "{expression} is taken");
            let said = fault(expression);
            assert!(said.contains(words), "{expression}: {said}");
        }
    }

    /// Whatever is refused has a reason, and nothing that is taken has one.
    #[test]
    fn the_words_and_the_parser_agree() {
        let items = [
            "*", "?", "0", "1", "7", "8", "12", "13", "23", "24", "31", "32", "59", "60", "2100", "*/2", "*/0", "*/99",
            "1-3", "3-1", "0-7", "MON", "mon-fri", "FRI-SUN", "JAN", "jan-mar", "JAN-3", "MON/2", "1,2", "1,", "x",
            "5-7", "1-5/2", "5/2", "7/2", "thursday",
        ];
        for places in 5..=7 {
            for place in 0..places {
                for item in items {
                    let mut fields = vec!["*"; places];
                    fields[place] = item;
                    let expression = fields.join(" ");
                    let reason = fault(&expression);
                    let is_reason = reason != FORMS;
                    assert_eq!(cron_schedules(&expression).is_none(), is_reason, "{expression}: {reason}");
                }
            }
        }
    }
}
