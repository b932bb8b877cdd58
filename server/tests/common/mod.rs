//! A real server process for tests: started on a free port with a data directory of its own, killed when dropped.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running server.
pub struct Server {
    child: Child,
    pub url: String,
    pub port: u16,
    pub log: PathBuf,
}

/// How to start one.
#[derive(Clone)]
pub struct Start {
    pub data: PathBuf,
    pub plugins: PathBuf,
    pub shards: usize,
    pub port: Option<u16>,
    pub extra: Vec<String>,
    /// A command that runs the program, if it is not run as it is.
    pub within: Vec<String>,
    /// Where its log goes, if that is not beside its data.
    pub log_dir: Option<PathBuf>,
}

impl Start {
    pub fn new(root: &Path) -> Self {
        let plugins = root.join("plugins");
        std::fs::create_dir_all(&plugins).unwrap();
        Start {
            data: root.join("data"),
            plugins,
            shards: 2,
            port: None,
            extra: vec!["--wal-segment-size".into(), "4mb".into()],
            within: Vec::new(),
            log_dir: None,
        }
    }

    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    pub fn plugin(&self, name: &str, source: &str) {
        std::fs::write(self.plugins.join(name), source).unwrap();
    }

    /// The command, with the reference's flags.
    pub fn command(&self, port: u16) -> Command {
        let words: Vec<&str> = self.within.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_saltus")]).collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["serve", "--node-id", "n0", "--object-store", "file", "--without-auth"])
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--plugin-dir")
            .arg(&self.plugins)
            .args(["--http-bind", &format!("127.0.0.1:{port}"), "--shards", &self.shards.to_string()])
            .args(&self.extra);
        command
    }

    pub fn run(&self) -> Server {
        /// A port that was free may be another's when the server asks for it.
        const TRIES: usize = 5;
        for _ in 1..TRIES {
            match self.try_run(true) {
                Err(text) if self.port.is_none() && text.contains("in use") => {}
                other => return other.unwrap_or_else(|text| panic!("{text}")),
            }
        }
        self.try_run(true).unwrap_or_else(|text| panic!("{text}"))
    }

    /// As [`Start::run`], and it need not be healthy.
    pub fn run_ailing(&self) -> Server {
        self.try_run(false).unwrap_or_else(|text| panic!("{text}"))
    }

    fn try_run(&self, healthy: bool) -> Result<Server, String> {
        static LIVES: AtomicU32 = AtomicU32::new(0);
        let port = self.port.unwrap_or_else(free_port);
        let life = LIVES.fetch_add(1, Ordering::Relaxed);
        let name = format!("server-{port}-{life}.log");
        let log = self.log_dir.as_ref().map_or_else(|| self.data.with_file_name(&name), |dir| dir.join(&name));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = self
            .command(port)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .expect("the server's binary starts");
        let mut server = Server { child, url: format!("http://127.0.0.1:{port}"), port, log };
        server.wait_until_serving(healthy).map(|()| server)
    }

    /// Starts one that must refuse to start; its output.
    pub fn run_refused(&self) -> String {
        let mut child = self
            .command(free_port())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(!status.success(), "it should have refused to start");
                let mut text = String::new();
                child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
                child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                return text;
            }
            if Instant::now() > end {
                child.kill().unwrap();
                panic!("the server neither refused to start nor ended");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the Python that the server embeds prints.
pub fn python(code: &str) -> String {
    let python = std::env::var("PYO3_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python).args(["-c", code]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A module of the standard library that no interpreter with a GIL of its own can have.
pub fn module_of_one_interpreter() -> String {
    python(
        "from importlib.util import find_spec as find; \
         print(next(n for n in ('_curses', 'readline', '_tkinter', '_testsinglephase') if find(n)))",
    )
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A reply: status and body.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub content_type: String,
}

pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

impl Server {
    /// Not before it says itself that it serves: whoever answers at its port may be another test's.
    fn wait_until_serving(&mut self, healthy: bool) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(60);
        let serving = format!("saltus is serving on {}", self.url);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(format!("the server ended at its start ({status}):\n{}", self.log_text()));
            }
            if self.log_text().contains(&serving)
                && agent().get(format!("{}/health", self.url)).call().is_ok_and(|r| !healthy || r.status() == 200)
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("the server did not become healthy:\n{}", self.log_text()))
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; true if it ended with success within the bound.
    pub fn terminate(&mut self, within: Duration) -> bool {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        let end = Instant::now() + within;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, within: Duration) -> std::process::ExitStatus {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the server goes on\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn reply(result: Result<http::Response<ureq::Body>, ureq::Error>) -> Reply {
        let mut response = result.expect("the server answers");
        let content_type =
            response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Reply {
            status: response.status().as_u16(),
            body: response.body_mut().with_config().limit(1 << 30).read_to_string().unwrap(),
            content_type,
        }
    }

    pub fn get(&self, path: &str) -> Reply {
        Self::reply(agent().get(format!("{}{path}", self.url)).call())
    }

    pub fn delete(&self, path: &str) -> Reply {
        Self::reply(agent().delete(format!("{}{path}", self.url)).call())
    }

    pub fn post(&self, path: &str, body: &str) -> Reply {
        Self::reply(agent().post(format!("{}{path}", self.url)).send(body))
    }

    pub fn post_json(&self, path: &str, body: &Value) -> Reply {
        Self::reply(
            agent()
                .post(format!("{}{path}", self.url))
                .header("content-type", "application/json")
                .send(body.to_string()),
        )
    }

    pub fn put_json(&self, path: &str, body: &Value) -> Reply {
        let put = agent().put(format!("{}{path}", self.url)).header("content-type", "application/json");
        Self::reply(put.send(body.to_string()))
    }

    /// Runs a command of the program against this server; its exit status, output and errors.
    pub fn command(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_saltus"));
        let output = command.args(arguments).env("SALTUS_HOST_URL", &self.url).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    pub fn write(&self, db: &str, lines: &str) -> Reply {
        self.post(&format!("/api/v3/write_lp?db={db}"), lines)
    }

    pub fn sql(&self, db: &str, sql: &str) -> Vec<Value> {
        let reply = self.post_json("/api/v3/query_sql", &serde_json::json!({"db": db, "q": sql, "format": "json"}));
        assert_eq!(reply.status, 200, "{sql}: {}", reply.body);
        serde_json::from_str(&reply.body).unwrap_or_else(|e| panic!("{sql}: {e}: {}", reply.body))
    }

    pub fn create_trigger(&self, db: &str, name: &str, file: &str, spec: &str, execution: &str, arguments: Value) {
        let settings = serde_json::json!({"run_async": false, "error_behavior": "log", "execution": execution});
        self.create_trigger_with(db, name, file, spec, settings, arguments);
    }

    /// What it answers.
    pub fn create_trigger_with(
        &self,
        db: &str,
        name: &str,
        file: &str,
        spec: &str,
        settings: Value,
        arguments: Value,
    ) -> Value {
        let reply = self.post_json(
            "/api/v3/configure/processing_engine_trigger",
            &serde_json::json!({
                "db": db, "plugin_filename": file, "trigger_name": name, "trigger_specification": spec,
                "trigger_settings": settings,
                "trigger_arguments": arguments, "disabled": false
            }),
        );
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    /// Changes a trigger; what it answers.
    pub fn update_trigger(&self, db: &str, name: &str, change: Value) -> Value {
        let mut body = change;
        body["db"] = db.into();
        body["trigger_name"] = name.into();
        let reply = self.put_json("/api/v3/configure/processing_engine_trigger", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    /// The answer to a change of a trigger, once what its plugin imports was tried: on a machine that has other things to do, that may take
    /// longer than the answer waits.
    pub fn settled(&self, db: &str, name: &str, answer: Value) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        let mut answer = answer;
        while answer["lane_reason"].as_str().unwrap().contains("; what it imports ") {
            assert!(Instant::now() < end, "{answer}: {}", self.log_text());
            answer = self.update_trigger(db, name, serde_json::json!({}));
        }
        answer
    }

    pub fn create_database(&self, db: &str) {
        let reply = self.post_json("/api/v3/configure/database", &serde_json::json!({"db": db}));
        assert_eq!(reply.status, 200, "{}", reply.body);
    }

    /// Asks until the answer is right or a minute has passed, which is for machines that have other things to do.
    pub fn sql_until(&self, db: &str, sql: &str, right: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let reply = self.post_json("/api/v3/query_sql", &serde_json::json!({"db": db, "q": sql, "format": "json"}));
            if reply.status == 200 {
                let rows: Vec<Value> = serde_json::from_str(&reply.body).unwrap();
                if right(&rows) {
                    return rows;
                }
            }
            assert!(
                Instant::now() < end,
                "{sql} never gave the right answer; last: {}\nserver log:\n{}",
                reply.body,
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
