//! Runs the Python tests of `pytests/` inside the embedded interpreter, as a plugin.

use crate::{Code, on_shard, request};

#[test]
fn the_python_tests_pass() {
    on_shard(|shard| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/pytests");
        let source = format!(
            "import sys, unittest\nsys.path.insert(0, {folder:?})\n\ndef process_writes(api, batches, args):\n    \
             suite = unittest.defaultTestLoader.loadTestsFromNames(['test_inline', 'test_line_builder', 'test_plain', 'test_reuse'])\n    result = \
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
