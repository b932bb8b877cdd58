//! Runs the Python tests of `pytests/` inside the embedded interpreter, as a plugin.

use crate::{Code, on_shard, request};

#[test]
fn the_python_tests_pass() {
    on_shard(|shard| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/pytests");
        let source = format!(
            "import sys, unittest\nsys.path.insert(0, {folder:?})\n\ndef process_writes(api, batches, args):\n    \
             suite = unittest.defaultTestLoader.loadTestsFromNames(['test_imports', 'test_inline', 'test_line_builder', 'test_plain', 'test_request', 'test_response', \
             'test_reuse'])\n    result = \
             unittest.TestResult()\n    suite.run(result)\n    assert not result.errors + result.failures, \
             '\\n'.join(t for _, t in result.errors + result.failures)\n    api.info(result.testsRun)\n"
        );
        let report = shard.deferred(request(Code::text(&source), vec![]));
        report.result.unwrap_or_else(|e| panic!("{}", e.message));
        let lines = shard.host.lines_of(report.request.run_id);
        let run: usize = lines[0].strip_prefix("INFO ").and_then(|n| n.parse().ok()).unwrap();
        assert!(run >= 24, "all tests have run: {lines:?}");
    });
}

#[test]
fn the_index_of_conformance_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [
        root.join("tests/bridge"),
        root.join("pytests"),
        root.join("../server/tests"),
        root.join("../server/tests/faults"),
        root.join("../server/src/http"),
        root.join("../server/src/query"),
        root.join("../core/src"),
    ];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let texts: String = files.filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok()).collect();
    let index = std::fs::read_to_string(root.join("pytests/CONFORMANCE.md")).unwrap();
    let rows = index.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| statement"));
    let mut named = 0;
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for test in tests.split(", ").map(|test| test.trim_matches('`')) {
            let is_there = [format!("fn {test}("), format!("def {test}(")].iter().any(|words| texts.contains(words));
            assert!(is_there, "there is no test {test}");
            named += 1;
        }
    }
    assert!(named > 60, "{named} tests are named");
}
