//! The functions, over tables in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use saltus_core::schema::ColumnKind;

use crate::query::tests::{Fixture, fixture, floats, table, tags, times};

const ROOMS: [(&str, ColumnKind); 3] =
    [("room", ColumnKind::Tag), ("temp", ColumnKind::Float), ("n", ColumnKind::Integer)];

/// Two chunks; the second has the oldest row, and rows without a temperature are the first and the last.
fn rooms() -> Fixture {
    let it = fixture();
    let first = vec![
        ("room", tags(&["a", "a", "a", "b"])),
        ("temp", Arc::new(Float64Array::from(vec![None, Some(21.5), Some(19.0), Some(30.0)])) as ArrayRef),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef),
        ("time", times(&[0, 10, 20, 20])),
    ];
    let second = vec![
        ("room", tags(&["a", "b", "a"])),
        ("temp", Arc::new(Float64Array::from(vec![Some(21.5), Some(30.0), None])) as ArrayRef),
        ("n", Arc::new(Int64Array::from(vec![5, 6, 7])) as ArrayRef),
        ("time", times(&[5, 15, 30])),
    ];
    it.memory.add(table("db", "rooms", &ROOMS, vec![first, second]));
    it.memory.add(table(
        "db",
        "empty",
        &ROOMS,
        vec![vec![
            ("room", tags(&[])),
            ("temp", floats(&[])),
            ("n", Arc::new(Int64Array::from(Vec::<i64>::new())) as ArrayRef),
            ("time", times(&[])),
        ]],
    ));
    it
}

#[test]
fn selectors_pick_the_row_by_time_or_by_value_and_skip_rows_without_one() {
    let it = rooms();
    let picked = |selector: &str| {
        it.rows(&format!(
            "SELECT {selector}(temp, time)['value'] AS v, {selector}(temp, time)['time'] AS t FROM rooms WHERE room = 'a'"
        ))
    };
    assert_eq!(picked("selector_first"), "21.5,2024-01-01T00:00:05");
    assert_eq!(picked("selector_last"), "19.0,2024-01-01T00:00:20");
    assert_eq!(picked("selector_min"), "19.0,2024-01-01T00:00:20");
    // Of two rows with the greatest value, the earlier one.
    assert_eq!(picked("selector_max"), "21.5,2024-01-01T00:00:05");
}

#[test]
fn selectors_take_further_columns_of_the_picked_row_along() {
    let it = rooms();
    let sql = "SELECT room, s['value'] AS v, s['other_1'] AS n, s['other_2'] AS r FROM \
               (SELECT room, selector_last(temp, time, n, room) AS s FROM rooms GROUP BY room) ORDER BY room";
    assert_eq!(it.rows(sql), "a,19.0,3,a b,30.0,4,b");
}

#[test]
fn selectors_work_on_text_and_in_bins_of_time() {
    let it = rooms();
    assert_eq!(it.rows("SELECT selector_max(room, time)['value'] AS r FROM rooms"), "b");
    let sql = "SELECT date_bin(INTERVAL '15 seconds', time) AS _time, selector_first(temp, time)['value'] AS first \
               FROM rooms WHERE temp IS NOT NULL GROUP BY _time ORDER BY _time";
    assert_eq!(it.rows(sql), "2024-01-01T00:00:00,21.5 2024-01-01T00:00:15,30.0");
}

#[test]
fn selectors_of_nothing_are_null() {
    let it = rooms();
    assert_eq!(it.rows("SELECT selector_last(temp, time)['value'] IS NULL AS n FROM empty"), "true");
    assert_eq!(it.rows("SELECT selector_last(temp, time)['time'] IS NULL AS n FROM rooms WHERE n IN (1, 7)"), "true");
}

#[test]
fn selectors_say_what_they_take() {
    let it = rooms();
    let error = it.error("SELECT selector_first(temp) FROM rooms").to_string();
    assert!(error.contains("selector_first(value, time)"), "{error}");
    let error = it.error("SELECT selector_first(temp, room) FROM rooms").to_string();
    assert!(error.contains("must be a timestamp"), "{error}");
}

#[test]
fn tz_shows_the_same_instant_in_another_zone() {
    let it = rooms();
    let sql = "SELECT tz(time, 'America/New_York')::bigint = time::bigint AS same, \
               date_part('hour', tz(time, 'America/New_York')) AS hour, date_part('hour', tz(time)) AS utc \
               FROM rooms WHERE n = 2";
    assert_eq!(it.rows(sql), "true,19,0");
    assert_eq!(it.rows("SELECT arrow_typeof(tz(time)) AS t FROM rooms LIMIT 1"), "\"Timestamp(ns, \"\"UTC\"\")\"");
}

#[test]
fn tz_refuses_a_zone_that_nobody_knows() {
    let it = rooms();
    let error = it.error("SELECT tz(time, 'Mars/Olympus') FROM rooms").to_string();
    assert!(error.contains("'Mars/Olympus'") && error.contains("IANA"), "{error}");
    let error = it.error("SELECT tz(time, room) FROM rooms").to_string();
    assert!(error.contains("constant"), "{error}");
}
