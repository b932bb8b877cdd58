//! What a server shows of itself: `/metrics`, histograms as files, `saltus top`, `saltus doctor`, stalls with their stack, and the
//! dashboard and the unit that are shipped.

mod common;
#[path = "common/exposition.rs"]
mod exposition;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Server, Start};
use exposition::{Family, families};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use saltus::cli::top::app::{App, Wish};
use saltus::cli::top::sample::Snapshot;
use saltus::cli::top::{self, view};
use serde_json::{Value, json};

const COPY: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    for batch in table_batches:
        for row in batch["rows"]:
            if row["n"] < 0:
                raise ValueError("less than nothing")
            influxdb3_local.write(LineBuilder("out").int64_field("n", row["n"]).time_ns(row["time"]))
"#;
const TICK: &str = r#"
def process_scheduled_call(influxdb3_local, call_time, args=None):
    influxdb3_local.cache.put("at", str(call_time))
"#;
const ECHO: &str = r#"
def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    return {"n": 1}
"#;
const ROWS: u64 = 20;
/// A name with everything that a label or a tag has to escape.
const ODD: &str = "sch\"ed, u\\le";

/// A server with a trigger of each kind, all of which have run.
fn serve(root: &Path) -> Server {
    let mut start = Start::new(root);
    // Everything that can be in `/metrics` is to be there; no write is sampled.
    start.extra.extend(["--otlp-endpoint", "http://127.0.0.1:9", "--trace-sample-ratio", "0"].map(str::to_owned));
    for (name, source) in [("copy.py", COPY), ("tick.py", TICK), ("echo.py", ECHO)] {
        start.plugin(name, source);
    }
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "copy", "copy.py", "table:a", "inline", json!({}));
    server.create_trigger("main", ODD, "tick.py", "every:100ms", "deferred", json!({}));
    server.create_trigger("main", "echo", "echo.py", "request:echo", "deferred", json!({}));
    for n in 1..=ROWS {
        assert_eq!(server.write("main", &format!("a n={n}i {n}")).status, 204);
    }
    server.sql_until("main", "SELECT count(*) AS c FROM out", |rows| rows[0]["c"] == json!(ROWS));
    assert_eq!(server.get("/api/v3/engine/echo").status, 200);
    let ticked = "SELECT count FROM system.trigger_latency WHERE stage = 'schedule_delay'";
    server.sql_until("main", ticked, |rows| rows[0]["count"].as_u64() > Some(0));
    server
}

/// The one sample of a family with these labels.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |own: &BTreeMap<String, String>| labels.iter().all(|(k, v)| own.get(*k).map(String::as_str) == Some(*v));
    let family = ["", "_count", "_sum"].iter().find_map(|suffix| families.get(name.strip_suffix(suffix)?));
    let family = family.unwrap_or_else(|| panic!("no {name}"));
    let found: Vec<f64> =
        family.samples.iter().filter(|(sample, own, _)| sample == name && has(own)).map(|(.., value)| *value).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0]
}

#[test]
fn metrics_are_what_a_strict_reader_takes_and_say_what_happened() {
    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path());
    let reply = server.get("/metrics");
    assert_eq!(reply.content_type, "text/plain; version=0.0.4; charset=utf-8");
    let all = families(&reply.body);
    for (name, family) in &all {
        assert_ne!(family.help, saltus::http::metrics::NO_HELP, "{name}");
    }
    let copy = [("db", "main"), ("trigger", "copy")];
    for stage in ["activation", "queue", "run"] {
        let count = value(&all, &format!("saltus_trigger_{stage}_seconds_count"), &copy);
        assert!((1.0..=ROWS as f64).contains(&count), "{stage}: {count}");
    }
    let median = value(&all, "saltus_trigger_activation_seconds", &[copy[0], copy[1], ("quantile", "0.5")]);
    assert!(median > 0.0 && median < 10.0, "{median} s");
    assert!(value(&all, "saltus_trigger_schedule_delay_seconds_count", &[("trigger", ODD)]) > 0.0);
    assert_eq!(value(&all, "saltus_trigger_response_seconds_count", &[("trigger", "echo")]), 1.0);
    assert_eq!(value(&all, "saltus_trigger_lane", &[copy[0], copy[1], ("lane", "inline")]), 1.0);
    let of_shards = |name: &str| ["0", "1"].map(|shard| value(&all, name, &[("shard", shard)]));
    assert!(of_shards("saltus_shard_turn_seconds_count").iter().all(|turns| *turns > 0.0));
    assert!(of_shards("saltus_shard_commit_seconds_count").iter().sum::<f64>() > 0.0);
    let (busy, cpu) = (of_shards("saltus_shard_busy_seconds_total"), of_shards("saltus_shard_cpu_seconds_total"));
    assert!(busy.iter().chain(&cpu).all(|seconds| *seconds > 0.0), "{busy:?} {cpu:?}");
    assert!(of_shards("saltus_shard_info").iter().all(|one| *one == 1.0));
    // The same figures in SQL.
    let rows = server.sql("main", "SELECT shard, busy_seconds, cpu_seconds, turn_max_us, stalls FROM system.shards");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["busy_seconds"].as_f64() > Some(0.0) && row["turn_max_us"].as_f64() > Some(0.0)));
}

/// The histograms of a log, by tag.
fn histograms(log: &str) -> BTreeMap<String, Histogram<u64>> {
    let mut all = BTreeMap::new();
    let mut starts = 0;
    for entry in IntervalLogIterator::new(log.as_bytes()) {
        match entry.unwrap() {
            LogEntry::Interval(interval) => {
                let bytes =
                    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, interval.encoded_histogram());
                let histogram = Deserializer::new().deserialize(&mut bytes.unwrap().as_slice()).unwrap();
                assert!(interval.duration() > Duration::ZERO);
                all.insert(interval.tag().unwrap().as_str().to_owned(), histogram);
            }
            LogEntry::StartTime(_) | LogEntry::BaseTime(_) => starts += 1,
        }
    }
    assert_eq!(starts, 2, "{log}");
    all
}

const HISTOGRAMS: &str = "/api/v3/debug/histograms";

#[test]
fn histograms_are_files_that_other_tools_read() {
    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path());
    let all = histograms(&server.get(HISTOGRAMS).body);
    let tags: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    let odd = "main.sch\"ed__u\\le.schedule_delay";
    for tag in [
        "main.copy.activation",
        "main.copy.queue",
        "main.copy.run",
        odd,
        "main.echo.response",
        "shard0.commit",
        "shard1.turn",
    ] {
        assert!(tags.contains(tag), "{tags:?}");
    }
    let sql = "SELECT count, p99_us FROM system.trigger_latency WHERE trigger_name = 'copy' AND stage = 'run'";
    let row = &server.sql("main", sql)[0];
    let run = &all["main.copy.run"];
    assert_eq!(Some(run.len()), row["count"].as_u64());
    assert_eq!(run.value_at_quantile(0.99) as f64 / 1000.0, row["p99_us"].as_f64().unwrap());

    let one = server.get(&format!("{HISTOGRAMS}?db=main&trigger=copy&stage=run&format=hgrm"));
    assert!(one.body.contains(&format!("Total count    = {:12}]", run.len())), "{}", one.body);
    let shard = histograms(&server.get(&format!("{HISTOGRAMS}?shard=1")).body);
    assert_eq!(shard.keys().collect::<Vec<_>>(), ["shard1.commit", "shard1.turn"]);
    let triggers = histograms(&server.get(&format!("{HISTOGRAMS}?db=main&stage=queue")).body);
    assert_eq!(triggers.len(), 3);

    for (query, status, text) in [
        ("format=svg", 400, "format: 'svg' is neither hlog nor hgrm"),
        ("format=hgrm", 400, "format: hgrm holds one histogram, and "),
        ("db=main&trigger=copy&stage=response&format=hgrm", 400, "stage: nothing of that stage is measured here"),
        ("shard=9", 400, "shard: there is no shard 9"),
        (
            "stage=lunch",
            400,
            "stage: 'lunch' is none of activation, schedule_delay, queue, run, response, commit, turn",
        ),
        ("trigger=copy", 400, "trigger: needs db"),
        ("db=main&trigger=other", 404, "there is no enabled trigger 'other'"),
        ("db=nowhere", 404, ""),
    ] {
        let reply = server.get(&format!("{HISTOGRAMS}?{query}"));
        assert_eq!(reply.status, status, "{query}: {}", reply.body);
        assert!(reply.body.contains(text), "{query}: {}", reply.body);
    }
}

#[test]
fn the_command_line_shows_latencies_as_table_and_as_files() {
    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path());
    let show = |more: &[&str]| server.command(&[&["show", "latency"][..], more].concat());
    let (good, table, _) = show(&["--database", "main", "--trigger", "copy"]);
    assert!(good && table.contains("| copy ") && table.contains(" p999_us ") && !table.contains("echo"), "{table}");
    let (good, log, _) = show(&["--database", "main", "--format", "hlog"]);
    assert!(good && histograms(&log).contains_key("main.copy.run"), "{log}");
    let file = root.path().join("run.hgrm");
    let path = file.to_str().unwrap();
    let (good, out, _) =
        show(&["--database", "main", "--trigger", "copy", "--stage", "run", "--format", "hgrm", "-o", path]);
    assert!(good && out.is_empty());
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("       Value     Percentile TotalCount"));
    let (good, _, error) = show(&["--shard", "1"]);
    assert!(!good && error.contains("--shard goes with --format hlog or hgrm"), "{error}");
    let (good, _, error) = show(&["--shard", "1", "--format", "hgrm", "--stage", "run"]);
    assert!(!good && error.contains("stage: 'run' is none of commit, turn"), "{error}");
}

#[test]
fn top_prints_a_frame_of_a_real_server() {
    let root = tempfile::tempdir().unwrap();
    let mut server = serve(root.path());
    let (good, frame, error) = server.command(&["top", "--once", "--interval", "200ms"]);
    assert!(good, "{error}");
    let lines: Vec<&str> = frame.lines().collect();
    assert!(lines[0].starts_with(&format!("saltus top  {}  version ", server.url)), "{frame}");
    assert!(lines[1].contains(" rows/s ") && lines[1].contains(" runs/s "), "{frame}");
    for heading in
        ["SHARD", "BUSY", "STALLS", "TURN P99", "COMMIT P50", "TRIGGER", "LANE", "ACT P99", "BACKLOG", "MEMORY"]
    {
        assert!(frame.contains(heading), "no {heading} in\n{frame}");
    }
    let copy = lines.iter().find(|line| line.starts_with("main.copy ")).unwrap_or_else(|| panic!("{frame}"));
    assert!(copy.contains(" inline "), "{frame}");
    let (good, _, error) = server.command(&["top", "--once", "--interval", "never"]);
    assert!(!good && error.contains("--interval: 'never' is no time"), "{error}");
    let (good, _, error) = server.command(&["top"]);
    assert!(!good && error.contains("--once prints one frame as text"), "{error}");
    server.kill();
    let (good, _, error) = server.command(&["top", "--once"]);
    assert!(!good && error.contains("cannot reach") && error.contains("is the server running?"), "{error}");
}

/// What the view draws, as text.
fn drawn(app: &App) -> String {
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(140, 30)).unwrap();
    terminal.draw(|frame| view::draw(app, frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..buffer.area.height).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_view_follows_keys_and_says_when_the_server_is_gone() {
    use ratatui::crossterm::event::KeyCode;

    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path());
    let look = || Snapshot::read(&server.get("/metrics").body);
    let mut app = App::new(server.url.clone(), Duration::from_secs(1));
    assert!(drawn(&app).contains("asking the server"));
    app.take(look());
    for n in 1..=ROWS {
        assert_eq!(server.write("main", &format!("a n={n}i {}", 1000 + n)).status, 204);
    }
    assert_eq!(server.write("main", "a n=-1i 5000").status, 204);
    let failed =
        "SELECT last_error FROM system.processing_engine_triggers WHERE trigger_name = 'copy' AND error_count = 1";
    server.sql_until("main", failed, |rows| rows.len() == 1);
    app.take(look());
    let rows = app.shards().iter().map(|shard| shard.rows.unwrap()).sum::<f64>();
    assert!(rows > 0.0);
    let copy = app.triggers().into_iter().find(|line| line.name == "copy").unwrap();
    assert!(copy.runs.unwrap() > 0.0 && copy.errors.unwrap() > 0.0 && copy.errors_total == 1.0, "{copy:?}");
    assert!(drawn(&app).contains("RUNS/Sv"));

    while app.triggers()[app.selected()].name != "copy" {
        app.key(KeyCode::Down);
    }
    assert_eq!(app.key(KeyCode::Enter), Wish::Details("main".into(), "copy".into()));
    let row = server.sql("main", "SELECT * FROM system.processing_engine_triggers WHERE trigger_name = 'copy'");
    let Value::Object(row) = row[0].clone() else { panic!("no row") };
    app.take_details(("main".into(), "copy".into()), Ok(row.into_iter().collect()));
    let text = drawn(&app);
    assert!(
        text.contains(" main.copy ") && text.contains("last error: ") && text.contains("less than nothing"),
        "{text}"
    );
    assert!(text.contains("because: "), "{text}");
    app.key(KeyCode::Esc);
    app.key(KeyCode::Char('p'));
    assert!(drawn(&app).contains("PAUSED"));
    app.take(Err("cannot reach it".into()));
    let text = drawn(&app);
    assert!(text.contains("NO ANSWER for 0 s, trying again: cannot reach it") && text.contains("main.copy"), "{text}");
    assert_eq!(app.key(KeyCode::Char('q')), Wish::Quit);
    assert!(top::text(&app, 120).contains("main.copy"));
}

fn doctor(arguments: &[&str]) -> (bool, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saltus"));
    let output = command.arg("doctor").args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.success(), serde_json::from_str(&text).unwrap_or(Value::String(text)), errors)
}

#[test]
fn the_doctor_looks_at_this_machine_and_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("not-there-yet");
    let data = data.to_str().unwrap();
    let (good, report, errors) = doctor(&["--data-dir", data, "--shards", "1", "--format", "json"]);
    let checks = report["checks"].as_array().unwrap_or_else(|| panic!("{report} {errors}"));
    let of = |name: &str| checks.iter().find(|c| c["check"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
    for name in [
        "kernel",
        "io_uring",
        "locked memory",
        "open files",
        "governor",
        "isolation",
        "smt",
        "numa",
        "numa of nic",
        "numa of disk",
        "irq affinity",
        "huge pages",
        "swap",
        "file system",
        "o_direct",
        "write cache",
        "durable write",
        "clock source",
        "python",
        "python build",
        "cpu quota",
        "virtual machine",
        "placement",
    ] {
        assert!(["OK", "WARN", "FAIL", "not visible"].contains(&of(name)["outcome"].as_str().unwrap()), "{name}");
    }
    // These were tried, and the tests of the server would not run without them.
    assert!(of("io_uring")["found"].as_str().unwrap().starts_with("a ring was set up"), "{report}");
    let sync = of("durable write")["found"].as_str().unwrap();
    assert!(sync.starts_with("a durable write of 4 KiB, 64 times: p50 ") && sync.contains(", p99 "), "{sync}");
    assert!(of("python")["found"].as_str().unwrap().starts_with("3.1"), "{report}");
    let failed = checks.iter().filter(|check| check["outcome"] == "FAIL").count();
    assert_eq!((good, report["fail"].as_u64()), (failed == 0, Some(failed as u64)), "{report}");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn the_doctor_fails_when_the_server_would_and_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let sys = root.path().join("sys");
    let proc = root.path().join("proc");
    let put = |path: PathBuf, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put(proc.join("sys/kernel/osrelease"), "4.19.0\n");
    put(sys.join("class/net/eth0/device/msi_irqs/7"), "msix");
    put(proc.join("irq/7/smp_affinity_list"), "0-63");
    put(sys.join("devices/system/cpu/online"), "0-63");
    let [data, sys, proc] = [&data, &sys, &proc].map(|path| path.to_str().unwrap());
    let made = ["--data-dir", data, "--shards", "1", "--sys-root", sys, "--proc-root", proc];
    let (good, report, errors) = doctor(&[&made[..], &["--format", "json"][..]].concat());
    assert!(!good && errors.contains("Doctor command failed: 1 check failed"), "{report} {errors}");
    let (good, text, _) = doctor(&made);
    let text = text.as_str().unwrap();
    assert!(!good && text.contains("FAIL  kernel") && text.contains("do: boot Linux 5.11 or newer"), "{text}");
    assert!(text.contains("WARN  irq affinity") && text.contains("for irq in 7; do echo "), "{text}");
    assert!(text.contains("----  swap") && text.contains("not visible here (/proc/swaps)"), "{text}");
    for (arguments, error) in [
        (["--cpus", "99999"], "no list of cores"),
        (["--cpus", "4000"], "this process may not use core 4000"),
        (["--shards", "many"], "shards (flag --shards): 'many' is no whole number"),
        (["--interface", "eth9"], "--interface: there is no eth9; there are: "),
    ] {
        let (good, _, errors) = doctor(&[&["--data-dir", data][..], &arguments[..]].concat());
        assert!(!good && errors.contains(error), "{arguments:?}: {errors}");
    }
}

/// One bytecode, and time enough for the watch to look.
const HOLDS: &str = r#"
def process_writes(influxdb3_local, table_batches, args=None):
    sum(range(table_batches[0]["rows"][0]["loops"]))
"#;

#[test]
fn a_task_that_holds_its_shard_is_told_with_its_stack() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--loop-stall-limit".into(), "20ms".into(), "--log-format".into(), "json".into()]);
    start.plugin("holds.py", HOLDS);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "holds", "holds.py", "table:a", "inline", json!({}));
    assert_eq!(server.write("main", "a loops=1i 1").status, 204);
    let ran = "SELECT run_count FROM system.processing_engine_triggers WHERE run_count = ";
    server.sql_until("main", &format!("{ran}1"), |rows| rows.len() == 1);
    assert_eq!(server.write("main", "a loops=60000000i 2").status, 204);
    server.sql_until("main", &format!("{ran}2"), |rows| rows.len() == 1);
    let stalls: f64 = server.sql("main", "SELECT sum(stalls) AS n FROM system.shards")[0]["n"].as_f64().unwrap();
    assert!(stalls >= 1.0, "{stalls}");
    // Finding names takes its time.
    let told = |log: &str| {
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut texts = lines.filter(|line| line["level"] == "WARN").map(|line| line["fields"].clone());
        texts.find(|fields| fields["message"].as_str().is_some_and(|text| text.contains("builtin_sum")))
    };
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let fields = loop {
        if let Some(fields) = told(&server.log_text()) {
            break fields;
        }
        assert!(std::time::Instant::now() < end, "{}", server.log_text());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(fields["trigger"], "main.holds (holds.py)");
    let text = fields["message"].as_str().unwrap();
    assert!(text.starts_with("a task holds its shard, which does nothing else meanwhile:\n"), "{text}");
    assert!(text.contains("run_inline") && !text.contains("src/ffi/stack.rs"), "{text}");
    // Where the machine is slow the call was a stall as well, whose end the watchdog sees a little later.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while server.get("/health").status != 200 {
        assert!(std::time::Instant::now() < end, "{}", server.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A collector: takes what is posted to it and gives out the bodies.
fn collector() -> (u16, std::sync::mpsc::Receiver<(String, Value)>) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            loop {
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                        break;
                    }
                    head.push(line.trim_end().to_lowercase());
                }
                let Some(first) = head.first().cloned() else { break };
                let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
                assert!(head.iter().any(|line| line == "content-type: application/json"), "{head:?}");
                let mut body = vec![0; length.expect("a body has a length").parse().unwrap()];
                stream.read_exact(&mut body).unwrap();
                stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
                if sender.send((first, serde_json::from_slice(&body).unwrap())).is_err() {
                    return;
                }
            }
        }
    });
    (port, receiver)
}

/// The spans of a request, and its resource's attributes.
fn spans(body: &Value) -> (Vec<Value>, Value) {
    let resource = &body["resourceSpans"][0];
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap().clone();
    (spans, resource["resource"]["attributes"].clone())
}

#[test]
fn a_write_is_traced_through_to_its_run_at_a_real_collector() {
    let (port, received) = collector();
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--otlp-endpoint".into(), format!("http://127.0.0.1:{port}")]);
    start.extra.extend(["--trace-sample-ratio".into(), "1".into()]);
    start.plugin("copy.py", COPY);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "copy", "copy.py", "table:a", "inline", json!({}));
    assert_eq!(server.write("main", "a n=1i 1").status, 204);
    server.sql_until("main", "SELECT n FROM out", |rows| rows.len() == 1);
    assert_eq!(server.write("main", "a n=-1i 2").status, 204);
    let mut all = Vec::new();
    while all.iter().filter(|span: &&Value| span["name"] == "run").count() < 2 {
        let (first, body) = received.recv_timeout(Duration::from_secs(30)).expect("spans come");
        assert!(first.starts_with("post /v1/traces http/1.1"), "{first}");
        let (spans, resource) = spans(&body);
        assert!(
            resource.to_string().contains(r#"{"key":"service.name","value":{"stringValue":"saltus"}}"#),
            "{resource}"
        );
        all.extend(spans);
    }
    let ns = |span: &Value, end: &str| span[end].as_str().unwrap().parse::<u64>().unwrap();
    for run in all.iter().filter(|span| span["name"] == "run") {
        let of_trace: Vec<&Value> = all.iter().filter(|span| span["traceId"] == run["traceId"]).collect();
        assert_eq!(of_trace.len(), 3, "{of_trace:#?}");
        let named = |name: &str| *of_trace.iter().find(|span| span["name"] == name).unwrap();
        let (write, activation) = (named("write"), named("activation"));
        assert_eq!(write.get("parentSpanId"), None);
        assert!(run["parentSpanId"] == write["spanId"] && activation["parentSpanId"] == write["spanId"]);
        assert_eq!(ns(write, "startTimeUnixNano"), ns(activation, "startTimeUnixNano"));
        assert_eq!(ns(activation, "endTimeUnixNano"), ns(run, "startTimeUnixNano"));
        assert!(ns(run, "startTimeUnixNano") < ns(run, "endTimeUnixNano"));
        assert!(run["attributes"].to_string().contains(r#"{"key":"saltus.trigger","value":{"stringValue":"copy"}}"#));
    }
    let failed: Vec<&Value> = all.iter().filter(|span| span.get("status").is_some()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0]["status"]["message"].as_str().unwrap().contains("less than nothing"));
    let sent = value(&families(&server.get("/metrics").body), "saltus_trace_spans_sent_total", &[]);
    assert!(sent >= 6.0, "{sent}");

    // A collector that is gone costs spans and nothing else.
    drop(received);
    assert_eq!(server.write("main", "a n=3i 3").status, 204);
    server.sql_until("main", "SELECT n FROM out", |rows| rows.len() == 2);
}

#[test]
fn settings_of_traces_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let refused = |more: &[&str]| {
        let mut start = Start::new(root.path());
        start.extra.extend(more.iter().map(|word| (*word).to_owned()));
        start.run_refused()
    };
    let text = refused(&["--otlp-endpoint", "https://c:4318"]);
    assert!(
        text.contains("otlp-endpoint (flag --otlp-endpoint): 'https://c:4318' does not begin with http://"),
        "{text}"
    );
    let text = refused(&["--trace-sample-ratio", "2"]);
    assert!(text.contains("trace-sample-ratio (flag --trace-sample-ratio): '2' is no share"), "{text}");
}

fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of our metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("saltus_") && word.len() > "saltus_".len()).map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_dashboard_and_of_the_book_is_there() {
    let root = tempfile::tempdir().unwrap();
    let server = serve(root.path());
    let there: BTreeSet<String> =
        families(&server.get("/metrics").body).into_values().flat_map(|f| f.samples).map(|(name, ..)| name).collect();
    let dashboard: Value = serde_json::from_str(&shipped("grafana/saltus.json")).unwrap();
    fn queries(value: &Value, out: &mut String) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match value {
                Value::String(text) if ["expr", "query", "definition"].contains(&key.as_str()) => {
                    out.push_str(text);
                    out.push(' ');
                }
                value => queries(value, out),
            }),
            Value::Array(list) => list.iter().for_each(|value| queries(value, out)),
            _ => {}
        }
    }
    let mut text = String::new();
    queries(&dashboard, &mut text);
    let named = names_in(&text);
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> = named.difference(&there).collect();
    assert!(missing.is_empty(), "the dashboard asks for what is not there: {missing:?}");
    for page in ["book/src/operating.md", "book/src/tuning.md"] {
        let missing: Vec<_> = names_in(&shipped(page)).into_iter().filter(|name| !there.contains(name)).collect();
        let families: Vec<_> = missing.iter().filter(|name| !there.contains(&format!("{name}_count"))).collect();
        assert!(families.is_empty(), "{page} names what is not there: {families:?}");
    }
}

#[test]
fn the_unit_starts_the_server_with_flags_that_it_has() {
    let unit = shipped("systemd/saltus.service");
    let keys: BTreeSet<&str> = unit.lines().filter_map(|line| Some(line.split_once('=')?.0.trim())).collect();
    for key in
        ["ExecStart", "Restart", "LimitMEMLOCK", "LimitNOFILE", "ProtectSystem", "NoNewPrivileges", "StateDirectory"]
    {
        assert!(keys.contains(key), "{key}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_saltus")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let command = unit.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" ");
    for word in command.split_whitespace().filter(|word| word.starts_with("--")) {
        let flag = word.split('=').next().unwrap();
        assert!(help.contains(flag), "{flag} is no flag of saltus serve");
    }
}
