//! Plugins: whose code runs, updates as a whole, output, changes of triggers while a run is under way.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Server, Start};

const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";

fn write_folder(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

fn logs(server: &Server, db: &str, trigger: &str) -> Vec<String> {
    let sql =
        format!("SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{trigger}' ORDER BY time");
    server.sql(db, &sql).iter().map(|row| row["log_text"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a trigger has said something; `%` is any trigger.
fn until_said(server: &Server, db: &str, trigger: &str, what: &str) {
    let sql = format!(
        "SELECT count(*) AS n FROM system.processing_engine_logs WHERE trigger_name LIKE '{trigger}' AND log_text LIKE '%{what}%'"
    );
    server.sql_until(db, &sql, |rows| rows[0]["n"].as_i64() > Some(0));
}

/// Every kind of trigger of two folders of one name: each answers with its own code, however it reaches it.
#[test]
fn folders_of_one_name_run_their_own_code_in_every_lane() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    // What a folder's code does to have the name of its own module.
    let ways = [
        ("at the top", "from .who import NAME\ndef name():\n    return NAME\n"),
        ("late", "def name():\n    from .who import NAME\n    return NAME\n"),
        ("by the own name", "def name():\n    import common.who\n    return common.who.NAME\n"),
    ];
    let entries = "\ndef process_writes(api, batches, args=None):\n    api.write(LineBuilder('said').tag('by', args['by']).tag('kind', 'write').string_field('name', name()))\ndef process_scheduled_call(api, time, args=None):\n    api.write(LineBuilder('said').tag('by', args['by']).tag('kind', 'call').string_field('name', name()))\ndef process_request(api, query, headers, body, args=None):\n    return name()\n";
    let lanes = [
        ("inline", json!({"execution": "inline"})),
        ("deferred", json!({"execution": "deferred"})),
        ("process", json!({"isolation": "process"})),
    ];
    for (at, (_, way)) in ways.iter().enumerate() {
        for side in ["a", "b"] {
            let files = [("__init__.py", &*format!("{way}{entries}")), ("who.py", &*format!("NAME = '{side}'\n"))];
            write_folder(&start.plugins.join(format!("{side}{at}/common")), &files);
        }
    }
    let server = start.run();
    server.create_database("main");
    let mut expected = 0;
    for (at, _) in ways.iter().enumerate() {
        for (lane, settings) in &lanes {
            for side in ["a", "b"] {
                let by = format!("{side}{at}{lane}");
                let file = format!("{side}{at}/common");
                let args = json!({"by": by});
                for (kind, spec) in
                    [("w", "table:rows".to_owned()), ("c", "every:200ms".to_owned()), ("r", format!("request:{by}"))]
                {
                    // One process each is enough.
                    if *lane == "process" && kind != "w" {
                        continue;
                    }
                    server.create_trigger_with(
                        "main",
                        &format!("{kind}{by}"),
                        &file,
                        &spec,
                        settings.clone(),
                        args.clone(),
                    );
                    expected += usize::from(kind != "r");
                }
            }
        }
    }
    assert_eq!(server.write("main", "rows v=1").status, 204);
    let sql = "SELECT DISTINCT by, kind, name FROM said";
    let rows = server.sql_until("main", sql, |rows| rows.len() >= expected);
    assert_eq!(rows.len(), expected, "one name each: {rows:?}");
    for row in rows {
        assert_eq!(row["by"].as_str().unwrap()[..1], *row["name"].as_str().unwrap(), "{row}");
    }
    for (at, (way, _)) in ways.iter().enumerate() {
        for lane in ["inline", "deferred"] {
            for side in ["a", "b"] {
                assert_eq!(server.get(&format!("/api/v3/engine/{side}{at}{lane}")).body, side, "{way}, {lane}");
            }
        }
        for side in ["b", "a"] {
            let test = json!({"filename": format!("{side}{at}/common"), "database": "main", "input_lp": "rows v=1", "input_arguments": {"by": "t"}});
            let reply = server.post_json("/api/v3/plugin_test/wal", &test);
            assert!(reply.body.contains(&format!("name=\\\"{side}\\\"")), "{way}: {}", reply.body);
        }
    }
}

/// The text of a version: both files must be of the same one.
fn version(n: usize) -> [(&'static str, String); 2] {
    [
        (
            "__init__.py",
            format!(
                "from .parts import name_{n}\n\ndef process_writes(api, batches, args=None):\n    from .late import late_{n}\n    for batch in batches:\n        for row in batch['rows']:\n            api.write(LineBuilder(args['out']).int64_field('version', late_{n}(name_{n})).int64_field('n', row['n']).time_ns(row['time']))\n"
            ),
        ),
        ("parts.py", format!("name_{n} = {n}\n")),
    ]
}

fn late(n: usize) -> (&'static str, String) {
    ("late.py", format!("def late_{n}(name):\n    assert name == {n}, 'half a version'\n    return name\n"))
}

/// Events come one a millisecond while the folder changes in every way: none fails, none is lost, nothing is disabled.
#[test]
fn a_folder_that_changes_is_never_run_half_old_and_half_new() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let plugin = start.plugins.join("pkg");
    let whole = |n: usize| -> Vec<(&'static str, String)> { version(n).into_iter().chain([late(n)]).collect() };
    let put = |folder: &Path, n: usize, pause: Duration| {
        for (name, text) in whole(n) {
            write_folder(folder, &[(name, &text)]);
            std::thread::sleep(pause);
        }
    };
    put(&plugin, 0, Duration::ZERO);
    let server = start.run();
    server.create_database("main");
    for behavior in ["log", "disable", "retry"] {
        let settings = json!({"error_behavior": behavior, "execution": "deferred"});
        server.create_trigger_with(
            "main",
            behavior,
            "pkg",
            "table:rows",
            settings,
            json!({"out": format!("out_{behavior}")}),
        );
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let is_over = || stop.load(std::sync::atomic::Ordering::SeqCst);
    let mut current = 0;
    /// Ends the writer, also when a check fails.
    struct Ends<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let written = std::thread::scope(|scope| {
        let ends = Ends(&stop);
        let writer = scope.spawn(|| {
            let mut n = 0;
            while !is_over() {
                n += 1;
                assert_eq!(server.write("main", &format!("rows n={n}i")).status, 204);
                std::thread::sleep(Duration::from_millis(1));
            }
            n
        });
        let counts = |n: usize| {
            for behavior in ["log", "disable", "retry"] {
                let sql = format!("SELECT max(version) AS v FROM out_{behavior}");
                server.sql_until("main", &sql, |rows| rows[0]["v"] == json!(n));
            }
        };
        for way in ["by the command", "file by file", "with pauses", "another folder in its place"] {
            current += 1;
            match way {
                "by the command" => {
                    let source = root.path().join(format!("source{current}"));
                    put(&source, current, Duration::ZERO);
                    let path = source.to_string_lossy().into_owned();
                    let (done, _, errors) =
                        server.command(&["update", "trigger", "-d", "main", "--path", &path, "disable"]);
                    assert!(done, "{errors}");
                }
                "file by file" => put(&plugin, current, Duration::ZERO),
                "with pauses" => put(&plugin, current, Duration::from_millis(150)),
                _ => {
                    let beside = start.plugins.join("beside");
                    put(&beside, current, Duration::ZERO);
                    std::fs::rename(&plugin, start.plugins.join("before")).unwrap();
                    std::fs::rename(&beside, &plugin).unwrap();
                }
            }
            counts(current);
        }
        // A version that cannot be right, at first sight or when it is imported, leaves the work to the last good one.
        let good = current;
        for (name, text, said) in [
            ("parts.py", format!("name_{good} = ("), "SyntaxError: '(' was never closed (parts.py, line 1)"),
            ("parts.py", "other = 1\n".to_owned(), "ImportError: cannot import name 'name_4' from 'pkg.parts'"),
        ] {
            write_folder(&plugin, &[(name, &text)]);
            let end = Instant::now() + Duration::from_secs(30);
            while !server.log_text().contains(said) {
                assert!(Instant::now() < end, "nobody says {said}\n{}", server.log_text());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        write_folder(&plugin, &[("parts.py", &format!("name_{good} = {good}\nraise ValueError('new')\n"))]);
        // The first one of their interpreter that meets it says so.
        until_said(&server, "main", "%", "its last good one goes on: ValueError: new");
        drop(ends);
        writer.join().unwrap()
    });
    for behavior in ["log", "disable", "retry"] {
        let sql = format!("SELECT count(DISTINCT n) AS n FROM out_{behavior}");
        let rows = server.sql_until("main", &sql, |rows| rows[0]["n"] == json!(written));
        assert_eq!(rows[0]["n"], json!(written), "{behavior}");
        let failures: Vec<String> = logs(&server, "main", behavior)
            .into_iter()
            .filter(|text| text.contains("error running") || text.contains("disabled"))
            .collect();
        assert!(failures.is_empty(), "{behavior}: {failures:?}");
    }
    let list: Vec<Value> = serde_json::from_str(&server.get(&format!("{TRIGGER}?db=main")).body).unwrap();
    assert!(list.iter().all(|trigger| trigger["disabled"] == json!(false)), "{list:?}");
}

/// A file that an editor writes in pieces: what does not compile takes nobody's place.
#[test]
fn a_file_that_is_half_written_does_not_count() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let text = |n: usize| {
        format!(
            "def process_writes(api, batches, args=None):\n    for batch in batches:\n        for row in batch['rows']:\n            api.write(LineBuilder('out').int64_field('version', {n}).int64_field('n', row['n']))\n"
        )
    };
    start.plugin("p.py", &text(1));
    let server = start.run();
    server.create_database("main");
    server.create_trigger_with("main", "t", "p.py", "table:rows", json!({"error_behavior": "disable"}), Value::Null);
    let mut n = 0;
    let mut event = |server: &Server, version: usize| {
        n += 1;
        assert_eq!(server.write("main", &format!("rows n={n}i")).status, 204);
        server.sql_until("main", &format!("SELECT version FROM out WHERE n = {n}"), |rows| {
            rows.len() == 1 && rows[0]["version"] == json!(version)
        });
    };
    event(&server, 1);
    for half in [20, 60, 100] {
        start.plugin("p.py", &text(2)[..half]);
        event(&server, 1);
    }
    start.plugin("p.py", "def process_writes(:\n");
    let end = Instant::now() + Duration::from_secs(30);
    while !server.log_text().contains("SyntaxError: invalid syntax (p.py, line 1)") {
        assert!(Instant::now() < end, "{}", server.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
    event(&server, 1);
    // What is sent counts when it is there.
    let body = json!({"plugin_name": "p.py", "content": text(3)});
    assert_eq!(server.post_json("/api/v3/plugins/files", &body).status, 200);
    event(&server, 3);
    let files =
        json!([{"relative_path": "__init__.py", "content": "x = 1\n"}, {"relative_path": "../x.py", "content": ""}]);
    let refused = server.post_json("/api/v3/plugins/directory", &json!({"plugin_name": "new", "files": files}));
    assert!(refused.status >= 400 && refused.body.contains("Path traversal"), "{} {}", refused.status, refused.body);
    assert!(!start.plugins.join("new/__init__.py").exists());
}

/// What a run may be busy with when its trigger is changed; each says `begun` first.
const BUSY: &[(&str, &str)] = &[
    ("sleeps", "    for _ in range(400):\n        time.sleep(0.1)\n"),
    ("sleeps once", "    time.sleep(60)\n"),
    ("computes", "    while True:\n        pass\n"),
    (
        "swallows",
        "    while True:\n        try:\n            time.sleep(1)\n        except BaseException:\n            pass\n",
    ),
    (
        "writes",
        "    while True:\n        try:\n            time.sleep(0.05)\n            api.write_sync(LineBuilder('late').int64_field('n', 1), no_sync=True)\n        except Exception:\n            pass\n",
    ),
    ("queries", "    api.query('SELECT count(*) FROM big a, big b, big c WHERE a.n + b.n + c.n < 0')\n"),
    ("in C code", "    sum(range(60_000_000))\n    time.sleep(60)\n"),
];

/// More than any of it takes, and less than somebody would call waiting.
const AT_ONCE: Duration = Duration::from_secs(2);

fn at_once<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = act();
    assert!(begun.elapsed() < AT_ONCE, "{what}: {:?}", begun.elapsed());
    result
}

#[test]
fn changes_of_triggers_wait_for_no_run() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    for (name, body) in BUSY {
        let source = format!(
            "import time\ndef process_writes(api, batches, args=None):\n    if args['go'] == 'on':\n        api.write(LineBuilder('again').tag('by', '{name}').int64_field('n', batches[0]['rows'][0]['n']))\n        return\n    api.write(LineBuilder('queued').int64_field('n', 1))\n    api.info('begun')\n{body}\ndef process_request(api, query, headers, body, args=None):\n    api.info('begun')\n    time.sleep(60)\n"
        );
        start.plugin(&format!("{}.py", name.replace(' ', "_")), &source);
    }
    start.plugin("quick.py", "def process_writes(api, batches, args=None):\n    pass\n");
    let server = start.run();
    server.create_database("main");
    let big: String = (0..3000).map(|n| format!("big n={n}i {n}\n")).collect();
    assert_eq!(server.write("main", &big).status, 204);
    for (at, (name, _)) in BUSY.iter().enumerate() {
        for lane in ["deferred", "process"] {
            // A process each takes its time.
            if lane == "process" && *name != "swallows" {
                continue;
            }
            for (turn, action) in ["delete", "disable", "update"].into_iter().enumerate() {
                let every = matches!(*name, "sleeps" | "swallows" | "writes");
                if !every && turn != at % 3 {
                    continue;
                }
                let what = format!("{name}, {lane}, {action}");
                let trigger = format!("{name} {lane} {action}").replace(' ', "_");
                let file = format!("{}.py", name.replace(' ', "_"));
                let settings =
                    json!({"execution": "deferred", "isolation": if lane == "process" { "process" } else { "auto" }});
                let create = |go: &str| {
                    server.create_trigger_with(
                        "main",
                        &trigger,
                        &file,
                        &format!("table:{trigger}"),
                        settings.clone(),
                        json!({"go": go}),
                    )
                };
                create("busy");
                assert_eq!(server.write("main", &format!("{trigger} n=7i")).status, 204);
                until_said(&server, "main", &trigger, "begun");
                match action {
                    "delete" => {
                        let path = format!("{TRIGGER}?db=main&trigger_name={trigger}&force=true");
                        assert_eq!(at_once(&what, || server.delete(&path)).status, 200);
                        // The next one of that name is another one.
                        at_once(&what, || create("on"));
                        assert_eq!(server.write("main", &format!("{trigger} n=8i")).status, 204);
                        server.sql_until(
                            "main",
                            &format!("SELECT n FROM again WHERE by = '{name}' AND n = 8"),
                            |rows| !rows.is_empty(),
                        );
                    }
                    "disable" => {
                        let path = format!("{TRIGGER}/disable?db=main&trigger_name={trigger}");
                        assert_eq!(at_once(&what, || server.post(&path, "")).status, 200);
                        until_said(&server, "main", &trigger, "was disabled or deleted");
                    }
                    _ => {
                        let change = json!({"db": "main", "trigger_name": trigger, "trigger_arguments": {"go": "on"}});
                        assert_eq!(at_once(&what, || server.put_json(TRIGGER, &change)).status, 200);
                        server.sql_until(
                            "main",
                            &format!("SELECT n FROM again WHERE by = '{name}' AND n = 7"),
                            |rows| !rows.is_empty(),
                        );
                    }
                }
                // Others are not concerned.
                at_once(&what, || {
                    server.create_trigger_with(
                        "main",
                        &format!("other_{trigger}"),
                        "quick.py",
                        "table:x",
                        json!({}),
                        Value::Null,
                    )
                });
            }
        }
    }
    let tables = server.sql("main", "SELECT table_name FROM information_schema.tables WHERE table_name = 'queued'");
    assert!(tables.is_empty(), "what an interrupted run queued is not written");
    let late = |server: &Server| {
        let there = server.sql("main", "SELECT table_name FROM information_schema.tables WHERE table_name = 'late'");
        if there.is_empty() { json!(0) } else { server.sql("main", "SELECT count(*) AS n FROM late")[0]["n"].clone() }
    };
    let before = late(&server);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(late(&server), before, "a run that is over writes nothing");
}

#[test]
fn a_database_goes_with_the_runs_of_its_triggers() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("busy.py", "import time\ndef process_writes(api, batches, args=None):\n    api.info('begun')\n    while True:\n        try:\n            time.sleep(0.02)\n            api.write_sync(LineBuilder('late').int64_field('n', 1), no_sync=True)\n        except Exception:\n            pass\ndef process_request(api, query, headers, body, args=None):\n    api.info('begun')\n    time.sleep(60)\n");
    let server = start.run();
    server.create_database("gone");
    server.create_database("main");
    for name in ["t1", "t2", "t3"] {
        server.create_trigger_with(
            "gone",
            name,
            "busy.py",
            "table:rows",
            json!({"execution": "deferred"}),
            Value::Null,
        );
    }
    server.create_trigger_with("gone", "asked", "busy.py", "request:asked", json!({}), Value::Null);
    assert_eq!(server.write("gone", "rows v=1").status, 204);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| server.get("/api/v3/engine/asked"));
        let waits = scope.spawn(|| server.get("/api/v3/engine/asked"));
        for name in ["t1", "t2", "t3", "asked"] {
            until_said(&server, "gone", name, "begun");
        }
        assert_eq!(at_once("delete", || server.delete("/api/v3/configure/database?db=gone")).status, 200);
        for reply in [asked.join().unwrap(), waits.join().unwrap()] {
            assert_eq!(reply.status, 503, "{}", reply.body);
            assert!(reply.body.contains("disabled or deleted"), "{}", reply.body);
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    let reply = server.get("/api/v3/configure/database?format=json");
    assert!(!reply.body.contains("gone"), "no write brings it back: {}", reply.body);
}

#[test]
fn what_a_plugin_answers_is_json_or_an_error_that_says_where() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("p.py", "import datetime, decimal\nnan, inf = float('nan'), float('inf')\ndef process_request(api, query, headers, body, args=None):\n    return eval(body)\n");
    let server = start.run();
    server.create_database("main");
    for (name, settings) in
        [("deferred", json!({"execution": "deferred"})), ("process", json!({"isolation": "process"}))]
    {
        server.create_trigger_with("main", name, "p.py", &format!("request:{name}"), settings, Value::Null);
        for (returned, status, body) in [
            ("{'mean': nan}", 200, r#"{"mean": null}"#),
            ("{'a': [1, (nan, -inf, {'b': inf})]}", 200, r#"{"a": [1, [null, null, {"b": null}]]}"#),
            ("[nan, 1]", 200, "[null, 1]"),
            ("({'mean': nan}, 201)", 201, r#"{"mean": null}"#),
            ("api.query(\"SELECT 'NaN'::double AS v\")", 200, r#"[{"v": null}]"#),
            ("{'items': [1, 2, 3, {'when': datetime.datetime.now()}]}", 500, "result.items[3].when; use .isoformat()"),
            ("[{'d': decimal.Decimal(1)}]", 500, "result[0].d; use float(...) or str(...)"),
            ("{'s': {1}}", 500, "result.s; use list(...)"),
            (
                "(200, {'Content-Type': 'text/plain'}, 'ok')",
                500,
                "(body, status, headers), (body, status) or (body, headers) is expected, got (int, dict, str)",
            ),
            ("(404, 'not found')", 500, "is expected, got (int, str)"),
            ("('x', 200, {'X-A': 1})", 500, "header 'X-A' must be str or a list of str, not int"),
        ] {
            let reply = server.post(&format!("/api/v3/engine/{name}"), returned);
            assert_eq!(reply.status, status, "{name}: {returned}: {}", reply.body);
            assert!(reply.body.contains(body), "{name}: {returned}: {}", reply.body);
        }
    }
}

#[test]
fn refused_schedules_name_their_field() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("p.py", "def process_scheduled_call(api, time, args=None):\n    pass\n");
    let server = start.run();
    server.create_database("main");
    for (spec, words) in [
        ("cron:60 * * * *", "minute: 60 is not 0 to 59"),
        ("cron:0 24 * * *", "hour: 24 is not 0 to 23"),
        ("cron:0 0 * FOO *", "month: 'FOO' is not understood"),
        ("cron:*/0 * * * *", "minute: '*/0': the step is 0"),
        ("cron:0 0 0 * * 0", "weekday: 0 is not 1 to 7 (1 is Sunday)"),
        ("cron:0 0 30 2 *", "names no time from now on"),
        ("cron:* * *", "expected five fields (minute hour day month weekday)"),
        (
            "every:5x",
            "couldn't parse to duration; expected numbers with units, such as 500ms, 10s or 1h 30m (unknown time unit",
        ),
        ("every:0s", "the shortest is every:1ms"),
        ("every:400d", "the longest is every:1y"),
    ] {
        let body = json!({"db": "main", "trigger_name": "t", "plugin_filename": "p.py", "trigger_specification": spec, "trigger_settings": {}, "disabled": false});
        let reply = server.post_json(TRIGGER, &body);
        assert_eq!(reply.status, 400, "{spec}: {}", reply.body);
        assert!(reply.body.contains(words) && reply.body.contains("trigger_specification"), "{spec}: {}", reply.body);
        let (done, _, errors) =
            server.command(&["create", "trigger", "-d", "main", "--path", "p.py", "--trigger-spec", spec, "t"]);
        assert!(!done && errors.contains(words), "{spec}: {errors}");
    }
}

#[test]
fn a_chain_of_plugins_that_is_cut_is_named() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin(
        "p.py",
        "def process_writes(api, batches, args=None):\n    api.write(LineBuilder(args['to']).int64_field('n', 1))\n",
    );
    let server = start.run();
    server.create_database("main");
    for (name, from, to) in [("ping", "a", "b"), ("pong", "b", "a"), ("alone", "c", "c")] {
        server.create_trigger_with("main", name, "p.py", &format!("table:{from}"), json!({}), json!({"to": to}));
    }
    for _ in 0..3 {
        assert_eq!(server.write("main", "a n=1i\nc n=1i").status, 204);
    }
    let sql =
        "SELECT trigger_name, log_text FROM system.processing_engine_logs WHERE log_text LIKE '%chain of more than 8%'";
    let rows = server.sql_until("main", sql, |rows| {
        // Writes that wait together are cut together.
        rows.iter().any(|row| row["trigger_name"] == json!("alone")) && rows.len() >= 2
    });
    for row in rows {
        let text = row["log_text"].as_str().unwrap();
        let named =
            ["(triggers: ping -> pong -> ping)", "(triggers: pong -> ping -> pong)", "(triggers: alone -> alone)"];
        assert!(named.iter().any(|names| text.contains(names)), "{text}");
    }
}

/// The window that a plugin makes of `call_time` is the right one, in whichever zone its trigger is.
#[test]
fn the_time_of_a_call_is_an_instant_if_its_trigger_has_a_time_zone() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("p.py", "import datetime\ndef process_scheduled_call(api, call_time, args=None):\n    since = call_time - datetime.timedelta(seconds=1)\n    rows = api.query('SELECT arrow_cast($a, \\'Int64\\') AS a, arrow_cast($b, \\'Int64\\') AS b', {'a': since, 'b': call_time})\n    second = 10 ** 9\n    exact = api.event.scheduled_time_ns // second * second\n    utc = int(call_time.astimezone(datetime.UTC).timestamp())\n    api.write(LineBuilder('seen').tag('by', args['by']).int64_field('a', exact - rows[0]['a']).int64_field('b', exact - rows[0]['b']).int64_field('utc', exact // second - utc).bool_field('aware', call_time.tzinfo is not None))\n");
    let server = start.run();
    server.create_database("main");
    let zones = ["America/New_York", "Asia/Kolkata", "UTC", ""];
    let mut expected = 0;
    for zone in zones {
        for (kind, spec) in [("every", "every:1s"), ("cron", "cron:* * * * * *")] {
            for (lane, isolation) in [("deferred", "auto"), ("process", "process")] {
                let by = format!("{kind} {lane} {zone}");
                let mut settings = json!({"execution": "deferred", "isolation": isolation});
                if !zone.is_empty() {
                    settings["time_zone"] = json!(zone);
                }
                server.create_trigger_with(
                    "main",
                    &by.replace([' ', '/'], "_"),
                    "p.py",
                    spec,
                    settings,
                    json!({"by": by}),
                );
                expected += 1;
            }
        }
    }
    let rows =
        server.sql_until("main", "SELECT DISTINCT by, a, b, utc, aware FROM seen", |rows| rows.len() >= expected);
    assert_eq!(rows.len(), expected, "{rows:?}");
    for row in rows {
        let zoned = !row["by"].as_str().unwrap().ends_with(' ');
        assert_eq!((&row["a"], &row["b"], &row["utc"]), (&json!(1_000_000_000), &json!(0), &json!(0)), "{row}");
        assert_eq!(row["aware"], json!(zoned), "{row}");
    }
    let test = json!({"filename": "p.py", "database": "main", "schedule": "0 0 * * * *", "time_zone": "Asia/Tokyo", "input_arguments": {"by": "test"}});
    let reply = server.post_json("/api/v3/plugin_test/schedule", &test);
    assert!(reply.body.contains("aware=t") && reply.body.contains("b=0i"), "{}", reply.body);
    let wrong = json!({"filename": "p.py", "database": "main", "time_zone": "Mars/Olympus"});
    let reply = server.post_json("/api/v3/plugin_test/schedule", &wrong);
    assert!(reply.status == 400 && reply.body.contains("time_zone: 'Mars/Olympus' is no time zone"), "{}", reply.body);
}
