//! The example plugins in a real server, by the commands of their own READMEs.
//!
//! Of a README's code blocks the commands are run as they stand, but for addresses, folders and how often a schedule comes. Then data is
//! written that should make the plugin do its work, and its result is read, where the README shows how, by that.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Server, Start};
use serde_json::{Value, json};

const HOUR_NS: i64 = 3_600_000_000_000;
/// 2026-01-01T12:00:00Z
const NOON_NS: i64 = 1_767_268_800_000_000_000;
/// Days of history: a day more than the forecast looks back.
const DAYS: i64 = 15;
/// Rows of a write: few enough for a run in the inline lane.
const ROWS_PER_WRITE: usize = 24;

/// A server with the examples as its plugins.
struct Examples {
    server: Server,
    root: PathBuf,
    /// What stands in READMEs, and what it is here.
    replaced: Vec<(String, String)>,
}

impl Examples {
    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/plugins").join(name)
    }

    /// The commands in a README's code blocks, each in one line; what they print is left out.
    fn commands(name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(Examples::folder(name).join("README.md")).unwrap().replace("\\\n", " ");
        let blocks = text.split("```").skip(1).step_by(2);
        let lines = blocks.flat_map(|block| block.lines().skip(1));
        let wanted = ["saltus create trigger ", "saltus query ", "curl ", "mkdir "];
        lines.filter(|line| wanted.iter().any(|start| line.starts_with(start))).map(str::to_owned).collect()
    }

    /// Runs a README's commands that begin so; what they print.
    fn run(&self, name: &str, start: &str) -> String {
        self.try_run(name, start).unwrap_or_else(|errors| panic!("{errors}\n{}", self.server.log_text()))
    }

    /// The same; a command that fails ends it with what it said.
    fn try_run(&self, name: &str, start: &str) -> Result<String, String> {
        let mut output = String::new();
        let commands: Vec<_> = Examples::commands(name).into_iter().filter(|line| line.starts_with(start)).collect();
        assert!(!commands.is_empty(), "{name}/README.md has no command that starts with {start}");
        for mut command in commands {
            for (there, here) in &self.replaced {
                command = command.replace(there, here);
            }
            let binary = Path::new(env!("CARGO_BIN_EXE_saltus")).parent().unwrap();
            let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
            let done = Command::new("bash")
                .args(["-c", &command])
                .current_dir(&self.root)
                .env("PATH", path)
                .env("INFLUXDB3_HOST_URL", &self.server.url)
                .output()
                .expect("bash starts");
            if !done.status.success() {
                return Err(format!("{command}\n{}", String::from_utf8_lossy(&done.stderr)));
            }
            output.push_str(&String::from_utf8_lossy(&done.stdout));
        }
        Ok(output)
    }

    /// Creates the trigger as the README says.
    fn create(&self, name: &str) {
        let output = self.run(name, "saltus create trigger ");
        assert!(output.contains("created successfully"), "{name}: {output}");
    }

    /// The README's query, asked until its answer has all of `words`.
    fn query(&self, name: &str, words: &[&str]) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            // Until the plugin has written, there is no such table.
            match self.try_run(name, "saltus query ") {
                Ok(output) if words.iter().all(|word| output.contains(word)) => return output,
                Ok(last) | Err(last) => {
                    let log = self.server.log_text();
                    assert!(Instant::now() < end, "{name}: {words:?} expected in\n{last}\n{log}");
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn write(&self, db: &str, lines: &[String]) {
        for some in lines.chunks(ROWS_PER_WRITE) {
            let reply = self.server.write(db, &some.join("\n"));
            assert_eq!(reply.status, 204, "{}", reply.body);
        }
    }

    /// No plugin has failed, but for runs before its table was there.
    fn nothing_failed(&self, db: &str) {
        let sql = "SELECT trigger_name, log_text FROM system.processing_engine_logs WHERE log_level = 'ERROR'";
        assert_eq!(self.server.sql(db, sql), Vec::<Value>::new());
    }
}

/// Takes alerts: the bodies of the requests that came.
fn webhook() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let into = taken.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            into.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
        }
    });
    (url, taken)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// The virtual environment with numpy, if `make setup` could make one.
fn numpys_environment() -> Option<PathBuf> {
    let packages = std::env::var("SALTUS_TEST_SITE_PACKAGES").ok()?;
    Path::new(&packages).ancestors().nth(3).filter(|_| !packages.is_empty()).map(Path::to_owned)
}

/// A temperature by the hour: a day's wave between 34 and 46 F.
fn calm(hour: i64) -> f64 {
    40.0 + 6.0 * (hour as f64 * std::f64::consts::TAU / 24.0).sin()
}

#[test]
fn every_example_does_what_its_readme_says() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    copy(&Examples::folder(""), &start.plugins);
    let numpy = numpys_environment();
    if let Some(venv) = &numpy {
        start.extra.extend(["--virtual-env-location".to_owned(), venv.display().to_string()]);
    }
    let server = start.run();
    let (hook, alerts) = webhook();
    let exports = root.path().join("exports").display().to_string();
    let replaced = [
        ("http://127.0.0.1:8181", server.url.as_str()),
        ("http://127.0.0.1:9999/hook", &hook),
        ("/tmp/exports", &exports),
        ("every:1m", "every:100ms"),
        ("every:1h", "every:100ms"),
    ];
    let replaced = replaced.map(|(there, here)| (there.to_owned(), here.to_owned())).into();
    let examples = Examples { server, root: root.path().to_owned(), replaced };
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
    let hour = now_ns / HOUR_NS;
    examples.server.create_database("weather");
    examples.server.create_database("plant");

    for name in ["felt_temperature", "threshold_alert", "schema_guard", "rolling_zscore"] {
        examples.create(name);
    }
    let observed = |origin: &str, hour: i64, temp: f64| {
        format!("weather,origin={origin} temp={temp},humid=50,wind_speed=10 {}", hour * HOUR_NS)
    };
    for origin in ["JFK", "EWR"] {
        let history: Vec<_> = (hour - DAYS * 24..hour).map(|hour| observed(origin, hour, calm(hour))).collect();
        examples.write("weather", &history);
    }
    examples.write("weather", &[observed("LGA", hour - 3, 40.0)]);
    write_triggers(&examples, &alerts, &observed("JFK", hour, 101.0), &observed("EWR", hour, 451.0));
    schedules(&examples, Path::new(&exports), numpy.is_some());
    requests_and_state(&examples);
    examples.nothing_failed("weather");
    examples.nothing_failed("plant");
}

/// What follows from two extraordinary observations.
fn write_triggers(examples: &Examples, alerts: &Mutex<Vec<Value>>, hot: &str, impossible: &str) {
    examples.write("weather", &[hot.to_owned(), impossible.to_owned()]);
    examples.query("threshold_alert", &["JFK", "critical", "101.0"]);
    let told: Vec<_> =
        alerts.lock().unwrap().iter().flat_map(|body| body["alerts"].as_array().unwrap().clone()).collect();
    assert!(told.iter().any(|a| a["value"] == 101.0 && a["tags"] == json!({"origin": "JFK"})), "{told:?}");
    examples.query("schema_guard", &["temp", "range", "451.0"]);
    examples.query("rolling_zscore", &["JFK", "101.0", "EWR", "451.0"]);
    let felt = "SELECT method FROM comfort WHERE origin = 'JFK' ORDER BY time DESC LIMIT 1";
    let rows = examples
        .server
        .sql_until("weather", felt, |rows| rows.first().is_some_and(|row| row["method"] != "wind_chill"));
    assert_eq!(rows, [json!({"method": "heat_index"})]);
}

/// What is done by the clock.
fn schedules(examples: &Examples, exports: &Path, numpy: bool) {
    examples.create("deadman_check");
    let silent = examples.query("deadman_check", &["LGA", "false"]);
    assert!(!silent.contains("JFK"), "{silent}");

    examples.create("downsampler");
    examples.query("downsampler", &["EWR", "temp_avg", "temp_max"]);
    // Seven days of two stations, and one hour of the third; the hour that is under way is not over.
    let windows = "SELECT count(*) AS n, max(temp_max) AS warmest FROM weather_1h WHERE origin <> 'LGA'";
    let rows = examples.server.sql_until("weather", windows, |rows| rows[0]["n"].as_i64() >= Some(7 * 24 * 2));
    assert_eq!(rows[0]["n"], 7 * 24 * 2);
    assert!(rows[0]["warmest"].as_f64().unwrap() < 47.0, "{rows:?}");

    examples.run("csv_export", "mkdir ");
    examples.create("csv_export");
    let end = Instant::now() + Duration::from_secs(20);
    let files = || std::fs::read_dir(exports).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let whole = |files: &[PathBuf]| files.iter().filter(|path| path.extension().is_some_and(|e| e == "csv")).count();
    while whole(&files()) < 7 {
        assert!(Instant::now() < end, "{:?}\n{}", files(), examples.server.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = std::fs::read_to_string(&files()[0]).unwrap();
    assert!(text.starts_with("time,origin,humid,temp,wind_speed\r\n"), "{text}");
    assert_eq!(text.lines().count(), 1 + 24 * 2, "a day of two stations");

    if numpy {
        examples.create("forecast");
        examples.query("forecast", &["value", "lower", "upper"]);
        let ahead =
            "SELECT count(*) AS n, min(value) AS coldest, max(value) AS warmest FROM forecast WHERE origin = 'JFK'";
        let rows = examples.server.sql_until("weather", ahead, |rows| rows[0]["n"] == 24);
        let (coldest, warmest) = (rows[0]["coldest"].as_f64().unwrap(), rows[0]["warmest"].as_f64().unwrap());
        assert!(33.0 < coldest && coldest < 35.0 && 45.0 < warmest && warmest < 47.0, "{rows:?}");
    } else {
        eprintln!("the forecast is not run: SALTUS_TEST_SITE_PACKAGES names no folder with numpy");
    }
}

/// What is asked for over HTTP, and what is kept of devices.
fn requests_and_state(examples: &Examples) {
    examples.create("query_api");
    let answer: Value = serde_json::from_str(&examples.run("query_api", "curl ")).unwrap();
    assert_eq!(answer["rows"][0]["origin"], "JFK", "{answer}");
    assert_eq!(answer["rows"][0]["temp"], 101.0, "{answer}");
    let refused = examples.server.get("/api/v3/engine/readings?table=weather&limit=0");
    assert_eq!(refused.status, 400, "{}", refused.body);

    examples.create("json_ingest");
    assert_eq!(examples.run("json_ingest", "curl ").trim(), "{\"written\": 1}");
    examples.query("json_ingest", &["a1", "21.5", "48.1"]);
    let refused = examples.server.post("/api/v3/engine/sensors", "{\"temp\": [1]}");
    assert_eq!(refused.status, 400, "{}", refused.body);

    examples.create("state_machine");
    let modes = ["idle", "idle", "running", "fault", "running"];
    let lines: Vec<_> = modes
        .iter()
        .enumerate()
        .map(|(at, mode)| format!("press,machine=m1 mode=\"{mode}\" {}", NOON_NS + at as i64 * 10_000_000_000))
        .collect();
    examples.write("plant", &lines);
    let changes = examples.query("state_machine", &["idle", "fault"]);
    assert!(changes.contains("20.0"), "it was idle for 20 s: {changes}");
    let sql = "SELECT before, after FROM state_changes WHERE NOT allowed";
    let forbidden = examples.server.sql_until("plant", sql, |rows| rows.len() == 1);
    assert_eq!(forbidden, [json!({"before": "fault", "after": "running"})]);
}
