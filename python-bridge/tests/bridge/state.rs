//! `influxdb3_local.state`, as one run sees it and as it leaves the run; how it is kept is tested in `shards` and `server`.

use std::sync::Arc;

use saltus_core::limits::STATE_BYTES_MAX;
use saltus_core::ports::{RunReport, RunRequest};
use saltus_core::state::{State, StateChange};

use crate::host::Code;
use crate::{on_shard, request};

fn changed(report: &RunReport) -> Vec<(String, Option<String>)> {
    let change = |c: &StateChange| (c.key.to_string(), c.value.as_ref().map(ToString::to_string));
    report.state.iter().map(change).collect()
}

fn state(entries: &[(&str, &str)], revision: u64) -> Arc<State> {
    let mut state = State::of_revision(revision);
    for (key, value) in entries {
        state.apply(&StateChange { key: (*key).into(), value: Some((*value).into()) });
    }
    Arc::new(state)
}

#[test]
fn a_run_sees_the_state_as_it_was_and_its_own_changes_which_leave_with_it() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    s = api.state\n    api.info(s.get('n'), s.get('none', 'default'), s.keys(), s.items())\n    \
                      s.put('n', s.get('n') + 1)\n    s.put('bytes', (b'\\x00', 1.5, None))\n    assert s.delete('old') and not s.delete('old')\n    \
                      api.info(s.keys(), s.items(), s.get('old'))\n";
        let kept = state(&[("n", "41"), ("old", "[]")], 7);
        for report in shard.everywhere(|| RunRequest { state: kept.clone(), ..request(Code::text(source), vec![]) }) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO 41 default ['n', 'old'] [('n', 41), ('old', [])]",
                    "INFO ['bytes', 'n'] [('bytes', (b'\\x00', 1.5, None)), ('n', 42)] None"
                ]
            );
            let bytes = r#"{"$tuple":[{"$bytes":"AA=="},1.5,null]}"#;
            let expected = [("bytes", Some(bytes)), ("n", Some("42")), ("old", None)];
            let expected = expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
            assert_eq!(changed(&report), expected);
        }
    });
}

#[test]
fn a_worker_process_has_the_newest_state_in_each_run() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.info(api.state.items())\n";
        for (entries, revision, said) in [
            (&[("a", "1")][..], 1, "INFO [('a', 1)]"),
            (&[("a", "1")][..], 1, "INFO [('a', 1)]"),
            (&[("b", "2")][..], 2, "INFO [('b', 2)]"),
        ] {
            let run = RunRequest { state: state(entries, revision), ..request(Code::text(source), vec![]) };
            let report = shard.process(run);
            assert_eq!(shard.said(&report), [said]);
            assert!(report.state.is_empty());
        }
    });
}

#[test]
fn a_failed_run_changes_nothing() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.state.put('n', 1)\n    1 / 0\n";
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            assert_eq!(report.result.unwrap_err().kind, "ZeroDivisionError");
            assert!(report.state.is_empty());
        }
    });
}

#[test]
fn what_cannot_be_kept_is_named_and_changes_nothing() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    deep = []\n    for _ in range(200):\n        deep = [deep]\n    \
                      for key, value in (('k', {1, 2}), ('k', {'a': [object()]}), ('k', {1: 2}), ('k' * 1025, 1), ('k', deep), \
                      ('big', 'x' * 1_048_576), (1, 1)):\n        try:\n            api.state.put(key, value)\n        except Exception as e:\n            \
                      api.info(type(e).__name__, str(e)[:90])\n    assert api.state.items() == []\n";
        let said = [
            "INFO TypeError state['k'] is a set, which cannot be kept: use None, bool, int, float, str, bytes, list, t",
            "INFO TypeError state['k']['a'][0] is a object, which cannot be kept: use None, bool, int, float, str, byt",
            "INFO TypeError state['k'] has a key of type int: only str can be kept",
            "INFO ValueError the key has 1025 bytes, and a key of state at most 1024",
        ];
        for report in shard.everywhere(|| request(Code::text(source), vec![])) {
            let lines = shard.said(&report);
            assert_eq!(lines[..4], said);
            assert!(lines[4].contains("is nested more than 100 deep") || lines[4].contains("[0][0]"), "{}", lines[4]);
            assert_eq!(
                lines[5],
                "INFO ValueError with state['big'] the state of trigger 'watcher' would have 1048581 bytes, and it may have"
            );
            assert_eq!(lines[6], "INFO TypeError key must be str, not int");
            assert!(report.state.is_empty());
        }
        assert_eq!(STATE_BYTES_MAX, 1_048_576);
    });
}
