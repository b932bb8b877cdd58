//! What an operator meets: missing files, starts without writes, full disks.
//!
//! A full disk is a small file system in a mount namespace of its own, so that nothing stays behind whatever a test does: the
//! namespace, and what is mounted in it, ends with the process that holds it. Where mounting is not allowed these tests say so and
//! do nothing.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::{Reply, Server, Start};

/// Databases, a trigger, two lives with rows on both shards.
fn lived(root: &Path) -> Start {
    let start = Start::new(root);
    start.plugin("p.py", "def process_writes(influxdb3_local, table_batches, args=None):\n    pass\n");
    for life in 0..2 {
        let mut server = start.run();
        if life == 0 {
            server.create_database("d");
            server.create_trigger("d", "t", "p.py", "all_tables", "auto", json!({}));
        }
        write_rows(&server, life);
        if life == 0 {
            server.kill();
        } else {
            assert!(server.terminate(Duration::from_secs(30)), "{}", server.log_text());
        }
    }
    start
}

const TABLES: usize = 8;

fn write_rows(server: &Server, life: usize) {
    for table in 0..TABLES {
        assert_eq!(server.write("d", &format!("m{table} v={life} {}", life + 1)).status, 204);
    }
}

/// How many of the tables have all their rows.
fn whole_tables(server: &Server) -> usize {
    let whole = |table: &usize| {
        let sql = json!({"db": "d", "q": format!("SELECT * FROM m{table}"), "format": "json"});
        let reply = server.post_json("/api/v3/query_sql", &sql);
        reply.status == 200 && reply.body.matches("\"v\"").count() == 2
    };
    (0..TABLES).filter(whole).count()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn remove(path: &Path) {
    if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
}

fn cut(path: &Path, bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

type Harm = fn(data: &Path, other: &Path);

/// What is done to the data directory (`other` is one of another server), and what the refusal says; nothing: it starts.
const HARM: &[(&str, Harm, &[&str])] = &[
    (
        "a segment",
        |d, _| remove(&d.join("wal/00000001-0000/00000001.wal")),
        &["00000001-0000/00000001.wal is missing", "rows", "shard 0"],
    ),
    ("a stream", |d, _| remove(&d.join("wal/00000001-0001")), &["00000001-0001 is missing", "rows", "shard 1"]),
    ("the log", |d, _| remove(&d.join("wal")), &["00000001-0000 is missing", "00000002-0001 is missing"]),
    (
        "a cut segment",
        |d, _| cut(&d.join("wal/00000002-0000/00000001.wal"), 4096),
        &["00000001.wal has 4096 bytes", "cut off"],
    ),
    ("no catalog", |d, _| remove(&d.join("catalog.redb")), &["catalog.redb is missing", "triggers"]),
    ("an empty catalog", |d, _| cut(&d.join("catalog.redb"), 0), &["catalog.redb is empty", "triggers"]),
    ("a cut catalog", |d, _| cut(&d.join("catalog.redb"), 5000), &["catalog.redb", "triggers"]),
    ("a catalog cut by half", |d, _| cut(&d.join("catalog.redb"), 300_000), &["catalog.redb", "triggers"]),
    (
        "a garbled catalog",
        |d, _| std::fs::write(d.join("catalog.redb"), "no catalog").unwrap(),
        &["catalog.redb cannot be read", "triggers"],
    ),
    ("zeros in the catalog", |d, _| garble(&d.join("catalog.redb"), 0, 4096), &["catalog.redb", "triggers"]),
    (
        "catalog and log",
        |d, _| {
            remove(&d.join("catalog.redb"));
            remove(&d.join("wal/00000001-0000"));
        },
        &["catalog.redb is missing", "00000001-0000 is missing"],
    ),
    (
        "catalog of another",
        |d, o| {
            remove(&d.join("catalog.redb"));
            copy(&o.join("catalog.redb"), d);
        },
        &["catalog.redb is of another data directory"],
    ),
    (
        "log of another",
        |d, o| {
            remove(&d.join("wal"));
            copy(&o.join("wal"), d);
        },
        &["of another data directory"],
    ),
    (
        "manifest of another",
        |d, o| {
            remove(&d.join("manifest"));
            copy(&o.join("manifest"), d);
        },
        &["manifest: is of another data directory"],
    ),
    ("no manifest", |d, _| remove(&d.join("manifest")), &["manifest: is missing"]),
    ("an empty epoch", |d, _| cut(&d.join("epoch"), 0), &[]),
    ("a garbled epoch", |d, _| std::fs::write(d.join("epoch"), b"\xff\x00x").unwrap(), &[]),
];

fn garble(path: &Path, offset: u64, bytes: usize) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; bytes], offset).unwrap();
}

#[test]
fn what_is_missing_is_named_and_can_be_given_up() {
    let root = tempfile::tempdir().unwrap();
    let start = lived(&root.path().join("a"));
    let other = lived(&root.path().join("b"));
    for (at, (what, harm, texts)) in HARM.iter().enumerate() {
        let mut start = start.clone();
        let data = root.path().join(format!("data-{at}"));
        copy(&start.data, &data);
        start.data = data.clone();
        harm(&data, &other.data);
        if !texts.is_empty() {
            let refusal = start.run_refused();
            let text = texts.iter().chain(&["--accept-loss"]).find(|text| !refusal.contains(**text));
            assert!(text.is_none(), "{what}: {text:?} is not in\n{refusal}");
            let mut accepting = start.clone();
            accepting.extra.push("--accept-loss".into());
            let mut server = accepting.run();
            assert!(server.log_text().contains("given up"), "{what}: {}", server.log_text());
            server.kill();
        }
        let server = start.run();
        let loses_rows = !texts.is_empty() && texts.iter().any(|text| text.contains("0000"));
        assert_eq!(whole_tables(&server) < TABLES, loses_rows || *what == "log of another", "{what}");
        assert_eq!(server.write("d", "m0 v=9 9").status, 204, "{what}");
    }
}

fn bytes_of(path: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn starts_without_writes_take_no_room_however_they_end() {
    let root = tempfile::tempdir().unwrap();
    let mut start = Start::new(root.path());
    // The segments of every day.
    start.extra.clear();
    let mut server = start.run();
    assert_eq!(server.write("d", "m v=1 1").status, 204);
    server.kill();
    let mut sizes = Vec::new();
    for round in 0..12 {
        let mut server = start.run();
        let alive = bytes_of(&start.data);
        assert!(alive < 12 << 20, "an idle server takes {alive} bytes");
        if round % 3 == 2 {
            assert!(server.terminate(Duration::from_secs(30)), "{}", server.log_text());
        } else {
            server.kill();
        }
        sizes.push(bytes_of(&start.data.join("wal")));
    }
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(most - least <= 3 << 20, "flat, but for the segments of the life before: {sizes:?}");
    let mut server = start.run();
    assert!(server.terminate(Duration::from_secs(30)));
    assert!(bytes_of(&start.data.join("wal")) < 64 << 10, "{}", bytes_of(&start.data.join("wal")));
    let server = start.run();
    assert_eq!(server.sql("d", "SELECT v FROM m"), [json!({"v": 1.0})]);
}

/// A file system of some megabytes in a mount namespace of its own.
struct Disk {
    holder: Child,
    mount: PathBuf,
}

impl Disk {
    /// `None` if mounting is not allowed here.
    fn new(root: &Path, kind: &str, mib: u64) -> Option<Disk> {
        let mount = root.join("disk");
        std::fs::create_dir_all(&mount).unwrap();
        let (image, at) = (root.join("image"), mount.display().to_string());
        let mounting = match kind {
            "ext4" => {
                std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
                let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image).status();
                if !made.is_ok_and(|status| status.success()) {
                    return Disk::not_here(kind);
                }
                format!("mount -o loop {} {at}", image.display())
            }
            _ => format!("mount -t tmpfs -o size={mib}m none {at}"),
        };
        let holder = Command::new("unshare")
            .args(["-m", "sh", "-c", &format!("{mounting} && touch {at}/is-mounted && exec sleep 600")])
            .stdin(Stdio::null())
            .spawn()
            .ok();
        let Some(mut holder) = holder else { return Disk::not_here(kind) };
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let disk = Disk::inside(holder.id(), &mount);
            if disk.join("is-mounted").exists() {
                return Some(Disk { holder, mount });
            }
            if holder.try_wait().unwrap().is_some() || Instant::now() > end {
                let _ = holder.kill();
                let _ = holder.wait();
                return Disk::not_here(kind);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn not_here(kind: &str) -> Option<Disk> {
        println!("a file system of its own ({kind}) cannot be mounted here: full disks are not tried");
        None
    }

    fn inside(pid: u32, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root{}", path.display()))
    }

    /// A path on it, from outside.
    fn path(&self, name: &str) -> PathBuf {
        Disk::inside(self.holder.id(), &self.mount).join(name)
    }

    /// The server's command, run where the file system is.
    fn start(&self, root: &Path) -> Start {
        let mut start = Start::new(root);
        start.data = self.mount.join("data");
        start.within = vec!["nsenter".into(), format!("--mount=/proc/{}/ns/mnt", self.holder.id()), "--".into()];
        start.log_dir = Some(root.to_owned());
        start
    }

    /// Takes all room but for about `left` bytes.
    fn fill(&self, left: u64) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.path("filler")).unwrap();
        let block = vec![1; 4096];
        while file.write_all(&block).is_ok() {}
        let bytes = file.metadata().unwrap().len();
        file.set_len(bytes.saturating_sub(left)).unwrap();
        let _ = file.sync_all();
    }

    fn free(&self) {
        std::fs::remove_file(self.path("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Asks until it is so.
fn until(what: &str, server: &Server, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "{what} never came true\n{}", server.log_text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

const NO_SPACE: &str = "no space left on the disk of the data directory";

/// A megabyte of rows.
fn bulk(n: usize) -> String {
    (0..16).map(|row| format!("bulk s=\"{}\" {}\n", "x".repeat(60_000), n * 16 + row + 1)).collect()
}

/// Writes until the disk is full; how much was acknowledged, and the refusal.
fn write_until_full(server: &Server, parameters: &str, from: usize) -> (usize, Reply, Duration) {
    for n in from.. {
        let began = Instant::now();
        let reply = server.post(&format!("/api/v3/write_lp?db=d{parameters}"), &bulk(n));
        if reply.status != 204 {
            return (n, reply, began.elapsed());
        }
        assert!(n < 500, "the disk is never full");
    }
    unreachable!("the loop ends above")
}

fn a_full_disk_is_told_and_goes_by_itself(kind: &str) {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(root.path(), kind, 48) else { return };
    let start = disk.start(root.path());
    start.plugin(
        "p.py",
        "def process_writes(influxdb3_local, table_batches, args=None):\n    influxdb3_local.info('seen')\n",
    );
    let server = start.run();
    server.create_database("d");
    disk.fill(6 << 20);
    let mut written = 0;
    for parameters in ["", "&no_sync=true"] {
        let (n, reply, took) = write_until_full(&server, parameters, written);
        assert_eq!(reply.status, 503, "{parameters}: {}", reply.body);
        assert!(reply.body.contains(NO_SPACE) && reply.body.contains("free at least"), "{}", reply.body);
        assert!(took < Duration::from_secs(10), "answered after {took:?}");
        until("/health knows", &server, || {
            let health = server.get("/health");
            health.status == 503 && health.body.contains(NO_SPACE)
        });
        assert!(
            server.get("/metrics").body.contains("saltus_shard_disk_full{shard=\"0\"} 1")
                || server.get("/metrics").body.contains("saltus_shard_disk_full{shard=\"1\"} 1")
        );
        let rows = server
            .sql("_internal", &format!("SELECT * FROM system.shards WHERE NOT healthy AND reason LIKE '{NO_SPACE}%'"));
        assert!(!rows.is_empty());
        assert!(!server.get("/metrics").body.contains("saltus_shard_poisoned{shard=\"0\"} 1"));
        // Queries are answered, the catalog says why it cannot be changed, and goes on.
        assert_eq!(server.sql("d", "SELECT 1 AS one"), [json!({"one": 1})]);
        let made = server.post_json(
            "/api/v3/configure/processing_engine_trigger",
            &json!({
                "db": "d", "plugin_filename": "p.py", "trigger_name": "t", "trigger_specification": "all_tables",
                "trigger_settings": {"run_async": false, "error_behavior": "log"}, "disabled": false
            }),
        );
        assert!(made.status == 200 || (made.status == 503 && made.body.contains(NO_SPACE)), "{made:?}");
        disk.free();
        until("/health is well again", &server, || server.get("/health").status == 200);
        let after = server.write("d", "after v=1 1");
        assert_eq!(after.status, 204, "{parameters}: {}\n{}", after.body, server.log_text());
        assert!(server.get("/metrics").body.contains("saltus_shard_disk_full{shard=\"0\"} 0"));
        if made.status != 200 {
            server.create_trigger("d", "t", "p.py", "all_tables", "auto", json!({}));
        }
        let deleted = server.delete("/api/v3/configure/processing_engine_trigger?db=d&trigger_name=t&force=true");
        assert_eq!(deleted.status, 200, "{}", deleted.body);
        // What was acknowledged is there; what was answered with 503 is written after all.
        let rows = server
            .sql_until("d", "SELECT count(*) AS n FROM bulk", |rows| rows[0]["n"].as_u64() >= Some(n as u64 * 16));
        written = rows[0]["n"].as_u64().unwrap() as usize / 16;
        disk.fill(3 << 20);
    }
}

#[test]
fn a_full_disk_behind_the_page_cache_is_told_and_goes_by_itself() {
    a_full_disk_is_told_and_goes_by_itself("tmpfs");
}

#[test]
fn a_full_disk_without_the_page_cache_is_told_and_goes_by_itself() {
    a_full_disk_is_told_and_goes_by_itself("ext4");
}

/// Waits for a file named by its trigger, then writes to tables of all shards.
const WAITING_PLUGIN: &str = r#"
import os, time

def wait(influxdb3_local, args, n):
    influxdb3_local.info("begun")
    while not os.path.exists(args["file"]):
        time.sleep(0.01)
    for table in range(8):
        influxdb3_local.write(LineBuilder(f"{args['out']}{table}").int64_field("n", n))

def process_writes(influxdb3_local, table_batches, args=None):
    wait(influxdb3_local, args, table_batches[0]["rows"][0]["n"])

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    wait(influxdb3_local, args, 1)
    return {"done": True}
"#;

#[test]
fn results_of_runs_wait_for_room_on_a_full_disk() {
    for stopped in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(root.path(), "tmpfs", 48) else { return };
        let start = disk.start(root.path());
        start.plugin("w.py", WAITING_PLUGIN);
        let mut server = start.run();
        server.create_database("d");
        assert_eq!(server.write("d", "begin n=0i 1").status, 204);
        let file = root.path().join("go");
        let behaviors = ["disable", "log", "retry"];
        for behavior in behaviors {
            let settings = json!({"run_async": false, "error_behavior": behavior, "execution": "deferred"});
            let arguments = json!({"file": file, "out": format!("out_{behavior}_")});
            server.create_trigger_with("d", behavior, "w.py", &format!("table:in_{behavior}"), settings, arguments);
            assert_eq!(server.write("d", &format!("in_{behavior} n=7i 1")).status, 204);
        }
        server.create_trigger("d", "r", "w.py", "request:r", "auto", json!({"file": file, "out": "out_r_"}));
        const BEGUN: &str = "SELECT DISTINCT trigger_name FROM system.processing_engine_logs WHERE log_text = 'begun'";
        server.sql_until("d", BEGUN, |rows| rows.len() == 3);
        disk.fill(6 << 20);
        let (_, refusal, _) = write_until_full(&server, "", 0);
        assert_eq!(refusal.status, 503, "{}", refusal.body);
        std::fs::write(&file, "").unwrap();
        // Nobody waits for these but their rows.
        const WAITING: &str = "SELECT DISTINCT trigger_name FROM system.processing_engine_logs WHERE log_text LIKE \
                               'the results of the run wait for room on the disk: no space left%'";
        server.sql_until("d", WAITING, |rows| rows.len() == 3);
        // Somebody waits for this.
        let reply = server.get("/api/v3/engine/r");
        assert!(reply.status == 503 && reply.body.contains(NO_SPACE), "{reply:?}");
        let out = |server: &Server| {
            let one = |behavior: &&str| {
                let tables = (0..8).map(|table| format!("SELECT n FROM out_{behavior}_{table}"));
                format!(
                    "SELECT sum(n) AS n, count(*) AS rows FROM ({})",
                    tables.collect::<Vec<_>>().join(" UNION ALL ")
                )
            };
            for behavior in behaviors {
                server.sql_until("d", &one(&behavior), |rows| rows == [json!({"n": 56, "rows": 8})]);
            }
        };
        if stopped {
            let began = Instant::now();
            server.terminate(Duration::from_secs(30));
            assert!(began.elapsed() < Duration::from_secs(25), "{}", server.log_text());
            disk.free();
            server = start.run();
        } else {
            disk.free();
        }
        out(&server);
        let triggers =
            server.sql("d", "SELECT trigger_name, disabled FROM system.processing_engine_triggers ORDER BY 1");
        assert!(triggers.len() == 4 && triggers.iter().all(|row| row["disabled"] == json!(false)), "{triggers:?}");
        let failed = "SELECT * FROM system.processing_engine_logs WHERE log_level = 'ERROR' AND trigger_name <> 'r'";
        assert_eq!(server.sql("d", failed), Vec::<serde_json::Value>::new());
    }
}

#[test]
fn a_start_on_a_full_disk_answers_queries_and_goes_on_when_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::new(root.path(), "ext4", 32) else { return };
    let start = disk.start(root.path());
    // A directory that has never been used cannot begin: the text says what is needed.
    disk.fill(0);
    let refusal = start.run_refused();
    assert!(refusal.contains("o space left on"), "{refusal}");
    disk.free();
    let mut server = start.run();
    assert_eq!(server.write("d", "m v=1 1").status, 204);
    server.kill();
    for orderly in [false, true] {
        disk.fill(0);
        let mut server = start.run_ailing();
        assert_eq!(server.sql("d", "SELECT v FROM m WHERE v = 1"), [json!({"v": 1.0})]);
        let health = server.get("/health");
        if health.status == 503 {
            assert!(health.body.contains(NO_SPACE), "{}", health.body);
            let reply = server.write("d", "m v=2 2");
            assert!(reply.status == 503 && reply.body.contains(NO_SPACE), "{reply:?}");
        }
        if orderly {
            // Nothing waits, so nothing is lost.
            assert!(server.terminate(Duration::from_secs(20)), "{}", server.log_text());
            disk.free();
        } else {
            disk.free();
            until("writes are taken", &server, || server.write("d", "m v=3 3").status == 204);
            assert_eq!(server.get("/health").status, 200);
            server.kill();
        }
    }
    let server = start.run();
    assert_eq!(server.sql("d", "SELECT v FROM m ORDER BY time"), [json!({"v": 1.0}), json!({"v": 3.0})]);
}
