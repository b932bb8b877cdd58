//! DataFusion alone, and still wrong. A test that fails here says that a newer DataFusion has put it right.

use datafusion::prelude::{SessionConfig, SessionContext};

/// The answer of DataFusion as it is, rows separated by spaces, cells by commas; or its error.
fn plain(sql: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        let frame = context.sql(sql).await.map_err(|error| error.to_string())?;
        let batches = frame.collect().await.map_err(|error| error.to_string())?;
        let mut rows = Vec::new();
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let cell = |column| arrow::util::display::array_value_to_string(column, row).unwrap();
                rows.push(batch.columns().iter().map(|column| cell(column.as_ref())).collect::<Vec<_>>().join(","));
            }
        }
        Ok(rows.join(" "))
    })
}

/// What is mended, a statement, and the answer that shows that the mending is still needed.
fn still_wrong(what: &str, sql: &str, wrong: &str) {
    let answer = plain(sql);
    assert_eq!(
        answer.as_deref(),
        Ok(wrong),
        "DataFusion answers this differently now; if that is right, this mending is needless now: {what}\n{sql}"
    );
}

const TIMES: &str = "(SELECT arrow_cast('2024-01-01', 'Timestamp(Nanosecond, None)') AS time)";
const SHIFTED: &str =
    "(VALUES (1, 1), (2, 2), (3, 3), (4, 4), (5, NULL), (6, NULL), (7, 7), (8, 8), (9, NULL)) AS t(k, a)";

#[test]
fn years_out_of_reach_compare_with_null() {
    let sql = format!("SELECT count(*) FROM {TIMES} WHERE date_part('year', time) < 9999");
    still_wrong("functions/date_part.rs", &sql, "0");
}

#[test]
fn extract_does_not_look_for_a_registered_date_part() {
    let sql = format!("SELECT count(*) FROM {TIMES} WHERE extract(year FROM time) < 9999");
    still_wrong("the rule for date_part in rules/mod.rs", &sql, "0");
}

#[test]
fn lead_loses_count_of_nulls() {
    let sql = format!("SELECT coalesce(lead(a, 2) IGNORE NULLS OVER (ORDER BY k), -1) FROM {SHIFTED} ORDER BY k");
    let right = "3 4 7 8 8 8 -1 -1 -1";
    let answer = plain(&sql).unwrap();
    assert_ne!(answer, right, "this mending is needless now: functions/shift.rs\n{sql}");
}

#[test]
fn a_limit_hides_rows_from_lead() {
    let frame = "ORDER BY k ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW";
    let sql = format!("SELECT lead(a) IGNORE NULLS OVER ({frame}) AS v FROM {SHIFTED} WHERE k > 3 LIMIT 1");
    let answer = plain(&sql).unwrap();
    assert_ne!(
        answer, "7",
        "this mending is needless now: enable_window_limits in engine.rs
{sql}"
    );
}

#[test]
fn integer_operators_wrap() {
    still_wrong("functions/checked.rs", "SELECT 9223372036854775807 + 1", "-9223372036854775808");
    still_wrong(
        "functions/checked.rs",
        "SELECT a - 2 FROM (VALUES (-9223372036854775807)) AS t(a)",
        "9223372036854775807",
    );
    still_wrong("functions/checked.rs", "SELECT a * 2 FROM (VALUES (9223372036854775807)) AS t(a)", "-2");
    still_wrong(
        "functions/checked.rs",
        "SELECT -a FROM (VALUES (-9223372036854775808)) AS t(a)",
        "-9223372036854775808",
    );
    still_wrong("functions/checked.rs", "SELECT a << 64 FROM (VALUES (1)) AS t(a)", "1");
}

#[test]
fn sums_wrap() {
    let values = "(VALUES (9223372036854775807), (1)) AS t(a)";
    still_wrong("functions/sum", &format!("SELECT sum(a) FROM {values}"), "-9223372036854775808");
    let sql = format!(
        "SELECT sum(a) OVER (ORDER BY a ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM {values} ORDER BY a DESC"
    );
    still_wrong("functions/sum", &sql, "-9223372036854775808 1");
}

#[test]
fn averages_of_durations_wrap() {
    let sql = format!(
        "SELECT avg(time - arrow_cast(0, 'Timestamp(Nanosecond, None)')) < arrow_cast(0, 'Duration(Nanosecond)') FROM {TIMES}, \
         (SELECT unnest([1, 2, 3, 4, 5, 6]))"
    );
    still_wrong("avg in functions/sum", &sql, "true");
}

#[test]
fn intervals_are_compared_part_by_part() {
    still_wrong("rules/intervals.rs", "SELECT INTERVAL '25 hours' > INTERVAL '1 day'", "false");
}

#[test]
fn times_out_of_reach_are_an_error() {
    let sql = format!("SELECT count(*) FROM {TIMES} WHERE time < '9999-12-31'");
    assert!(plain(&sql).is_err(), "this mending is needless now: rules/bounds.rs\n{sql}");
}
