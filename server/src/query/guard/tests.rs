//! Queries that want too much, and those beside them.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures_lite::future::block_on;
use futures_util::{StreamExt, TryStreamExt};
use saltus_core::limits::QUERIES_WAITING_MAX;

use crate::query::tests::{Fixture, config, eventually, fixture_with, large, request};
use crate::query::{Format, QueryConfig, QueryError};

/// A few hundred bytes per row are all of it, so that a test takes little.
const MEMORY: usize = 64 << 20;

/// Goes through all pairs of rows, and finds hardly any.
const ENDLESS: &str = "SELECT count(*) FROM cpu a, cpu b WHERE a.count < b.count - 399990";

fn it() -> Fixture {
    fixture_with(QueryConfig { memory_bytes: MEMORY, ..config() }, large())
}

#[test]
fn what_is_too_large_is_refused_before_it_is_made() {
    let it = it();
    for sql in [
        "SELECT repeat('x', 2000000000)",
        "SELECT repeat('x', 2000000000) AS a, repeat('y', 2000000000) AS b",
        "SELECT length(repeat(repeat('x', 100000), 100000))",
        "SELECT repeat('x', 9223372036854775807)",
        "SELECT repeat(cast(count AS varchar), 100000) FROM cpu",
        "SELECT max(length(repeat(host, count))) FROM cpu",
        "SELECT lpad('x', 1000000000, 'yz')",
        "SELECT rpad(host, 1000000) FROM cpu",
        "SELECT lpad(host, count::bigint * 1000, 'ab') FROM cpu",
        "SELECT replace(repeat('a', 1000000), 'a', repeat('b', 1000))",
        "SELECT regexp_replace(repeat('a', 1000000), 'a', repeat('b', 1000), 'g')",
        "SELECT concat(repeat('a', 30000000), repeat('b', 30000000), repeat('c', 30000000))",
        "SELECT repeat('a', 30000000) || repeat('b', 30000000) || repeat('c', 30000000)",
        "SELECT concat_ws(repeat(',', 30000000), 'a', 'b', 'c', 'd')",
        "WITH a AS (SELECT repeat('x', 4000000) AS s), b AS (SELECT s || s AS s FROM a), c AS (SELECT s || s AS s FROM b), \
         d AS (SELECT s || s AS s FROM c), e AS (SELECT s || s AS s FROM d), f AS (SELECT s || s AS s FROM e) \
         SELECT length(s || s) FROM f",
        "SELECT cardinality(range(0, 1000000000000))",
        "SELECT cardinality(range(0, count * 100000)) FROM cpu",
        "SELECT generate_series(0, 9223372036854775807)",
        "SELECT cardinality(range(TIMESTAMP '2000-01-01', TIMESTAMP '2030-01-01', INTERVAL '1 microsecond'))",
        "SELECT array_repeat('x', 1000000000)",
        "SELECT array_repeat(host, 100000) FROM cpu",
        "SELECT array_repeat(array_repeat(array_repeat(1, 1000), 1000), 1000)",
        "SELECT array_resize(make_array(1), 10000000000, 0)",
        "SELECT array_to_string(array_repeat('x', 100000), repeat('y', 100000))",
        "SELECT string_to_array(repeat('x,', 20000000), ',')",
        "SELECT flatten(make_array(range(0, 3000000), range(0, 3000000), range(0, 3000000)))",
        "SELECT unnest(array_repeat(repeat('x', 1000000), 1000))",
        "SELECT unnest(range(0, 1000000)), repeat('x', 1000000)",
        "SELECT upper(repeat('x', 30000000))",
        "SELECT array_agg(repeat(host, 10000)) FROM cpu",
        "SELECT string_agg(repeat(host, 10000), ',') FROM cpu",
        "SELECT array_agg(usage) OVER (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM cpu",
        "SELECT repeat(host, 1000) AS s FROM cpu ORDER BY s",
        "SELECT length(cast(range(0, 7000000) AS varchar))",
        "SELECT length(arrow_cast(range(0, 7000000), 'Utf8'))",
        "SELECT first_value(repeat(host, 1000)) OVER (ORDER BY count) FROM cpu",
    ] {
        // What a query held is given back by its threads.
        eventually("memory is given back", || it.engine.load() == (0, 0, 0));
        let error = it.error(sql);
        assert!(matches!(error, QueryError::TooLarge(_)), "{sql}: {error:?}");
        assert!(error.to_string().contains("--query-memory"), "{sql}: {error}");
    }
    eventually("all memory is given back", || it.engine.load() == (0, 0, 0));
}

#[test]
fn what_fits_is_right() {
    let it = it();
    for (sql, expected) in [
        (
            "SELECT repeat('ab', 3), lpad('x', 4, 'yz'), rpad('x', 3), replace('aXbX', 'X', '--')",
            "ababab,yzyx,x  ,a--b--",
        ),
        ("SELECT length(repeat('x', 6000000)), length(repeat(host, 6000000)) FROM cpu LIMIT 1", "6000000,6000000"),
        ("SELECT 'a' || 'b' || 1, NULL || 'x', concat('a', NULL, 'b'), concat_ws('-', 'a', NULL, 'b')", "ab1,,ab,a-b"),
        ("SELECT host || '-' || count FROM cpu WHERE count < 3 ORDER BY count", "a-0 b-1 a-2"),
        ("SELECT sum(length(repeat(cast(count AS varchar), 10))) FROM cpu", "22888900"),
        ("SELECT sum(length(repeat(host, 1000))) FROM cpu", "400000000"),
        // Parts of a large chunk are counted as what they are.
        ("SELECT count(*) FROM (SELECT * FROM cpu ORDER BY usage DESC, host OFFSET 399990)", "10"),
        ("SELECT count(*) FROM cpu a, cpu b WHERE a.count < b.count AND b.count < 3", "3"),
        ("SELECT max(length(concat(host, repeat('x', 20000)))) FROM cpu", "20001"),
        ("SELECT sum(cardinality(range(0, count % 10))) FROM cpu", "1800000"),
        ("SELECT count(*) FROM (SELECT unnest(range(0, 1000000)))", "1000000"),
        ("SELECT sum(n) FROM (SELECT unnest(make_array(1, 2, 3)) AS n, host FROM cpu)", "2400000"),
        ("SELECT regexp_replace('2024-01', '(\\d+)-(\\d+)', '$2/$1')", "01/2024"),
        ("SELECT array_to_string(make_array(1, 2, NULL), '-', '?')", "1-2-?"),
        ("SELECT string_agg(host, '') FROM (SELECT host FROM cpu WHERE count < 4 ORDER BY count)", "abab"),
        ("SELECT count(*), sum(value) FROM generate_series(1, 1000000)", "1000000,500000500000"),
        (
            "SELECT max(n) FROM (SELECT cardinality(array_agg(count) OVER (ORDER BY count ROWS 9 PRECEDING)) AS n FROM cpu)",
            "10",
        ),
        (
            "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t WHERE n < 1000) SELECT count(*) FROM t",
            "1000",
        ),
        ("SELECT count(*) FROM cpu a, cpu b WHERE a.count < 100 AND b.count < 100 AND a.count < b.count", "4950"),
        // What is the value of many rows is there once.
        (
            "SELECT max(length(s)), count(*) FROM cpu, (SELECT repeat('x', 100000) AS s) WHERE count < 20000",
            "100000,20000",
        ),
        (
            "SELECT max(length(s)) FROM (SELECT a.s, b.count FROM (SELECT repeat('x', 1000000) AS s, 3 AS t) a JOIN cpu b ON \
             a.t > b.count % 1000)",
            "1000000",
        ),
        (
            "SELECT max(length(a.s)), count(*) FROM (SELECT count, repeat(host, 100000) AS s FROM cpu WHERE count < 100) a JOIN \
             (SELECT count, repeat(host, 100000) AS s FROM cpu WHERE count < 100) b ON a.s = b.s",
            "100000,5000",
        ),
        (
            "SELECT max(length((SELECT repeat('x', 10000000)))), max(length(s)) FROM (SELECT (SELECT repeat('x', 20000)) AS s \
             FROM cpu)",
            "10000000,20000",
        ),
        (
            "SELECT max(length(f)), min(length(f)) FROM (SELECT first_value(s) OVER (ORDER BY count) AS f FROM (SELECT count, \
             CASE WHEN count = 0 THEN repeat('x', 30000) ELSE host END AS s FROM cpu WHERE count < 50000))",
            "30000,30000",
        ),
        (
            "SELECT max(length(f)), min(length(f)), max(length(g)) FROM (SELECT max(s) OVER () AS f, lag(s, 2, 'none') OVER (ORDER \
             BY count) AS g FROM (SELECT count, CASE WHEN count = 9 THEN repeat('x', 30000) ELSE host END AS s FROM cpu WHERE \
             count < 50000))",
            "30000,30000,30000",
        ),
        (
            "SELECT count(*) FROM (SELECT concat(s, count) AS t FROM cpu, (SELECT repeat('x', 10000) AS s) WHERE count < 20000) WHERE \
          t LIKE 'x%7'",
            "2000",
        ),
        (
            "SELECT count(*) FROM (SELECT count, first_value(s) OVER (ORDER BY count) AS f FROM (SELECT count, CASE WHEN count = 0 THEN \
          repeat('x', 30000) ELSE host END AS s FROM cpu)) WHERE length(f) = 30000 AND f LIKE '%x'",
            "400000",
        ),
        ("SELECT max(length(host || repeat('x', 1000000))) FROM (SELECT host FROM cpu LIMIT 2000)", "1000001"),
        ("SELECT lag(host, 1, 'none') OVER (ORDER BY count) FROM cpu LIMIT 3", "none a b"),
        ("SELECT max(length(cast(range(0, count % 7) AS varchar))) FROM cpu", "18"),
        ("SELECT CAST(make_array(1, NULL, 3) AS varchar), TRY_CAST(make_array('a') AS varchar)", "\"[1, , 3]\",[a]"),
    ] {
        assert_eq!(it.rows(sql), expected, "{sql}");
    }
    // The names of columns are those of the operators.
    let csv = block_on(async {
        let bytes = it.engine.execute_bytes(request("SELECT host || 'x', upper(host) FROM cpu LIMIT 1"), Format::Csv);
        bytes.await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat()
    });
    assert!(
        csv.starts_with(b"\"cpu.host || Utf8(\"\"x\"\")\",upper(cpu.host)\nax,A\n"),
        "{}",
        String::from_utf8_lossy(&csv)
    );
}

#[test]
fn a_long_constant_beside_many_rows_is_written_a_few_rows_at_a_time() {
    let it = it();
    let constant = "x".repeat(1_000_000);
    for sql in [
        format!("SELECT '{constant}' AS s, host FROM cpu LIMIT 40"),
        format!("SELECT CASE WHEN count >= 0 THEN '{constant}' ELSE 'y' END AS s FROM cpu LIMIT 40"),
    ] {
        let bytes: usize = block_on(async {
            let stream = it.engine.execute_bytes(request(&sql), Format::Csv).await.unwrap();
            stream.try_fold(0, |sum, piece| async move { Ok(sum + piece.len()) }).await.unwrap()
        });
        assert!((40_000_000..41_000_000).contains(&bytes), "{bytes}");
    }
}

#[test]
fn a_query_whose_time_is_over_ends_inside_of_an_operator_and_says_the_setting() {
    let it = fixture_with(QueryConfig { timeout: Duration::from_millis(300), ..config() }, large());
    for sql in [
        ENDLESS,
        "SELECT sum(a.usage * b.usage) FROM cpu a CROSS JOIN cpu b CROSS JOIN cpu c",
        "SELECT count(*) FROM cpu a JOIN cpu b ON a.host = b.host",
        "SELECT count(*) FROM cpu a JOIN cpu b ON a.host = b.host AND a.count + b.count < 0",
        "SELECT count(*) FROM generate_series(1, 1000000000000)",
        "SELECT count(*) FROM (SELECT unnest(make_array(1, 2)) FROM cpu a CROSS JOIN cpu b)",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT median(count) OVER (ORDER BY time ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM cpu",
        "SELECT a.count FROM cpu a WHERE EXISTS (SELECT 1 FROM cpu b WHERE b.count < a.count - 500000)",
    ] {
        let error = it.error(sql);
        assert!(
            matches!(&error, QueryError::TimedOut(text) if text.contains("300ms") && text.contains("--query-timeout")),
            "{sql}: {error:?}"
        );
    }
    eventually("all of them are over", || it.engine.load() == (0, 0, 0));
}

#[test]
fn time_in_which_the_reader_does_not_read_does_not_count() {
    let it = fixture_with(QueryConfig { timeout: Duration::from_millis(300), ..config() }, large());
    let mut stream = block_on(it.engine.execute(request("SELECT usage FROM cpu"))).unwrap();
    let mut rows = 0;
    let mut is_first = true;
    while let Some(batch) = block_on(stream.next()) {
        rows += batch.unwrap().num_rows();
        if std::mem::take(&mut is_first) {
            std::thread::sleep(Duration::from_millis(700));
        }
    }
    assert_eq!(rows, 400_000);
}

#[test]
fn short_queries_are_answered_while_long_ones_run_and_those_end_with_their_clients() {
    let eight = NonZeroUsize::new(8).unwrap();
    let it = fixture_with(
        QueryConfig { threads: NonZeroUsize::MIN, max_concurrent: eight, query_log_entries: 1000, ..config() },
        large(),
    );
    let long: Vec<_> = (0..4).map(|_| Box::pin(it.engine.execute(request(ENDLESS)))).collect();
    eventually("all run", || it.rows("SELECT count(*) FROM system.queries WHERE phase = 'planned'") == "4");
    for _ in 0..5 {
        assert_eq!(it.rows("SELECT 1"), "1");
    }
    assert_eq!(it.rows("SELECT count(*) FROM system.queries WHERE running AND phase = 'planned'"), "4");
    drop(long);
    eventually("they end", || it.engine.load() == (0, 0, 0));
    let cancelled = it.engine.counts().by_outcome().into_iter().find(|(outcome, _)| *outcome == "cancelled");
    assert_eq!(cancelled, Some(("cancelled", 4)));
}

#[test]
fn memory_that_others_have_is_told_apart() {
    let it = it();
    let mut sorted = block_on(it.engine.execute(request("SELECT * FROM cpu ORDER BY usage DESC"))).unwrap();
    assert!(block_on(sorted.next()).unwrap().is_ok());
    assert!(it.engine.load().2 > 4 << 20, "a sort whose rows nobody takes holds them: {:?}", it.engine.load());
    // Alone it fits.
    let most = "SELECT length(repeat('x', 32000000))";
    let error = it.error(most);
    assert!(matches!(&error, QueryError::ResourcesExhausted(text) if text.contains("--query-memory")), "{error:?}");
    drop(sorted);
    eventually("the sort gives its memory back", || it.engine.load().2 == 0);
    assert_eq!(it.rows(most), "32000000");
}

#[test]
fn beyond_those_that_wait_queries_are_refused_at_once() {
    let it = fixture_with(QueryConfig { max_concurrent: NonZeroUsize::MIN, ..config() }, large());
    let _endless = it.engine.execute(request(ENDLESS));
    let waiting: Vec<_> = (0..QUERIES_WAITING_MAX).map(|_| it.engine.execute(request("SELECT 1"))).collect();
    let error = block_on(it.engine.execute(request("SELECT 1"))).unwrap_err();
    assert!(
        matches!(&error, QueryError::ResourcesExhausted(text) if text.contains("--query-concurrency")),
        "{error:?}"
    );
    drop(waiting);
    eventually("nobody waits any more", || it.engine.load().1 == 0);
}

#[test]
fn a_pretty_table_that_does_not_fit_says_what_to_use_instead() {
    let it = fixture_with(QueryConfig { memory_bytes: 1 << 20, ..config() }, large());
    let pretty = |sql: &str| {
        block_on(async {
            it.engine
                .execute_bytes(request(sql), Format::Pretty)
                .await?
                .try_collect::<Vec<_>>()
                .await
                .map(|all| all.concat())
        })
    };
    let error = pretty("SELECT * FROM cpu").unwrap_err();
    assert!(
        matches!(&error, QueryError::TooLarge(text) if text.contains("format=csv") && text.contains("--query-memory")),
        "{error:?}"
    );
    let table = String::from_utf8(pretty("SELECT count FROM cpu WHERE count < 2").unwrap()).unwrap();
    assert_eq!(table, "+-------+\n| count |\n+-------+\n| 0     |\n| 1     |\n+-------+");
}

#[test]
fn a_parquet_file_is_given_away_while_it_is_written() {
    let it = it();
    let bytes = block_on(async {
        let stream = it.engine.execute_bytes(request("SELECT usage, count FROM cpu"), Format::Parquet).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap().concat()
    });
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
}
