//! Line protocol over all ways in: what is refused says why and where, and what is sound is written.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Reply, Server, Start, agent};

fn server(root: &tempfile::TempDir) -> Server {
    Start::new(root.path()).run()
}

/// A POST of bytes.
fn post(server: &Server, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut request = agent().post(format!("{}{path}", server.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send(body).unwrap();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let content_type = header("content-type");
    Reply { status: response.status().as_u16(), body: response.body_mut().read_to_string().unwrap(), content_type }
}

/// The three endpoints, for a database and nanoseconds.
fn endpoints(db: &str) -> [String; 3] {
    [
        format!("/api/v3/write_lp?db={db}&precision=ns"),
        format!("/api/v2/write?org=o&bucket={db}&precision=ns"),
        format!("/write?db={db}&precision=ns&u=me&p=secret"),
    ]
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// The second of three lines, and what must be said of it.
const REFUSED: &[(&str, &str)] = &[
    ("m,a=1,b,c=2 v=1 1", "tag `b` has no value (column 7)"),
    ("m,a=1,b v=1 1", "tag `b` has no value (column 7)"),
    ("m,a=1,,b=2 v=1 1", "a comma without a tag (column 7)"),
    ("m,,a=1 v=1 1", "a comma without a tag (column 3)"),
    ("m,a=1, v=1 1", "a comma without a tag (column 7)"),
    ("m,a= v=1 1", "tag `a` has no value (column 3)"),
    ("m,=1 v=1 1", "a tag without a name (column 3)"),
    ("m v=1,w,x=2 1", "field `w` has no value (column 7)"),
    ("m v=1i,w,x=2 1", "field `w` has no value (column 8)"),
    ("m v=t,w,x=2 1", "field `w` has no value (column 7)"),
    ("m v=\"a,b\",w,x=2 1", "field `w` has no value (column 11)"),
    ("m v=2u,w 1", "field `w` has no value (column 8)"),
    ("m ,v=1 1", "a comma without a field in front of it (column 3)"),
    ("m v=1,,w=2 1", "a comma without a field in front of it (column 7)"),
    ("m v=1, 1", "a comma without a field behind it (column 6)"),
    ("m v=nan 1", "`nan` is not a number that can be stored"),
    ("m v=NaN 1", "`NaN` is not a number that can be stored"),
    ("m v=-inf 1", "`-inf` is not a number that can be stored"),
    ("m v=Infinity 1", "`Infinity` is not a number that can be stored"),
    ("m v=+1 1", "`+1` begins with a plus sign"),
    ("m v= 1", "field `v` has no value (column 3)"),
    ("m v 1", "field `v` has no value (column 3)"),
    ("m v=0x1F 1", "`0x1F` is hexadecimal"),
    ("m v=1e999 1", "`1e999`: floats are"),
    ("m v=9223372036854775808i 1", "integers are -9223372036854775808 to 9223372036854775807 (column 5)"),
    ("m v=-1u 1", "`-1u` is negative"),
    ("m v=1.5i 1", "`1.5i` is no integer"),
    ("m v=yes 1", "`yes` is no value"),
    ("m v=tru 1", "`tru` is no boolean"),
    ("m v=1 soon", "`soon` is no timestamp"),
    ("m v=1 99999999999999999999", "timestamps are -9223372036854775808 to"),
    ("m", "the line has no fields"),
    ("m\\", "backslash that escapes nothing"),
    ("m,k=1,k=2 v=1 1", "`k` was repeated"),
];

#[test]
fn what_is_refused_says_why_and_where_on_every_endpoint() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    for (number, (bad, words)) in REFUSED.iter().enumerate() {
        let (good, last) = (format!("good{number} v=1 1"), format!("last{number} v=1 1"));
        let body = format!("{good}\n{bad}\n{last}");
        for path in endpoints("strict") {
            let reply = server.post(&path.replace("precision", "accept_partial=false&precision"), &body);
            assert_eq!(
                (reply.status, reply.content_type.as_str()),
                (400, "application/json"),
                "{path} {bad}: {}",
                reply.body
            );
            let said: Value = serde_json::from_str(&reply.body).unwrap();
            let (line, text) = match said["message"].as_str() {
                Some(message) => (message.contains(&format!("(line 2): `{bad}`")), message),
                None => (said["data"]["line_number"] == 2, said["data"]["error_message"].as_str().unwrap()),
            };
            assert!(line && text.contains(words), "{path} {bad}: {}", reply.body);
        }
        let reply = server.post("/api/v3/write_lp?db=partial&precision=ns", &body);
        let said: Value = serde_json::from_str(&reply.body).unwrap();
        assert!(said["data"][0]["error_message"].as_str().unwrap().contains(words), "{bad}: {}", reply.body);
        assert_eq!(said["data"][0]["line_number"], 2);
    }
    let count = |sql: &str| server.sql("partial", sql)[0]["n"].as_i64().unwrap();
    let tables = "SELECT count(*) AS n FROM information_schema.tables WHERE table_schema = 'iox'";
    assert_eq!(count(tables), 2 * REFUSED.len() as i64, "the lines around them, and nothing of them");
}

#[test]
fn names_and_values_are_stored_as_they_were_meant_and_so_after_a_restart() {
    let rows: &[(&str, &str, Value)] = &[
        ("disk,path=C:\\\\ free=1i 1", "SELECT path FROM disk", json!({"path": "C:\\"})),
        ("k1,a\\\\=x v=1 1", "SELECT \"a\\\" FROM k1", json!({"a\\": "x"})),
        ("k2 f\\\\=1 1", "SELECT \"f\\\" FROM k2", json!({"f\\": 1.0})),
        ("k3\\\\ v=1 1", "SELECT v FROM \"k3\\\"", json!({"v": 1.0})),
        ("k4,p=a\\b,q=\\\\\\\\srv\\\\x v=1 1", "SELECT p, q FROM k4", json!({"p": "a\\b", "q": "\\\\srv\\x"})),
        ("k5,a\\,b=c\\,d v\\,w=1 1", "SELECT \"a,b\", \"v,w\" FROM k5", json!({"a,b": "c,d", "v,w": 1.0})),
        ("\u{feff}k6 v=1 1", "SELECT v FROM k6", json!({"v": 1.0})),
        ("k7 v=-0.0 1", "SELECT CAST(v AS VARCHAR) AS v FROM k7", json!({"v": "-0.0"})),
        ("k8 s=\"a\nb\u{feff}\" 1\n\u{feff}k9 v=1 1", "SELECT v FROM k9", json!({"v": 1.0})),
    ];
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let mut server = start.run();
    for path in endpoints("d") {
        for (line, ..) in rows {
            let reply = server.post(&path, line);
            assert_eq!(reply.status, 204, "{path} {line:?}: {}", reply.body);
        }
    }
    let marks = "SELECT table_name FROM information_schema.tables WHERE table_name LIKE '%\u{feff}%'";
    for life in ["in memory", "after a restart"] {
        for (line, sql, row) in rows {
            assert_eq!(server.sql("d", sql), std::slice::from_ref(row), "{line:?} {life}");
        }
        assert!(server.sql("d", marks).is_empty(), "{life}");
        server.kill();
        server = start.run();
    }
}

#[test]
fn a_byte_that_is_no_utf8_refuses_its_line_and_no_other() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    let bad: &[&[u8]] = &[
        b"m,h=caf\xe9 v=2 2",
        b"m\xff v=2 2",
        b"m v\xc0\xaf=2 2",
        b"m s=\"\xed\xa0\x80\" 2",
        b"# caf\xe9",
        b"m,a\xe9=1 v=2 2",
    ];
    for (number, line) in bad.iter().enumerate() {
        let body = [format!("t{number} v=1 1\n").as_bytes(), line, format!("\nt{number} v=3 3\n").as_bytes()].concat();
        for path in &endpoints("strict")[1..] {
            let reply = post(&server, path, &[], &body);
            let named = reply.body.contains("(line 2)") || reply.body.contains("\"line_number\":2");
            assert!(reply.status == 400 && named && reply.body.contains("Invalid UTF-8"), "{path}: {}", reply.body);
        }
        let reply = post(&server, "/api/v3/write_lp?db=d&precision=ns", &[], &body);
        let said: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((reply.status, &said["data"][0]["line_number"]), (400, &json!(2)), "{}", reply.body);
        assert!(reply.body.contains("Invalid UTF-8: byte 0x"), "{}", reply.body);
        let rows = server.sql("d", &format!("SELECT v FROM t{number} ORDER BY time"));
        assert_eq!(rows, [json!({"v": 1.0}), json!({"v": 3.0})], "{number}");
    }
}

#[test]
fn parameters_and_codings_that_are_not_known_are_named() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    for (path, words) in [
        ("/api/v3/write_lp?db=d&precison=s", "unknown parameter `precison`; did you mean `precision`?"),
        ("/api/v2/write?bucket=d&precison=s", "unknown parameter `precison`; did you mean `precision`?"),
        ("/write?db=d&precison=s", "unknown parameter `precison`; did you mean `precision`?"),
        ("/api/v3/write_lp?db=d&nosync=true", "did you mean `no_sync`?"),
        ("/api/v3/write_lp?db=d&precision=m", "`precision`"),
        ("/write?database=d", "unknown parameter `database`"),
        ("/api/v3/write_lp?db=d&accept_partial=yes", "accept_partial=yes"),
    ] {
        let reply = server.post(path, "m v=1 1");
        assert!(reply.status == 400 && reply.body.contains(words), "{path}: {} {}", reply.status, reply.body);
    }
    let packed = gzip(b"m v=1 1");
    for path in endpoints("d") {
        for coding in ["GZIP", "x-gzip", "gzip"] {
            assert_eq!(post(&server, &path, &[("content-encoding", coding)], &packed).status, 204, "{path} {coding}");
        }
        assert_eq!(post(&server, &path, &[("content-encoding", "")], b"m v=1 1").status, 204, "{path}");
        let reply = post(&server, &path, &[("content-encoding", "br")], b"m v=1 1");
        assert!(reply.status == 400 && reply.body.contains("br: send the body as it is"), "{path}: {}", reply.body);
        let reply = post(&server, &path, &[], &packed);
        assert!(reply.status == 400 && reply.body.contains("looks like gzip"), "{path}: {}", reply.body);
    }
    // One rule for retention policies.
    for path in ["/api/v2/write?bucket=c6/autogen", "/write?db=c6&rp=autogen", "/write?db=c6/autogen", "/write?db=c6"] {
        assert_eq!(server.post(path, "m v=1 1").status, 204, "{path}");
    }
    for path in ["/api/v2/write?bucket=c6/Weekly", "/write?db=c6&rp=weekly"] {
        assert_eq!(server.post(path, "m v=1 1").status, 204, "{path}");
    }
    let databases = server.get("/api/v3/configure/database?format=json").body;
    assert!(databases.contains("\"c6\"") && databases.contains("\"c6/weekly\""), "{databases}");
    assert!(!databases.contains("autogen"), "{databases}");
    assert!(server.log_text().contains("a write has made a database"), "{}", server.log_text());
}

#[test]
fn a_limit_names_the_table_the_line_and_the_figure() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    let wide: Vec<_> = (0..4110).map(|at| format!("f{at}=1i")).collect();
    let body = format!("m v=1 1\nm v=2 2\n\nm v=3 3\nwide {} 1\n", wide.join(","));
    for path in endpoints("d") {
        let reply = server.post(&path.replace("precision", "accept_partial=false&precision"), &body);
        let said = &reply.body;
        assert_eq!(reply.status, 422, "{path}: {said}");
        assert!(said.contains("table `wide` would have 4110") && said.contains("4096 columns"), "{path}: {said}");
        assert!(said.contains("(line 4)"), "{path}: {said}");
    }
}

/// Sends all, and only then reads.
fn send_all_then_read(server: &Server, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).expect("the server reads what is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer arrives, and an end behind it");
    answer
}

#[test]
fn a_body_that_is_too_large_is_answered_even_if_it_is_sent_before_the_client_reads() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    start.extra.extend(["--max-http-request-size".into(), "100kb".into()]);
    let server = start.run();
    let line = b"m v=1 1\n".repeat(4 << 20 >> 3);
    for path in [
        "/api/v3/write_lp?db=d",
        "/api/v2/write?bucket=d",
        "/write?db=d",
        "/api/v3/query_sql",
        "/api/v3/configure/database",
        "/api/v3/plugins/files",
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
        let whole = [format!("{head}Content-Length: {}\r\n\r\n", line.len()).as_bytes(), &line].concat();
        let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        for chunk in line.chunks(50_000) {
            chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunked.extend_from_slice(chunk);
            chunked.extend_from_slice(b"\r\n");
        }
        chunked.extend_from_slice(b"0\r\n\r\n");
        for (how, request) in [("length", whole), ("chunked", chunked)] {
            let answer = send_all_then_read(&server, &request);
            assert!(answer.starts_with("HTTP/1.1 413 "), "{path} {how}: {answer}");
            assert!(answer.contains("content-type: application/json"), "{path} {how}: {answer}");
            assert!(answer.contains("max request size (102400 bytes) exceeded"), "{path} {how}: {answer}");
        }
    }
    // Other refusals that need no body arrive as well.
    let head = format!("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", line.len());
    assert!(send_all_then_read(&server, &[head.as_bytes(), &line].concat()).starts_with("HTTP/1.1 404 "));
    assert_eq!(server.write("d", "m v=1 1").status, 204);
}

/// Writes what its arguments say: three lines, of which the second is what is looked at.
const THREE: &str = r#"
class Raw:
    def __init__(self, text):
        self.text = text

    def build(self):
        return self.text

def process_writes(influxdb3_local, table_batches, args=None):
    out = args["out"]
    influxdb3_local.write(LineBuilder(out).int64_field("n", 1).time_ns(1))
    if args["second"] == "nan":
        second = LineBuilder(out).float64_field("f", float("nan")).time_ns(2)
    elif args["second"] == "empty tag":
        second = LineBuilder(out).tag("t", "").int64_field("n", 2).time_ns(2)
    else:
        second = Raw(args["second"].replace("OUT", out))
    influxdb3_local.write_to_db("main", second)
    influxdb3_local.write(LineBuilder(out).int64_field("n", 3).time_ns(3))
"#;

#[test]
fn one_line_takes_no_other_line_of_a_run_with_it() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("three.py", THREE);
    let server = start.run();
    server.create_database("main");
    assert_eq!(server.write("main", "clash n=\"text\" 1").status, 204);
    let seconds = [
        ("nan", "`nan` is not a number that can be stored"),
        ("empty tag", "tag `t` has no value"),
        ("OUT n=99999999999999999999i 2", "Unable to parse integer value"),
        ("OUT s=\"open 2", "the string that begins in column"),
        ("OUT n=2.5 2", "invalid column type for column 'n'"),
        ("# only a comment", "there is no line in what build() gave"),
        ("", "there is no line in what build() gave"),
    ];
    let lanes = [json!({"execution": "inline"}), json!({"execution": "deferred"}), json!({"isolation": "process"})];
    for (lane, settings) in lanes.iter().enumerate() {
        for (number, (second, _)) in seconds.iter().enumerate() {
            let name = format!("t{lane}_{number}");
            let mut settings = settings.clone();
            settings["error_behavior"] =
                json!(["disable", "retry", "disable", "retry", "log", "retry", "disable"][number]);
            settings["run_async"] = json!(false);
            let arguments = json!({"out": format!("out_{name}"), "second": second});
            server.create_trigger_with("main", &name, "three.py", &format!("table:in{lane}"), settings, arguments);
        }
        assert_eq!(server.write("main", &format!("in{lane} v=1 1")).status, 204);
        for (number, (second, words)) in seconds.iter().enumerate() {
            let name = format!("t{lane}_{number}");
            let rows =
                server.sql_until("main", &format!("SELECT n FROM out_{name} ORDER BY time"), |rows| rows.len() == 2);
            assert_eq!(rows, [json!({"n": 1}), json!({"n": 3})], "{name} {second}");
            let sql = format!(
                "SELECT log_text FROM system.processing_engine_logs WHERE trigger_name = '{name}' AND log_level <> 'INFO'"
            );
            let logged = server.sql_until("main", &sql, |rows| !rows.is_empty());
            let text = logged[0]["log_text"].as_str().unwrap();
            assert!(logged.len() == 1 && text.contains(words), "{name} {second}: {logged:?}");
            if !second.starts_with('#') && !second.is_empty() {
                assert!(text.contains("line protocol parse failed: ") && text.contains("`out_t"), "{text}");
            }
        }
    }
    let disabled = server.sql("main", "SELECT trigger_name FROM system.processing_engine_triggers WHERE disabled");
    assert!(disabled.is_empty(), "a line that its own text refuses ends no trigger: {disabled:?}");
    // With `retry`, a table that refuses a line refuses the run: each attempt would write the others once more.
    let arguments = json!({"out": "clash", "second": "OUT n=2.5 2"});
    let settings = json!({"error_behavior": "retry", "run_async": false});
    server.create_trigger_with("main", "again", "three.py", "table:again", settings, arguments);
    assert_eq!(server.write("main", "again v=1 1").status, 204);
    let letters = server.sql_until("main", "SELECT error FROM system.dead_letters", |rows| rows.len() == 1);
    let error = letters[0]["error"].as_str().unwrap();
    assert!(error.contains("invalid column type for column 'n'") && error.contains("`clash n=1i 1`"), "{error}");
    assert_eq!(server.sql("main", "SELECT n FROM clash"), [json!({"n": "text"})]);
}

/// Every text that LineBuilder takes, in every place, is read back as it was.
const ROUND_TRIP: &str = r##"
import random

LETTERS = ["a", "\\", "\\\\", ",", "=", " ", "\"", "#", "'", "é", "漢", "\U0001f600", "\u00a0", "\ufeff", ".", "-", "\u2028"]

def text(choice, without=""):
    made = "".join(c for c in choice.choices(LETTERS, k=choice.randint(1, 6)) if not set(c) & set(without))
    return made or "x"

def process_request(influxdb3_local, query, headers, body, args=None):
    choice = random.Random(7)
    wrong = []
    for number in range(150):
        table = text(choice, " #\ufeff") + f"_{number}" + choice.choice(["", "\\", "\\\\"])
        tags = {text(choice, " ,="): text(choice) for _ in range(choice.randint(0, 2))}
        fields = {key: value for key, value in {text(choice, " ,="): text(choice) + "\n\t\"" for _ in range(2)}.items() if key not in tags}
        fields = fields or {"only": "x"}
        line = LineBuilder(table)
        for key, value in tags.items():
            line.tag(key, value)
        for key, value in fields.items():
            line.string_field(key, value)
        if number % 2:
            influxdb3_local.write_sync(line.time_ns(number), no_sync=True)
        else:
            influxdb3_local.write_sync_to_db("main", line.time_ns(number), no_sync=True)
        quoted = table.replace('"', '""')
        rows = influxdb3_local.query(f'SELECT * FROM "{quoted}"')
        if rows != [{**tags, **fields, "time": number}]:
            wrong.append([line.build(), rows])
    return {"wrong": wrong}
"##;

#[test]
fn what_line_builder_writes_is_read_back_as_it_was_meant() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("round_trip.py", ROUND_TRIP);
    let server = start.run();
    server.create_database("main");
    server.create_trigger("main", "round_trip", "round_trip.py", "request:round_trip", "deferred", json!({}));
    let reply = server.get("/api/v3/engine/round_trip");
    assert_eq!((reply.status, reply.body.replace(' ', "")), (200, "{\"wrong\":[]}".to_owned()));
}

/// Runs the program with `input` on its standard input.
fn command(server: &Server, arguments: &[&str], input: &[u8]) -> (bool, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_saltus"))
        .args(arguments)
        .env("SALTUS_HOST_URL", &server.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _written = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_file_is_written_to_its_end_and_refused_lines_are_named_by_their_place_in_it() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    let mut text = String::from("\u{feff}# head\n\n");
    for number in 1..=3000 {
        text.push_str(&match number {
            700 => "m v=\n".to_owned(),
            1400 => "m s=\"two\nlines\" 1400\n".to_owned(),
            2100 => "m,h=q k\"ey=1 2100\n".to_owned(),
            2800 => "m,a,b=1 v=1 2800\n".to_owned(),
            _ => format!("m v={number} {number}\n"),
        });
    }
    let file = root.path().join("lines.lp");
    std::fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    let write = ["write", "-d", "d", "-p", "ns", "--max-request-size", "5000"];
    for gzip in [&[][..], &["--gzip"]] {
        let (success, out, errors) = command(&server, &[&write, gzip, &["-f", file]].concat(), b"");
        assert!(!success && out.is_empty(), "{out}{errors}");
        assert!(
            errors.contains("line 702: No fields were provided: field `v` has no value (column 3): m v="),
            "{errors}"
        );
        assert!(errors.contains("line 2803: Tag set malformed"), "{errors}");
        assert!(errors.contains("2998 of 3000 lines were written, 2 were refused"), "{errors}");
    }
    assert_eq!(server.sql("d", "SELECT count(*) AS n FROM m"), [json!({"n": 2998})]);
    assert_eq!(server.sql("d", "SELECT s FROM m WHERE s IS NOT NULL"), [json!({"s": "two\nlines"})]);
    // A server whose bound is lower than the command's gets smaller bodies.
    let large = format!("n s=\"{}\" 1\nn v=2 2\n", "x".repeat(1 << 19)).repeat(30);
    let (success, out, errors) =
        command(&server, &["write", "-d", "d", "--max-request-size", "1gb", "-f", "-"], large.as_bytes());
    assert!(success && out == "success\n", "{out}{errors}");
    // Nothing else to be said: all good, and nothing there at all.
    assert!(command(&server, &["write", "-d", "d", "--quiet", "m v=1 1"], b"").0);
    let (success, _, errors) = command(&server, &["write", "-d", "d", "-"], b"# nothing\n");
    assert!(!success && errors.contains("incoming write was empty"), "{errors}");
}

#[test]
fn a_dash_is_standard_input() {
    let root = tempfile::tempdir().unwrap();
    let server = server(&root);
    let lines = "\u{feff}m v=1 1\n";
    for arguments in [&["write", "-d", "d", "-"][..], &["write", "-d", "d", "-f", "-"], &["write", "-d", "d"]] {
        let (success, _, errors) = command(&server, arguments, lines.as_bytes());
        assert!(success, "{arguments:?}: {errors}");
    }
    let sql = "\u{feff}SELECT v FROM m";
    let file = root.path().join("query.sql");
    std::fs::write(&file, sql).unwrap();
    let query = ["query", "-d", "d", "--format", "json"];
    for more in [&["-"][..], &["-f", "-"], &[], &["-f", file.to_str().unwrap()]] {
        let (success, out, errors) = command(&server, &[&query, more].concat(), sql.as_bytes());
        assert!(success && out.trim() == "[{\"v\":1.0}]", "{more:?}: {out}{errors}");
    }
}

#[test]
fn a_plugin_file_may_begin_with_a_byte_order_mark() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let source = "\u{feff}def process_request(influxdb3_local, query, headers, body, args=None):\n    return 'here'\n";
    start.plugin("marked.py", source);
    let folder = start.plugins.join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("__init__.py"), "\u{feff}from .part import process_request\n").unwrap();
    std::fs::write(folder.join("part.py"), source).unwrap();
    let server = start.run();
    server.create_database("main");
    for (name, file) in [("one", "marked.py"), ("two", "folder")] {
        server.create_trigger("main", name, file, &format!("request:{name}"), "deferred", json!({}));
        assert_eq!(server.get(&format!("/api/v3/engine/{name}")).body, "here");
    }
}

/// CRC-32C of these bytes, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// Makes a segment one of a server that had version 1 of the grammar, in which `aXb` was `a,b` (`docs/format.md`).
fn as_of_version_one(segment: &mut [u8]) {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    for at in 0..segment.len() - 3 {
        if &segment[at..at + 3] == b"aXb" {
            segment[at + 1] = b',';
        }
    }
    for at in (4096..segment.len()).step_by(4096) {
        if &segment[at..at + 4] != b"SWFR" {
            continue;
        }
        let end = at + 48 + number(&segment[at + 8..]);
        let mut record = at + 48;
        while record < end {
            if segment[record] == 1 {
                segment[record + 5 + 12] = 1;
            }
            record += 5 + number(&segment[record + 1..]);
        }
        let crc = crc32c(&segment[at + 8..end]);
        segment[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

#[test]
fn lines_of_an_older_log_keep_the_meaning_that_they_were_accepted_with() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let mut server = start.run();
    assert_eq!(server.write("d", "m,aXb=1 v=1,aXbc=2 1").status, 204);
    server.kill();
    for stream in std::fs::read_dir(start.data.join("wal")).unwrap() {
        for segment in std::fs::read_dir(stream.unwrap().path()).unwrap() {
            let path = segment.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            as_of_version_one(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let server = start.run();
    assert_eq!(server.sql("d", "SELECT \"a,b\", \"a,bc\" FROM m"), [json!({"a,b": "1", "a,bc": 2.0})]);
    assert_eq!(server.write("d", "m,a,b=1 v=1 1").status, 400, "what is written now is read by the rules of now");
}
