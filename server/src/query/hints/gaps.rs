//! Functions of InfluxDB 3's dialect that are not there yet, and SQL that does the same.

/// A function, and what to write instead.
const LATER: [(&str, &str); 5] = [
    (
        "date_bin_gapfill",
        "join the bins that you want with the bins that there are: SELECT b.bin AS time, avg(t.v) AS v FROM (SELECT \
         unnest(generate_series(TIMESTAMP '2024-01-01T00:00:00', TIMESTAMP '2024-01-01T01:00:00', INTERVAL '10 minutes')) \
         AS bin) b LEFT JOIN t ON date_bin(INTERVAL '10 minutes', t.time) = b.bin GROUP BY b.bin ORDER BY b.bin",
    ),
    (
        "date_bin_wallclock_gapfill",
        "join the bins that you want with the bins that there are: SELECT b.bin AS time, avg(t.v) AS v FROM (SELECT \
         unnest(generate_series(TIMESTAMP '2024-01-01T00:00:00', TIMESTAMP '2024-01-08T00:00:00', INTERVAL '1 day')) AS \
         bin) b LEFT JOIN t ON date_bin(INTERVAL '1 day', to_local_time(tz(t.time, 'Europe/Berlin'))) = b.bin GROUP BY \
         b.bin ORDER BY b.bin",
    ),
    (
        "date_bin_wallclock",
        "bin the local time: SELECT date_bin(INTERVAL '1 day', to_local_time(tz(time, 'Europe/Berlin'))) AS bin, avg(v) \
         AS v FROM t GROUP BY 1 ORDER BY 1",
    ),
    (
        "locf",
        "take the last value before the gap: SELECT bin, last_value(v) IGNORE NULLS OVER (ORDER BY bin) AS v FROM \
         (SELECT b.bin, avg(t.v) AS v FROM (SELECT unnest(generate_series(TIMESTAMP '2024-01-01T00:00:00', TIMESTAMP \
         '2024-01-01T01:00:00', INTERVAL '10 minutes')) AS bin) b LEFT JOIN t ON date_bin(INTERVAL '10 minutes', t.time) \
         = b.bin GROUP BY b.bin) ORDER BY bin",
    ),
    (
        "interpolate",
        "draw a line from the last value before the gap (v0 at t0) to the first one behind it (v1 at t1): SELECT bin, \
         coalesce(v, v0 + (v1 - v0) * (date_part('epoch', bin) - t0) / (t1 - t0)) AS v FROM (SELECT bin, v, \
         last_value(v) IGNORE NULLS OVER before AS v0, last_value(t) IGNORE NULLS OVER before AS t0, first_value(v) \
         IGNORE NULLS OVER behind AS v1, first_value(t) IGNORE NULLS OVER behind AS t1 FROM (SELECT b.bin, avg(t.v) AS \
         v, CASE WHEN avg(t.v) IS NOT NULL THEN date_part('epoch', b.bin) END AS t FROM (SELECT \
         unnest(generate_series(TIMESTAMP '2024-01-01T00:00:00', TIMESTAMP '2024-01-01T01:00:00', INTERVAL '10 minutes')) \
         AS bin) b LEFT JOIN t ON date_bin(INTERVAL '10 minutes', t.time) = b.bin GROUP BY b.bin) WINDOW before AS (ORDER \
         BY bin ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW), behind AS (ORDER BY bin ROWS BETWEEN CURRENT ROW AND \
         UNBOUNDED FOLLOWING)) ORDER BY bin",
    ),
];

/// The text for a function that is not there yet, if the error is about one.
pub(super) fn later(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Invalid function '")?;
    let (name, _) = rest.split_once('\'')?;
    let (own, instead) = LATER.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
    Some(format!("Error during planning: the function {own} is not in this version; until it is, {instead}"))
}

/// The SQL in the text about a function.
#[cfg(test)]
pub(crate) fn instead(function: &str) -> &'static str {
    let (_, text) = LATER.iter().find(|(own, _)| *own == function).unwrap();
    &text[text.find("SELECT").unwrap()..]
}
