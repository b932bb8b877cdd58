//! What plugins find in `os.environ`: by these variables those of InfluxDB 3 look for their configuration files.

mod common;

use common::{Server, Start};
use serde_json::{Value, json};

const TELL: &str = r#"
import os

def process_request(influxdb3_local, query_parameters, request_headers, request_body, args=None):
    names = ("PLUGIN_DIR", "INFLUXDB3_PLUGIN_DIR", "VIRTUAL_ENV", "PATH")
    return {name: os.environ.get(name) for name in names} | {"pid": os.getpid()}
"#;

/// Asks in the server's interpreters and in a process.
fn told(server: &Server) -> [Value; 2] {
    server.create_database("main");
    ["interpreter", "process"].map(|isolation| {
        let spec = format!("request:{isolation}");
        let settings = json!({"isolation": isolation});
        server.create_trigger_with("main", isolation, "tell.py", &spec, settings, Value::Null);
        let reply = server.get(&format!("/api/v3/engine/{isolation}"));
        let told: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(told["pid"] == server.pid(), isolation == "interpreter", "{told}");
        told
    })
}

#[test]
fn a_plugin_finds_where_plugins_lie_and_which_virtual_environment_is_active() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("tell.py", TELL);
    let venv = start.plugins.join(".venv");
    std::fs::create_dir_all(&venv).unwrap();
    std::fs::write(venv.join("pyvenv.cfg"), "").unwrap();
    let server = start.run();
    for told in told(&server) {
        assert_eq!(told["PLUGIN_DIR"], start.plugins.to_str().unwrap(), "{told}");
        assert_eq!(told["INFLUXDB3_PLUGIN_DIR"], start.plugins.to_str().unwrap(), "{told}");
        assert_eq!(told["VIRTUAL_ENV"], venv.to_str().unwrap(), "{told}");
        let first = told["PATH"].as_str().unwrap().split(':').next().unwrap();
        assert_eq!(first, venv.join("bin").to_str().unwrap());
    }
}

#[test]
fn without_a_virtual_environment_none_is_active() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    start.plugin("tell.py", TELL);
    let server = start.run();
    let outside = std::env::var("VIRTUAL_ENV").map_or(Value::Null, Value::from);
    for told in told(&server) {
        assert_eq!(told["PLUGIN_DIR"], start.plugins.to_str().unwrap(), "{told}");
        assert_eq!(told["VIRTUAL_ENV"], outside, "{told}");
    }
}
