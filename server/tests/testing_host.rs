//! `saltus.testing`, in which plugins are tested without a server, does what the server does.
//!
//! The same small plugins are run in both, with the same rows, calls and requests, and what they said, wrote, failed with and
//! answered is compared: `python-bridge/python/tests/conformance`.

mod common;

use std::path::Path;
use std::process::Command;

use common::Start;

#[test]
fn plugins_do_the_same_in_saltus_testing_and_in_the_server() {
    let root = tempfile::tempdir().unwrap();
    let start = Start::new(root.path());
    let server = start.run();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python-bridge/python/tests/conformance/compare.py");
    let python = std::env::var("PYO3_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python)
        .arg(script)
        .arg(&server.url)
        .arg(&start.plugins)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("plugins compared, 0 differences"), "{text}");
}
