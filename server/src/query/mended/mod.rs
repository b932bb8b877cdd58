//! Answers that DataFusion alone gets wrong, as tables of a statement and its right answer.
//!
//! What `needless` holds fails as soon as a newer DataFusion gives the right answer by itself: then the mending can go.

mod needless;
mod windows;

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, UInt64Array};
use saltus_core::schema::ColumnKind;

use super::tests::{Fixture, fixture, table, tags, times};
use super::{QueryError, ScalarParam};

const MAX: &str = "9223372036854775807";

/// Table `n`: the ends of the types, in two chunks; table `Home`: one row, whose names have capitals.
fn numbers() -> Fixture {
    let it = fixture();
    let columns = [
        ("g", ColumnKind::Tag),
        ("i", ColumnKind::Integer),
        ("u", ColumnKind::UInteger),
        ("f", ColumnKind::Float),
        ("s", ColumnKind::String),
    ];
    let chunk = |g: &[&str], i: Vec<Option<i64>>, u: Vec<u64>, s: Vec<&str>, at: &[i64]| {
        let floats = i.iter().map(|i| i.map(|i| i as f64)).collect::<Vec<_>>();
        vec![
            ("g", tags(g)),
            ("i", Arc::new(Int64Array::from(i)) as ArrayRef),
            ("u", Arc::new(UInt64Array::from(u))),
            ("f", Arc::new(Float64Array::from(floats))),
            ("s", Arc::new(StringArray::from(s))),
            ("time", times(at)),
        ]
    };
    let first = chunk(
        &["a", "a", "b"],
        vec![Some(i64::MAX), Some(1), None],
        vec![u64::MAX, 0, 3],
        vec!["a", "7", "b"],
        &[0, 1, 2],
    );
    let second =
        chunk(&["b", "c"], vec![Some(i64::MIN), Some(-5)], vec![1, 2], vec!["x(", "5"], &[3, 366 * 24 * 60 * 60]);
    it.memory.add(table("db", "n", &columns, vec![first, second]));
    let home = vec![
        ("Temp", Arc::new(Float64Array::from(vec![1.5])) as ArrayRef),
        ("room", tags(&["a"])),
        ("time", times(&[0])),
    ];
    it.memory.add(table("db", "Home", &[("Temp", ColumnKind::Float), ("room", ColumnKind::Tag)], vec![home]));
    it
}

/// Each statement and its answer.
fn answers(it: &Fixture, cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(sql, right)| {
            let csv = it.csv_of(super::tests::request(sql));
            let got = csv.map(|csv| csv.lines().skip(1).collect::<Vec<_>>().join(" "));
            (got.as_deref() != Ok(*right)).then(|| format!("{sql}\n  got {got:?}\n  not {right}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each statement, refused as the user's, and words of the error.
fn refusals(it: &Fixture, cases: &[(&str, &[&str])]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|(sql, words)| match it.csv_of(super::tests::request(sql)) {
            Err(QueryError::Planning(text) | QueryError::Invalid(text)) if words.iter().all(|w| text.contains(w)) => {
                None
            }
            other => Some(format!("{sql}\n  got {other:?}\n  not {words:?}")),
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn comparisons_of_years_hold_for_every_year() {
    let it = numbers();
    // All five rows are of 2024 or 2025 (one).
    let all = "5";
    let none = "0";
    let count = |predicate: &str| it.rows(&format!("SELECT count(*) FROM n WHERE {predicate}"));
    for year in ["9999", "2262", "2263", "292277", "262143", "2147483647", "2147483648", "9223372036854775807"] {
        for part in ["date_part('year', time)", "extract(year from time)", "date_part('year', tz(time, 'Asia/Tokyo'))"]
        {
            let always = [
                format!("{part} < {year}"),
                format!("{part} <= {year}"),
                format!("{part} <> {year}"),
                format!("NOT ({part} >= {year})"),
                format!("{year} > {part}"),
                format!("{part} NOT IN ({year}, {year} - 1)"),
                format!("{part} BETWEEN 0 AND {year}"),
                format!("{part} IS DISTINCT FROM {year}"),
            ];
            for predicate in &always {
                assert_eq!(count(predicate), all, "{predicate}");
                assert_eq!(count(&format!("NOT ({predicate})")), none, "NOT ({predicate})");
            }
        }
    }
    for year in ["1677", "1678", "1676", "0", "-1", "-2147483648", "-9223372036854775807"] {
        for always in ["> ", ">= ", "<> ", "IS DISTINCT FROM "] {
            let predicate = format!("date_part('year', time) {always}{year}");
            assert_eq!(count(&predicate), all, "{predicate}");
            assert_eq!(count(&format!("NOT ({predicate})")), none, "NOT ({predicate})");
        }
        assert_eq!(count(&format!("date_part('year', time) < {year}")), none, "{year}");
        assert_eq!(count(&format!("date_part('year', time) IN ({year}, {year})")), none, "{year}");
        assert_eq!(count(&format!("date_part('year', time) IN ({year}, 2024)")), "4", "{year}");
    }
    assert_eq!(count("date_part('year', time) = 2024"), "4");
    assert_eq!(count("date_part('year', tz(time, 'America/New_York')) = 2023"), "4");
    assert_eq!(count("date_part('month', time) < 9999"), all);
}

/// Rows at the ends of time and around the borders of the years there.
#[test]
fn years_at_the_ends_of_time_are_found() {
    let it = fixture();
    let edge = [
        i64::MIN,
        -9_214_560_000_000_000_001, // the end of 1677
        -9_214_560_000_000_000_000, // 1678-01-01
        0,
        9_214_646_399_999_999_999, // the end of 2261
        9_214_646_400_000_000_000, // 2262-01-01
        i64::MAX,
    ];
    let time = Arc::new(arrow::array::TimestampNanosecondArray::from(edge.to_vec())) as ArrayRef;
    let ids = Arc::new(Int64Array::from_iter_values(0..7)) as ArrayRef;
    it.memory.add(table("db", "edge", &[("id", ColumnKind::Integer)], vec![vec![("id", ids), ("time", time)]]));
    answers(
        &it,
        &[
            ("SELECT id FROM edge WHERE date_part('year', time) = 1677 ORDER BY id", "0 1"),
            ("SELECT id FROM edge WHERE date_part('year', time) <= 1677 ORDER BY id", "0 1"),
            ("SELECT id FROM edge WHERE date_part('year', time) < 1678 ORDER BY id", "0 1"),
            ("SELECT id FROM edge WHERE date_part('year', time) = 1678 ORDER BY id", "2"),
            ("SELECT id FROM edge WHERE date_part('year', time) = 2261 ORDER BY id", "4"),
            ("SELECT id FROM edge WHERE date_part('year', time) = 2262 ORDER BY id", "5 6"),
            ("SELECT id FROM edge WHERE date_part('year', time) > 2261 ORDER BY id", "5 6"),
            ("SELECT id FROM edge WHERE date_part('year', time) IN (1677, 2262) ORDER BY id", "0 1 5 6"),
            ("SELECT id FROM edge WHERE date_part('year', time) NOT IN (1677, 2262) ORDER BY id", "2 3 4"),
            ("SELECT count(*) FROM edge WHERE time < '9999-12-31'", "7"),
            ("SELECT count(*) FROM edge WHERE time > '0001-01-01'", "7"),
            ("SELECT count(*) FROM edge WHERE time - time = INTERVAL '0 seconds'", "7"),
        ],
    );
    refusals(&it, &[("SELECT max(time) - min(time) FROM edge", &["overflow"])]);
}

#[test]
fn times_that_no_timestamp_can_hold_are_before_or_behind_all() {
    let it = numbers();
    let count = |predicate: &str| it.rows(&format!("SELECT count(*) FROM n WHERE {predicate}"));
    let far = [
        "'9999-12-31'",
        "'9999-12-31T23:59:59Z'",
        "'3000-01-01 00:00:00'",
        "'2262-04-12'",
        "TIMESTAMP '3000-01-01'",
        "TIMESTAMP '9999-12-31T00:00:00Z'",
        "DATE '9999-12-31'",
        "'9999-12-31'::TIMESTAMP",
        "CAST('9999-12-31' AS DATE)",
        "to_timestamp_seconds(99999999999)",
        "to_timestamp_millis(99999999999999)",
    ];
    for far in far {
        for always in
            [format!("time < {far}"), format!("time <= {far}"), format!("{far} > time"), format!("time <> {far}")]
        {
            assert_eq!(count(&always), "5", "{always}");
            assert_eq!(count(&format!("NOT ({always})")), "0", "NOT ({always})");
        }
        for never in [format!("time > {far}"), format!("time = {far}"), format!("{far} <= time")] {
            assert_eq!(count(&never), "0", "{never}");
        }
        assert_eq!(count(&format!("time BETWEEN '2024-01-01' AND {far}")), "5", "{far}");
        assert_eq!(count(&format!("time NOT BETWEEN '2024-01-01' AND {far}")), "0", "{far}");
        assert_eq!(count(&format!("tz(time, 'Europe/Paris') < {far}")), "5", "{far}");
    }
    for early in ["'0001-01-01'", "'1600-01-01T00:00:00Z'", "TIMESTAMP '0001-01-01'", "DATE '0001-01-01'"] {
        assert_eq!(count(&format!("time > {early}")), "5", "{early}");
        assert_eq!(count(&format!("time <= {early}")), "0", "{early}");
        assert_eq!(count(&format!("time BETWEEN {early} AND '2024-01-01T00:00:01'")), "2", "{early}");
        assert_eq!(count(&format!("time BETWEEN {early} AND '9999-12-31'")), "5", "{early}");
    }
    let text = |text: &str| [("t", ScalarParam::String(text.to_owned()))];
    let with = |sql: &str, at: &str| it.with_params(sql, &text(at)).unwrap();
    assert_eq!(with("SELECT count(*) FROM n WHERE time < $t", "9999-12-31T00:00:00Z"), "5");
    assert_eq!(with("SELECT count(*) FROM n WHERE time >= $t", "9999-12-31T00:00:00Z"), "0");
    assert_eq!(count("time < '9999-12-31' AND time > '2024-01-01T00:00:01'"), "3");
    assert_eq!(count("time > '2024-01-01T00:00:01' OR time > '9999-12-31'"), "3");
}

#[test]
fn integers_overflow_with_an_error_and_never_wrap() {
    let it = numbers();
    let remedy: &[&str] = &["overflow", "DOUBLE"];
    let cases = [
        "SELECT i + 1 FROM n",
        "SELECT i + i FROM n",
        "SELECT i - 1 FROM n",
        "SELECT 1 + i FROM n",
        "SELECT i * 2 FROM n",
        "SELECT -i FROM n",
        "SELECT u + u FROM n",
        "SELECT u * u FROM n",
        "SELECT u + arrow_cast(1, 'UInt64') FROM n",
        "SELECT arrow_cast(1, 'UInt64') - u FROM n",
        "SELECT i << 1 FROM n",
        "SELECT 1 << 63",
        "SELECT 1 << 64",
        "SELECT 1 << -1",
        "SELECT 9223372036854775807 + 1",
        "SELECT 9223372036854775807 * 2",
        "SELECT -9223372036854775808 - 1",
        "SELECT arrow_cast(127, 'Int8') + arrow_cast(1, 'Int8')",
        "SELECT arrow_cast(200, 'UInt8') * arrow_cast(2, 'UInt8')",
        "SELECT sum(i) + 1 FROM n WHERE i > 0 AND i < 9223372036854775807 OR i = 9223372036854775807",
        "SELECT count(*) FROM n WHERE i + 1 > 0",
        "SELECT g FROM n GROUP BY g HAVING max(i) * 2 > 0",
        "SELECT g FROM n ORDER BY i + 1",
        "SELECT CASE WHEN i > 0 THEN i + 1 ELSE 0 END FROM n",
        "SELECT n.i FROM n JOIN n m ON n.i + 1 = m.i",
        "SELECT i FROM n WHERE i IN (SELECT m.i + 1 FROM n m)",
        "SELECT max(i + 1) OVER (ORDER BY time) FROM n",
    ];
    let cases: Vec<(&str, &[&str])> = cases.iter().map(|sql| (*sql, remedy)).collect();
    refusals(&it, &cases);
}

#[test]
fn operators_that_do_not_overflow_answer_as_before() {
    let it = numbers();
    let words: [(&str, &[&str]); 9] = [
        ("SELECT i + 1 FROM n", &["integer overflow in 9223372036854775807 + 1", "BIGINT"]),
        ("SELECT abs(i) FROM n", &["overflow"]),
        ("SELECT abs(arrow_cast(-9223372036854775808, 'Int64'))", &["overflow"]),
        ("SELECT i / -1 FROM n", &["verflow"]),
        ("SELECT i / 0 FROM n", &["ivide by zero"]),
        ("SELECT i % 0 FROM n", &["ivide by zero"]),
        ("SELECT i::INT FROM n", &["9223372036854775807"]),
        ("SELECT time + INTERVAL '300 years' FROM n", &["out of range"]),
        ("SELECT factorial(30)", &["verflow"]),
    ];
    refusals(&it, &words);
    answers(
        &it,
        &[
            (
                "SELECT i + 0 AS a FROM n WHERE i IS NOT NULL ORDER BY time",
                "9223372036854775807 1 -9223372036854775808 -5",
            ),
            ("SELECT i - 1 AS a FROM n WHERE i IN (1, -5) ORDER BY time", "0 -6"),
            ("SELECT -i AS a FROM n WHERE i IN (1, -5) ORDER BY time", "-1 5"),
            ("SELECT CAST(i AS DOUBLE) + 1 AS a FROM n WHERE i = 9223372036854775807", "9.223372036854776e18"),
            ("SELECT CAST(i AS DECIMAL(38, 0)) + 1 AS a FROM n WHERE i = 9223372036854775807", "9223372036854775808"),
            ("SELECT i + u AS a FROM n WHERE i = 9223372036854775807", "27670116110564327422"),
            ("SELECT i % -1 AS a FROM n WHERE i = -9223372036854775808", "0"),
            (
                "SELECT 1 << 62, 1 << 0, 0 << 99, 8 >> 2, -8 >> 1, 8 >> 64, -1 >> 64",
                "4611686018427387904,1,0,2,-4,0,-1",
            ),
            ("SELECT i + NULL AS a FROM n WHERE i = 1", "\"\""),
            ("SELECT i + 1 FROM n WHERE i = -5", "-4"),
            ("SELECT 1 + 1 AS a, 2 * 3 AS b, 5 - 7 AS c, -(3) AS d", "2,6,-2,-3"),
            ("SELECT i * 2.5 AS a FROM n WHERE i = 1", "2.5"),
            ("SELECT a + 1 AS b FROM (SELECT i AS a FROM n WHERE i = 1) LIMIT 1 + 1", "2"),
            ("SELECT i + 1 AS a, count(*) FROM n WHERE i < 9 AND i > -9 GROUP BY i + 1 ORDER BY 1", "-4,1 2,1"),
            ("WITH RECURSIVE r AS (SELECT 1 AS k UNION ALL SELECT k + 1 FROM r WHERE k < 4) SELECT max(k) FROM r", "4"),
        ],
    );
}

#[test]
fn columns_keep_the_names_that_operators_give_them() {
    let it = numbers();
    let header = |sql: &str| it.csv_of(super::tests::request(sql)).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(
        header("SELECT i + 1, i * 2 - 3, -i FROM n WHERE i = 1"),
        "n.i + Int64(1),n.i * Int64(2) - Int64(3),(- n.i)"
    );
    assert_eq!(header("SELECT sum(i), avg(i), sum(i + 1) FROM n WHERE i = 1"), "sum(n.i),avg(n.i),sum(n.i + Int64(1))");
    assert_eq!(header("SELECT extract(year from time) FROM n"), "\"date_part(Utf8(\"\"YEAR\"\"),n.time)\"");
}

#[test]
fn sums_are_exact_or_an_error() {
    let it = numbers();
    let fails: &[&str] = &["integer overflow in sum(", "DOUBLE"];
    let cases: Vec<(&str, &[&str])> = [
        "SELECT sum(i) FROM n WHERE i > 0",
        "SELECT sum(DISTINCT i) FROM n WHERE i > 0",
        "SELECT sum(i) FILTER (WHERE i > 0) FROM n",
        "SELECT g, sum(i) FROM n WHERE i > 0 GROUP BY g",
        "SELECT g, sum(DISTINCT i) FROM n WHERE i > 0 GROUP BY g",
        "SELECT g, sum(i) FILTER (WHERE i > 0) FROM n GROUP BY g",
        "SELECT sum(u) FROM n",
        "SELECT g, sum(u) FROM n, (SELECT unnest([1, 2])) GROUP BY g",
        "SELECT sum(i) OVER (ORDER BY time) FROM n WHERE i > 0",
        "SELECT sum(i) OVER (ORDER BY time ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM n",
        "SELECT sum(i) OVER () FROM n WHERE i > 0",
        "SELECT sum(i) OVER (PARTITION BY g ORDER BY time ROWS BETWEEN CURRENT ROW AND 1 FOLLOWING) FROM n",
        "SELECT sum(x) FROM (SELECT -9223372036854775808 AS x UNION ALL SELECT -1)",
        "SELECT sum(i), sum(DISTINCT f) FROM n WHERE i > 0",
    ]
    .iter()
    .map(|sql| (*sql, fails))
    .collect();
    refusals(&it, &cases);
}

#[test]
fn sums_that_fit_are_exact_whatever_their_parts() {
    let it = numbers();
    let dec: &str = "SELECT sum(CAST(i AS DECIMAL(38, 0))) FROM n WHERE i > 0";
    answers(
        &it,
        &[
            // The whole sum fits although parts of it do not.
            ("SELECT sum(i) FROM n", "-5"),
            ("SELECT sum(DISTINCT i) FROM n", "-5"),
            ("SELECT sum(x) FROM (SELECT i AS x FROM n UNION ALL SELECT i FROM n)", "-10"),
            ("SELECT g, sum(i) FROM n WHERE i < 9 GROUP BY g ORDER BY g", "a,1 b,-9223372036854775808 c,-5"),
            ("SELECT g, sum(i) FROM n WHERE i IN (1, -5) GROUP BY ROLLUP(g) HAVING g IS NULL", ",-4"),
            ("SELECT sum(i) AS s FROM n WHERE i > 1", MAX),
            ("SELECT sum(i) IS NULL AS a, sum(u) IS NULL AS b FROM n WHERE g = 'z'", "true,true"),
            ("SELECT g, sum(i) FILTER (WHERE i = 1) AS s FROM n GROUP BY g ORDER BY g", "a,1 b, c,"),
            ("SELECT g, sum(u) AS s FROM n WHERE u < 5 GROUP BY g ORDER BY g", "a,0 b,4 c,2"),
            (dec, "9223372036854775808"),
            ("SELECT sum(CAST(i AS DOUBLE)) FROM n WHERE i > 0", "9.223372036854776e18"),
            ("SELECT avg(i) FROM n WHERE i IN (1, -5)", "-2.0"),
            ("SELECT sum(f) FROM n WHERE i IN (1, -5)", "-4.0"),
            ("SELECT sum(arrow_cast(x, 'Int8')) FROM (VALUES (100), (100)) AS t(x)", "200"),
            (
                "SELECT sum(u) OVER (ORDER BY time ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM n WHERE u < 5 ORDER BY time",
                "0 3 4 3",
            ),
            (
                "SELECT coalesce(sum(i) OVER (ORDER BY time ROWS BETWEEN CURRENT ROW AND CURRENT ROW), 0) FROM n ORDER BY time",
                "9223372036854775807 1 0 -9223372036854775808 -5",
            ),
            (
                "SELECT sum(DISTINCT u) OVER (ORDER BY time ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM n WHERE u < 5 \
             ORDER BY time",
                "0 3 4 3",
            ),
            // 54 years, six times: more than 64 bits of nanoseconds on the way.
            (
                "SELECT avg(d) = INTERVAL '19723 days' AS a FROM (SELECT time - TIMESTAMP '1970-01-01' AS d FROM n, (SELECT \
             unnest([1, 2, 3, 4, 5, 6])) WHERE time = '2024-01-01')",
                "true",
            ),
            (
                "SELECT sum(d) = INTERVAL '6 days' AS a FROM (SELECT INTERVAL '3 days' AS d FROM n WHERE u IN (1, 2))",
                "true",
            ),
        ],
    );
    refusals(
        &it,
        &[(
            "SELECT sum(time - TIMESTAMP '1970-01-01') FROM n, (SELECT unnest([1, 2, 3, 4, 5, 6]))",
            &["overflow in sum(", "durations"],
        )],
    );
}

#[test]
fn intervals_are_compared_by_their_length() {
    let it = numbers();
    answers(
        &it,
        &[
            (
                "SELECT INTERVAL '25 hours' > INTERVAL '1 day' AS a, INTERVAL '24 hours' = INTERVAL '1 day' AS b",
                "true,true",
            ),
            ("SELECT count(*) FROM n WHERE time - TIMESTAMP '2024-01-01' > INTERVAL '1 day'", "1"),
            ("SELECT count(*) FROM n WHERE now() - time > INTERVAL '1 day'", "5"),
            ("SELECT count(*) FROM n WHERE INTERVAL '1 month' < time - TIMESTAMP '2024-01-01'", "1"),
            (
                "SELECT count(*) FROM n WHERE time - TIMESTAMP '2024-01-01' BETWEEN INTERVAL '1 second' AND INTERVAL '1 hour'",
                "3",
            ),
            (
                "SELECT count(*) FROM n WHERE time - TIMESTAMP '2024-01-01' NOT BETWEEN INTERVAL '0 s' AND INTERVAL '1 h'",
                "1",
            ),
        ],
    );
}

#[test]
fn errors_of_values_are_the_users_and_say_what_to_write() {
    let it = numbers();
    refusals(
        &it,
        &[
            ("SELECT s::BIGINT FROM n", &["Cannot cast string 'a'"]),
            ("SELECT * FROM n WHERE s = 1", &["Cannot cast string 'a'", "single quotes"]),
            ("SELECT * FROM n WHERE s ~ '('", &["'(' is no regular expression", "unclosed group"]),
            ("SELECT * FROM n WHERE s SIMILAR TO '('", &["'(' is no regular expression"]),
            ("SELECT n.x FROM n", &["No field named n.x. Valid fields"]),
            ("SELECT 'now' - '1d'", &["INTERVAL '1d'"]),
            ("SELECT * FROM n WHERE s ~ s", &["no regular expression"]),
            ("SELECT regexp_replace(s, '[', 'x') FROM n", &["'[' is no regular expression"]),
            ("SELECT regexp_like(s, '(') FROM n", &["no regular expression"]),
            ("SELECT regexp_match(s, '*') FROM n", &["no regular expression"]),
            ("SELECT regexp_count(s, '(') FROM n", &["("]),
            ("SELECT to_timestamp(s) FROM n", &["'a'"]),
            ("SELECT to_timestamp(s, '%Y') FROM n", &["'a'"]),
            ("SELECT to_date(s) FROM n", &["Date32"]),
            ("SELECT date_trunc('fortnight', time) FROM n", &["fortnight"]),
            ("SELECT date_part('fortnight', time) FROM n", &["fortnight"]),
            ("SELECT date_bin(INTERVAL '0 seconds', time) FROM n", &["DATE_BIN"]),
            ("SELECT to_char(time, '%Q') FROM n", &["ormat"]),
            ("SELECT CAST(f AS DECIMAL(3, 0)) FROM n", &["recision"]),
            ("SELECT CAST(f AS INT) FROM n", &["Int32"]),
            ("SELECT make_date(2024, 13, 1)", &["13"]),
            ("SELECT chr(-1)", &["-1"]),
            ("SELECT encode(s, 'base99') FROM n", &["base99"]),
            ("SELECT decode(s, 'hex') FROM n", &["hex"]),
            ("SELECT generate_series(1, 10, 0)", &["0"]),
            ("SELECT now() - '1 day'", &["INTERVAL '1 day'"]),
            ("SELECT * FROM n WHERE time > now() - '2 hours'", &["INTERVAL '2 hours'"]),
            ("SELECT * FROM n WHERE time > now() - 10", &["INTERVAL"]),
            ("SELECT * FROM n WHERE time > 10", &["'2024-01-01T00:00:00Z'", "to_timestamp"]),
            ("SELECT * FROM n WHERE time = 1.5", &["'2024-01-01T00:00:00Z'", "to_timestamp"]),
            ("SELECT * FROM n WHERE time IN (1, 2)", &["to_timestamp"]),
            ("SELECT * FROM n WHERE time BETWEEN 1 AND 2", &["to_timestamp"]),
            ("SELECT * FROM n WHERE time > '1 day'", &["INTERVAL '1 day'"]),
            ("SELECT * FROM home", &["table 'public.iox.home' not found", "there is a table \"Home\""]),
            ("SELECT * FROM Hom", &["did you mean \"Home\"?"]),
            ("SELECT temp FROM Home", &["There is a column \"Temp\""]),
            ("SELECT Tmp FROM Home", &["Did you mean \"Temp\"?"]),
            ("SELECT * FROM Home WHERE room = \"b\"", &["single quotes: 'b'"]),
            ("SELECT * FROM system.querys", &["did you mean \"queries\"?"]),
            ("SELECT CAST('3000-01-01' AS TIMESTAMP)", &["2262"]),
        ],
    );
}

#[test]
fn parameters_are_named_in_errors() {
    let it = numbers();
    let error = |sql: &str, params: &[(&str, ScalarParam)]| match it.with_params(sql, params).unwrap_err() {
        QueryError::Planning(text) | QueryError::Invalid(text) => text,
        other => panic!("{sql}: {other:?}"),
    };
    let text = |text: &str| ScalarParam::String(text.to_owned());
    let cases = [
        ("SELECT * FROM n WHERE s = $x", vec![("x", ScalarParam::Int(1))], "parameter $x is the integer 1"),
        ("SELECT * FROM n WHERE time > $x", vec![("x", ScalarParam::Int(1))], "parameter $x is the integer 1"),
        ("SELECT * FROM n WHERE time > $x", vec![("x", ScalarParam::Float(1.5))], "parameter $x is the float 1.5"),
        ("SELECT * FROM n WHERE time > $x", vec![("x", text("soon"))], "parameter $x is the text 'soon'"),
        ("SELECT * FROM n WHERE i > $x", vec![("x", text("many"))], "parameter $x is the text 'many'"),
        ("SELECT * FROM n WHERE s ~ $x", vec![("x", text("("))], "parameter $x is the text '('"),
        ("SELECT * FROM n WHERE i > $x", vec![], "$x; no parameters are given"),
        ("SELECT * FROM n WHERE i > $x", vec![("y", ScalarParam::Int(1))], "$x; the parameters given are $y"),
    ];
    for (sql, params, words) in cases {
        let text = error(sql, &params);
        assert!(text.contains(words), "{sql} {params:?}: {text}");
    }
}

#[test]
fn functions_that_come_later_name_sql_that_does_the_same_now() {
    let it = fixture();
    let rows = vec![
        ("v", Arc::new(Float64Array::from(vec![1.0, 3.0, 4.0])) as ArrayRef),
        ("time", times(&[60, 120, 30 * 60])),
    ];
    it.memory.add(table("db", "t", &[("v", ColumnKind::Float)], vec![rows]));
    let calls = [
        ("date_bin_gapfill", "SELECT date_bin_gapfill(INTERVAL '10 minutes', time) FROM t"),
        ("locf", "SELECT locf(avg(v)) FROM t"),
        ("interpolate", "SELECT interpolate(avg(v)) FROM t"),
        ("date_bin_wallclock", "SELECT date_bin_wallclock(INTERVAL '1 day', time) FROM t"),
        ("date_bin_wallclock_gapfill", "SELECT date_bin_wallclock_gapfill(INTERVAL '1 day', time) FROM t"),
    ];
    for (function, sql) in calls {
        let QueryError::Planning(text) = it.error(sql) else { panic!("{sql}") };
        let words = format!("the function {function} is not in this version");
        assert!(text.contains(&words) && text.contains(super::hints::gaps::instead(function)), "{text}");
    }
    let run = |function| it.rows(super::hints::gaps::instead(function));
    let values = |function| {
        let rows = run(function);
        rows.split(' ').map(|row| row.split_once(',').unwrap().1.to_owned()).collect::<Vec<_>>().join(" ")
    };
    let filled = run("date_bin_gapfill");
    assert!(filled.starts_with("2024-01-01T00:00:00,2.0 2024-01-01T00:10:00, "), "{filled}");
    assert_eq!(values("date_bin_gapfill"), "2.0   4.0   ");
    assert_eq!(values("locf"), "2.0 2.0 2.0 4.0 4.0 4.0 4.0");
    assert_eq!(values("interpolate"), "2.0 2.6666666666666665 3.333333333333333 4.0   ");
    // Half past midnight in UTC is the same day in Berlin.
    assert_eq!(run("date_bin_wallclock"), "2024-01-01T00:00:00,2.6666666666666665");
    assert_eq!(values("date_bin_wallclock_gapfill"), "2.6666666666666665       ");
}
