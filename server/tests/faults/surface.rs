//! The surface over HTTP and of the command line: methods, headers, names, settings that do not exist, stops.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{Server, Start};

const DATABASE: &str = "/api/v3/configure/database";
const TABLE: &str = "/api/v3/configure/table";
const TRIGGER: &str = "/api/v3/configure/processing_engine_trigger";

fn error_of(body: &str) -> String {
    let answer: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{body}: {error}"));
    answer["error"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
}

fn start() -> (tempfile::TempDir, Start) {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    (root, start)
}

/// Sends bytes as they are and gives what comes back until the server closes the connection, or says nothing for `patience`.
fn raw(server: &Server, bytes: &[u8], patience: Duration) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_table_is_made_of_what_a_line_could_make_it_of_and_of_nothing_else() {
    let (_root, start) = start();
    let server = start.run();
    let fields = |list: &[(&str, &str)]| -> Value {
        list.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect()
    };
    let many: Vec<(String, &str)> = (0..4110).map(|n| (format!("f{n}"), "float64")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    let long = "n".repeat(70_000);
    let refused = [
        (json!({"table": "t", "tags": ["time"], "fields": []}), 400, "tags: 'time' is a reserved column"),
        (
            json!({"table": "t", "tags": [], "fields": fields(&[("time", "int64")])}),
            400,
            "fields: 'time' is a reserved column",
        ),
        (
            json!({"table": "t", "tags": ["a"], "fields": fields(&[("a", "int64")])}),
            400,
            "fields: 'a' is a tag already",
        ),
        (json!({"table": "t", "tags": ["a", "a"], "fields": []}), 400, "tags: 'a' is there twice"),
        (
            json!({"table": "t", "tags": [], "fields": fields(&[("f", "int64"), ("f", "int64")])}),
            400,
            "fields: 'f' is there twice",
        ),
        (json!({"table": "t", "tags": [""], "fields": []}), 400, "tags: a name must not be empty"),
        (
            json!({"table": "t", "tags": [], "fields": fields(&[("", "int64")])}),
            400,
            "fields: a name must not be empty",
        ),
        (json!({"table": "t", "tags": ["a\nb"], "fields": []}), 400, "tags: 'a?b' has the control character U+000A"),
        (json!({"table": "", "tags": [], "fields": []}), 400, "table: a name must not be empty"),
        (json!({"table": "#x", "tags": [], "fields": []}), 400, "table: '#x' begins with '#'"),
        (json!({"table": "a\u{0}b", "tags": [], "fields": []}), 400, "table: 'a?b' has the control character U+0000"),
        (json!({"table": long, "tags": [], "fields": []}), 400, "has 70000 bytes, the limit is 65535"),
        (
            json!({"table": "t", "tags": [], "fields": fields(&many)}),
            422,
            "limit of 4096 columns: table 't' would have 4110 columns",
        ),
        (
            json!({"table": "t", "tags": [], "fields": fields(&[("f", "int32")])}),
            400,
            "fields: 'f': unknown type 'int32'",
        ),
        (json!({"table": "t", "tags": [], "fields": [{"name": "f"}]}), 400, "fields: 'f': no type, expected utf8"),
        (json!({"table": "t", "tags": [1], "fields": []}), 400, "tags: expected a list of strings, got 1"),
        (json!({"table": "t", "tags": "a", "fields": []}), 400, "tags: expected a list"),
    ];
    for (mut body, status, text) in refused {
        body["db"] = json!("made");
        let reply = server.post_json(TABLE, &body);
        assert_eq!((reply.status, reply.content_type.as_str()), (status, "application/json"), "{text}: {}", reply.body);
        assert!(error_of(&reply.body).contains(text), "{text}: {}", reply.body);
    }
    for (db, text) in
        [("_internal", "cannot modify internal db"), ("", "db name cannot be empty"), ("a b", "invalid character")]
    {
        let reply = server.post_json(TABLE, &json!({"db": db, "table": "t", "tags": [], "fields": []}));
        assert!(reply.status == 400 && error_of(&reply.body).contains(text), "{}", reply.body);
    }
    let list = server.get(&format!("{DATABASE}?format=csv")).body;
    assert_eq!(list, "iox::database\n_internal\n", "nothing was made");

    let odd = json!({"db": "made", "table": " a,b=c \u{e9}", "tags": ["t 1", "t,2"], "fields": fields(&[("f=1", "float64")])});
    assert_eq!(server.post_json(TABLE, &odd).status, 200);
    let again = server.post_json(TABLE, &odd);
    assert_eq!(again.status, 409);
    assert!(error_of(&again.body).contains("table ' a,b=c \u{e9}' of database 'made'"), "{}", again.body);
    let reply = server.write("made", "\\ a\\,b=c\\ \u{e9},t\\ 1=x f\\=1=1.5 1");
    assert_eq!(reply.status, 204, "{}", reply.body);
    assert_eq!(
        server.sql("made", "SELECT * FROM \" a,b=c \u{e9}\"")[0],
        json!({"f=1": 1.5, "t 1": "x", "time": "1970-01-01T00:00:01"})
    );
}

#[test]
fn the_name_in_a_triggers_specification_is_the_tables_name_as_it_stands() {
    let (_root, start) = start();
    start.plugin(
        "names.py",
        "def process_writes(api, batches, args=None):\n    for batch in batches:\n        api.info('said', args['of'], repr(batch['table_name']))\n",
    );
    let mut server = start.run();
    server.create_database("main");
    let tables = [" lead", "last ", "table:x", "table:table:y", "request:p", "\u{a0}nb\u{2003}", "plain"];
    for (at, table) in tables.iter().enumerate() {
        server.create_trigger(
            "main",
            &format!("t{at}"),
            "names.py",
            &format!("table:{table}"),
            "deferred",
            json!({"of": table}),
        );
    }
    let write_all = |server: &Server, at: u32| {
        for table in tables {
            let name = table.replace(' ', "\\ ");
            assert_eq!(server.write("main", &format!("{name} v=1 {at}")).status, 204);
        }
        // Names that others wait for.
        for name in ["lead", "last", "x", "y", "p", "nb"] {
            assert_eq!(server.write("main", &format!("{name} v=1 {at}")).status, 204);
        }
    };
    let expected = |times: usize| {
        let mut all: Vec<String> = tables
            .iter()
            .map(|table| format!("said {table} '{}'", table.replace('\u{a0}', "\\xa0").replace('\u{2003}', "\\u2003")))
            .collect();
        all = (0..times).flat_map(|_| all.clone()).collect();
        all.sort();
        all
    };
    let sql = "SELECT log_text FROM system.processing_engine_logs WHERE log_text LIKE 'said %' ORDER BY log_text";
    let said = |server: &Server, count: usize| -> Vec<String> {
        let rows = server.sql_until("main", sql, |rows| rows.len() >= count);
        rows.iter().map(|row| row["log_text"].as_str().unwrap().to_owned()).collect()
    };
    write_all(&server, 1);
    assert_eq!(said(&server, tables.len()), expected(1));
    // Over a restart, and by a change.
    assert!(server.terminate(Duration::from_secs(20)), "{}", server.log_text());
    let server = start.run();
    write_all(&server, 2);
    assert_eq!(said(&server, 2 * tables.len()), expected(2));
    let change = json!({"db": "main", "trigger_name": "t6", "trigger_specification": "table:plain "});
    assert_eq!(server.put_json(TRIGGER, &change).status, 200);
    let listed: Vec<Value> = serde_json::from_str(&server.get(&format!("{TRIGGER}?db=main")).body).unwrap();
    assert_eq!(listed[6]["trigger_specification"], "table:plain ");
    assert_eq!(listed[0]["trigger_specification"], "table: lead");

    let spec_of = |spec: &str| {
        let body = json!({"db": "main", "plugin_filename": "names.py", "trigger_name": "s", "trigger_specification": spec, "disabled": true});
        let reply = server.post_json(TRIGGER, &body);
        let shown = match reply.status {
            200 => {
                let list: Vec<Value> = serde_json::from_str(&server.get(&format!("{TRIGGER}?db=main")).body).unwrap();
                let found = list.iter().find(|trigger| trigger["trigger_name"] == "s").unwrap();
                found["trigger_specification"].as_str().unwrap().to_owned()
            }
            _ => error_of(&reply.body),
        };
        server.delete(&format!("{TRIGGER}?db=main&trigger_name=s"));
        (reply.status, shown)
    };
    for (spec, status, shown) in [
        ("table:", 400, "trigger_specification: failed to parse trigger from table:: table name is empty"),
        ("table:  ", 400, "trigger_specification: failed to parse trigger from table:  : table name is empty"),
        (
            "table:a\nb",
            400,
            "trigger_specification: failed to parse trigger from table:a\nb: the table is never written to",
        ),
        ("table:x\r\n", 400, "trigger_specification: failed to parse trigger from table:x\r\n: the table is never"),
        (
            "table:#x",
            400,
            "trigger_specification: failed to parse trigger from table:#x: the table is never written to",
        ),
        (
            "table:\tx",
            400,
            "trigger_specification: failed to parse trigger from table:\tx: the table is never written to",
        ),
        ("Table:x", 400, "trigger_specification: failed to parse trigger from Table:x: expect one of"),
        (" all_tables ", 200, "all_tables"),
        ("all_tables:x", 400, "trigger_specification: failed to parse trigger from all_tables:x: expect one of"),
        ("every: 1s ", 200, "every:1s"),
        ("every:every:1s", 400, "trigger_specification: failed to parse trigger from every:every:1s: couldn't parse"),
        ("cron: 0 0 * * * ", 200, "cron:0 0 * * *"),
        ("request: p ", 200, "request:p"),
        ("request:request:p", 200, "request:request:p"),
        ("  table:x", 200, "table:x"),
    ] {
        let (got, text) = spec_of(spec);
        assert!(got == status && text.starts_with(shown), "{spec:?}: {got} {text}");
    }
    let doubtful = ["create", "trigger", "-d", "main", "--path", "names.py", "--trigger-spec", "table: z", "blank"];
    let (ok, _, err) = server.command(&doubtful);
    assert!(
        ok && err.contains("Warning: trigger_specification: 'table: z' is for the table with the name \" z\""),
        "{err}"
    );
}

#[test]
fn arguments_reach_the_plugin_as_they_were_given() {
    let (_root, start) = start();
    start.plugin(
        "args.py",
        "def process_writes(api, batches, args=None):\n    api.info('said', sorted(args.items()))\n\n\
         def process_request(api, query, headers, body, args=None):\n    return {'args': args}\n",
    );
    let server = start.run();
    server.create_database("main");
    let sql = "SELECT a, b FROM t WHERE x = 'y,z'\nLIMIT 1";
    let sql_flag = format!("sql={sql}");
    let cases: [(&[&str], Value); 8] = [
        (&["--trigger-arguments", "a=1,b=2"], json!({"a": "1", "b": "2"})),
        (&["--trigger-arguments", "a=1", "--trigger-arguments", "b=2"], json!({"a": "1", "b": "2"})),
        (&["--trigger-argument", "b=y,z"], json!({"b": "y,z"})),
        (&["--trigger-argument", "k=a=b,c=d", "--trigger-arguments", "n=1"], json!({"k": "a=b,c=d", "n": "1"})),
        (&["--trigger-argument", &sql_flag, "--trigger-argument", "empty="], json!({"sql": sql, "empty": ""})),
        (
            &["--trigger-arguments", r#"{"a": "x,y=z\n", "b": "{\"c\": [1, 2]}"}"#],
            json!({"a": "x,y=z\n", "b": "{\"c\": [1, 2]}"}),
        ),
        (&["--trigger-argument", "path=C:\\x\\"], json!({"path": "C:\\x\\"})),
        (&["--trigger-argument", "q=say \"it's\" \u{e9}"], json!({"q": "say \"it's\" \u{e9}"})),
    ];
    for (at, (flags, expected)) in cases.iter().enumerate() {
        let (path, name) = (format!("request:p{at}"), format!("t{at}"));
        let create = ["create", "trigger", "-d", "main", "--path", "args.py", "--trigger-spec", &path];
        let (ok, _, err) = server.command(&[&create[..], flags, &[name.as_str()]].concat());
        assert!(ok, "{flags:?}: {err}");
        assert_eq!(
            err.contains("was split at its commas; all of them are {\"a\":\"1\",\"b\":\"2\"}"),
            at == 0,
            "{err}"
        );
        let answer: Value = serde_json::from_str(&server.get(&format!("/api/v3/engine/p{at}")).body).unwrap();
        assert_eq!(answer["args"], *expected, "{flags:?}");
        // And by a change.
        let (ok, _, err) =
            server.command(&["update", "trigger", "-d", "main", "--trigger-arguments", "other=1", &name]);
        assert!(ok, "{err}");
        let update = [&["update", "trigger", "-d", "main"][..], flags, &[name.as_str()]].concat();
        assert!(server.command(&update).0);
        let answer: Value = serde_json::from_str(&server.get(&format!("/api/v3/engine/p{at}")).body).unwrap();
        assert_eq!(answer["args"], *expected, "update {flags:?}");
        // And in a test.
        let flags: Vec<String> = flags.iter().map(|flag| flag.replace("--trigger-", "--input-")).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let test = [&["test", "request_plugin", "-d", "main"][..], &flags, &["args.py"]].concat();
        let (ok, out, err) = server.command(&test);
        assert!(ok, "{err}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        let body = answer.to_string();
        let said: Vec<&str> = expected.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(said.iter().all(|key| body.contains(key)), "{body}");
    }
    for (flags, text) in [
        (&["--trigger-arguments", "b=y,z"][..], "'z' is not of the form key=value; a value with a comma in it"),
        (&["--trigger-arguments", "b=y\\,z"], "a backslash does not keep a comma together"),
        (&["--trigger-arguments", "a=1,a=2"], "'a' is given twice"),
        (&["--trigger-arguments", "{\"a\": 1}"], "'a' must be a text"),
        (&["--trigger-argument", "b"], "'b' is not of the form key=value"),
        (&["--limits", "memory=1gb,memory=2gb"], "--limits: 'memory' is given twice"),
        (&["--limits", "memry=1gb"], "'memry' is no limit; there are run_time, memory"),
    ] {
        let create = ["create", "trigger", "-d", "main", "--path", "args.py", "--trigger-spec", "table:x"];
        let (ok, _, err) = server.command(&[&create[..], flags, &["refused"]].concat());
        assert!(!ok && err.contains(text), "{flags:?}: {err}");
    }
    let (ok, _, err) = server.command(&["delete", "trigger", "-d", "main", "t0"]);
    assert!(!ok && err.contains("[409 Conflict]: Cannot delete running plugin t0."), "the text alone, no JSON: {err}");
}

#[test]
fn every_path_answers_head_as_get_and_errors_in_one_shape() {
    let (_root, start) = start();
    start.plugin("r.py", "def process_request(api, query, headers, body, args=None):\n    return 'hello'\n");
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "r", "r.py", "request:r", "auto", Value::Null);
    server.create_trigger("main", "p", "r.py", "request:PUT,DELETE p", "auto", Value::Null);
    let wait = Duration::from_secs(10);
    let call = |method: &str, path: &str| {
        raw(&server, format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(), wait)
    };
    let sql = "/api/v3/query_sql?db=main&format=csv&q=SELECT+1";
    let list = format!("{DATABASE}?format=json");
    for path in [
        "/health",
        "/health/",
        "//health",
        "/api/v1/health",
        "/ping",
        "/metrics",
        sql,
        &list,
        TRIGGER,
        "/api/v3/engine/r",
    ] {
        let (get, head) = (call("GET", path), call("HEAD", path));
        let (get_head, _) = get.split_once("\r\n\r\n").unwrap();
        let (head, body) = head.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "", "{path}");
        let line = |head: &str| head.lines().next().unwrap().to_owned();
        assert_eq!(
            (line(head), line(get_head)),
            ("HTTP/1.1 200 OK".to_owned(), "HTTP/1.1 200 OK".to_owned()),
            "{path}"
        );
        let kind = |head: &str| head.lines().find(|line| line.starts_with("content-type")).map(str::to_owned);
        assert_eq!(kind(head), kind(get_head), "{path}");
    }
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(600_000));
    let close = "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    for (request, status, allow, text) in [
        (format!("GET /nope {close}\r\n"), 404, "", "Not found: there is no /nope"),
        (format!("GET /query?q=SHOW+DATABASES {close}\r\n"), 404, "", "InfluxQL is not in this version"),
        (format!("POST /query {close}\r\n"), 404, "", "InfluxQL is not in this version"),
        (format!("HEAD /nope {close}\r\n"), 404, "", ""),
        (format!("PUT /api/v3/write_lp?db=a {close}\r\n"), 405, "POST, OPTIONS", "takes POST, OPTIONS, not PUT"),
        (format!("HEAD /api/v3/write_lp?db=a {close}\r\n"), 405, "POST, OPTIONS", ""),
        (format!("DELETE /health {close}\r\n"), 405, "GET, HEAD, OPTIONS", "not DELETE"),
        (format!("FOO /api/v3/query_sql {close}\r\n"), 405, "GET, HEAD, POST, OPTIONS", "not FOO"),
        (format!("PATCH {TRIGGER} {close}\r\n"), 405, "GET, HEAD, POST, PUT, DELETE, OPTIONS", "not PATCH"),
        (
            format!("DELETE /api/v3/engine/r {close}\r\n"),
            405,
            "GET, HEAD, POST, OPTIONS",
            "answers GET, POST, not DELETE",
        ),
        (format!("HEAD /api/v3/engine/p {close}\r\n"), 405, "PUT, DELETE, OPTIONS", ""),
        (format!("GET /api/v3/engine/nope {close}\r\n"), 404, "", "not found: no enabled trigger answers"),
        (format!("POST /api/v3/write_lp {close}\r\n"), 400, "", "missing query parameter 'db'"),
        (format!("GET {TRIGGER}?db=%ff {close}\r\n"), 400, "", "is not UTF-8"),
        (format!("GET {TRIGGER}?db=%zz {close}\r\n"), 400, "", "a `%` without two hexadecimal digits"),
        (format!("GET /ping {close}authorization: x\r\n\r\n"), 400, "", "Authorization header was malformed"),
        (format!("POST {DATABASE} {close}content-length: 2\r\n\r\n{{}}"), 415, "", "expected: application/json"),
        ("what is this\r\n\r\n".to_owned(), 400, "", "what was sent is no request of HTTP/1.1"),
        ("GET /health HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400, "", "what was sent is no request of HTTP/1.1"),
        (huge, 431, "", "the request's head has more than 262144 bytes"),
    ] {
        let answer = raw(&server, request.as_bytes(), wait);
        let shown = request.lines().next().unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{shown}: {answer}"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {head}");
        assert!(head.contains("content-type: application/json"), "{shown}: {head}");
        let allowed = head.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap_or_default();
        assert_eq!(allowed, allow, "{shown}");
        if !text.is_empty() {
            assert!(error_of(body).contains(text), "{shown}: {body}");
        }
    }
    let answer = call("GET", "/api/v2/write");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["code"], "method not allowed", "{body}");
}

#[test]
fn settings_that_do_not_exist_change_nothing() {
    let (_root, start) = start();
    start.plugin("p.py", "def process_writes(api, batches, args=None):\n    pass\n");
    let server = start.run();
    server.create_database("main");
    let body =
        json!({"db": "main", "plugin_filename": "p.py", "trigger_name": "t", "trigger_specification": "table:x"});
    let with = |name: &str, value: Value| {
        let mut body = body.clone();
        body[name] = value;
        body
    };
    for (body, text) in [
        (
            with("trigger_settings", json!({"errorBehavior": "disable"})),
            "unknown field `errorBehavior` in `trigger_settings`; did you mean `error_behavior`?",
        ),
        (
            with("trigger_setings", json!({"error_behavior": "disable"})),
            "unknown field `trigger_setings`; did you mean `trigger_settings`?",
        ),
        (with("trigger_settings", json!({"limits": {"memori": "1gb"}})), "limits: 'memori' is no limit"),
    ] {
        let reply = server.post_json(TRIGGER, &body);
        assert!(reply.status == 400 && error_of(&reply.body).contains(text), "{}", reply.body);
    }
    assert_eq!(server.get(&format!("{TRIGGER}?db=main")).body, "[]", "nothing was made");
    assert_eq!(server.post_json(TRIGGER, &body).status, 200);
    let change = json!({"db": "main", "trigger_name": "t", "trigger_settings": {"errorbehavior": "disable"}});
    let reply = server.put_json(TRIGGER, &change);
    assert!(reply.status == 400 && error_of(&reply.body).contains("did you mean `error_behavior`?"), "{}", reply.body);
    let deleted = server.delete(&format!("{DATABASE}?db=main&data_only=true"));
    assert!(
        deleted.status == 400 && error_of(&deleted.body).contains("unknown parameter `data_only`"),
        "{}",
        deleted.body
    );
    assert_eq!(server.get(&format!("{TRIGGER}?db=main")).status, 200, "the database is there");
}

/// A connection that holds half of something, kept open.
fn hold(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

#[test]
fn half_a_request_does_not_hold_up_the_stop() {
    let (_root, start) = start();
    start.plugin(
        "stream.py",
        "import time\n\ndef process_request(api, query, headers, body, args=None):\n    def pieces():\n        for n in range(100000):\n            \
         yield f'{n}\\n'\n            time.sleep(0.05)\n    return pieces()\n",
    );
    let mut server = start.run();
    server.create_database("main");
    server.create_trigger("main", "s", "stream.py", "request:s", "auto", Value::Null);
    let lines: String =
        (0..60_000).map(|n| format!("big,host=h{} v={n},w=\"{}\" {}\n", n % 7, "x".repeat(100), n + 1)).collect();
    assert_eq!(server.post("/api/v3/write_lp?db=main&precision=ns", &lines).status, 204);
    let large = "GET /api/v3/query_sql?db=main&format=json&q=SELECT+a.*+FROM+big+a HTTP/1.1\r\nhost: x\r\n\r\n";
    let held = [
        hold(&server, b""),
        hold(&server, b"POST /api/v3/write_lp?db=main HTTP/1.1\r\nHo"),
        hold(&server, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"),
        hold(&server, b"POST /api/v3/write_lp?db=main HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nm v=1"),
        hold(
            &server,
            b"POST /api/v3/write_lp?db=main HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nm v=1\r\n",
        ),
        hold(&server, b"POST /api/v3/engine/s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc"),
        hold(&server, large.as_bytes()),
        hold(&server, b"GET /api/v3/engine/s HTTP/1.1\r\nhost: x\r\n\r\n"),
    ];
    // The answer has begun when its first bytes are here.
    for at in [2, 6, 7] {
        (&held[at]).read_exact(&mut [0; 15]).unwrap();
    }
    let begun = Instant::now();
    assert!(server.terminate(Duration::from_secs(20)), "{}", server.log_text());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "the stop took {took:?}\n{}", server.log_text());
    assert!(server.log_text().contains("clean=true"), "{}", server.log_text());
    drop(held);
    // Without the two whose answers had begun, and with a client that goes in the middle of a write.
    let mut server = start.run();
    let held: Vec<TcpStream> =
        ["", "GET /health HTTP/1.1\r\nHo", "POST /write?db=main HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nm"]
            .iter()
            .map(|bytes| hold(&server, bytes.as_bytes()))
            .collect();
    for _ in 0..20 {
        let body = "m v=1 1\n".repeat(20_000);
        let head = format!("POST /write?db=main HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        let stream = hold(&server, [head.as_bytes(), body.as_bytes()].concat().as_slice());
        drop(stream.shutdown(Shutdown::Both));
    }
    let begun = Instant::now();
    assert!(server.terminate(Duration::from_secs(20)), "{}", server.log_text());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "the stop took {took:?}\n{}", server.log_text());
    drop(held);
}

#[test]
fn half_a_request_is_answered_408_when_its_time_is_up() {
    let (_root, mut start) = start();
    start.extra.extend(["--http-request-timeout".into(), "500ms".into()]);
    let server = start.run();
    let wait = Duration::from_secs(20);
    for (bytes, text) in [
        (&b"GET /health HTTP/1.1\r\nHo"[..], "the request's head did not come within 500ms"),
        (
            b"POST /api/v3/write_lp?db=d HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nm v=1",
            "the request's body did not come in time",
        ),
        (
            b"POST /api/v3/write_lp?db=d HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nm v\r\n",
            "the request's body did not come in time",
        ),
    ] {
        let answer = raw(&server, bytes, wait);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}: {answer}"));
        assert!(head.starts_with("HTTP/1.1 408 ") && head.contains("application/json"), "{head}");
        assert!(error_of(body).contains(text), "{body}");
    }
    // A byte now and then does not help.
    let mut slow = hold(&server, b"GET /health HTTP/1.1\r\n");
    slow.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let begun = Instant::now();
    let mut answer = Vec::new();
    while begun.elapsed() < wait {
        let _ = slow.write_all(b"x");
        let mut piece = [0; 1024];
        match slow.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&piece[..read]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    assert!(begun.elapsed() < wait && answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    // Whoever is done is idle, not late.
    let mut kept = hold(&server, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut piece = [0; 1024];
    assert!(kept.read(&mut piece).unwrap() > 0);
    kept.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert!(kept.read(&mut piece).is_err(), "the connection is kept for the next request");
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(kept.read(&mut piece).unwrap() > 0);
}

#[test]
fn logs_in_files_have_no_colours_and_misspelt_variables_are_said() {
    let (_root, start) = start();
    for format in ["full", "json"] {
        let mut start = start.clone();
        start.data = start.data.with_file_name(format!("data-{format}"));
        start.extra.extend(["--log-format".into(), format.into(), "--log-filter".into(), "debug".into()]);
        let server = start.run();
        server.get("/health");
        assert!(!server.log_text().contains('\u{1b}'), "{format}");
        assert!(server.log_text().len() > 500);
    }
    let mut command = start.command(crate::common::free_port());
    let child = command.env("SALTUS_HTTP_BIND", "x").env("RUST_BACKTRACE", "0");
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("log");
    let mut child = child.stdout(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let text = "variable SALTUS_HTTP_BIND is no setting and is ignored; did you mean SALTUS_HTTP_BIND_ADDR?";
    while !std::fs::read_to_string(&log).unwrap().contains(text) {
        assert!(Instant::now() < end, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
