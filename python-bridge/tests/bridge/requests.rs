//! Requests: what a plugin gets and what becomes of its answer, in all three lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use saltus_core::ids::{RunId, TriggerId};
use saltus_core::ports::{RunEvent, RunReport, RunRequest, Trigger, Unwound};
use saltus_core::request::{AnswerSlot, PieceSender, PluginRequest, PluginResponse, RequestError, ResponseHead, Sent};
use saltus_core::trigger::Execution;

use crate::host::{Code, Host};
use crate::{Shard, on_shard, request};

/// A slot that remembers what was streamed, and how many pieces it takes.
#[derive(Debug, Default)]
struct Slot {
    head: Mutex<Option<ResponseHead>>,
    pieces: Mutex<Vec<Bytes>>,
    takes: usize,
    /// Then there is no room; otherwise the reader is gone.
    stays: bool,
    begun: AtomicBool,
}

impl Slot {
    fn taking(takes: usize) -> Arc<Self> {
        Arc::new(Slot { takes, ..Slot::default() })
    }

    fn text(&self) -> String {
        String::from_utf8(self.pieces.lock().concat()).unwrap()
    }
}

struct Pieces(Arc<Slot>);

/// The slot as the bridge has it.
#[derive(Debug)]
struct Shared(Arc<Slot>);

impl AnswerSlot for Shared {
    fn is_abandoned(&self) -> bool {
        false
    }
    fn is_begun(&self) -> bool {
        self.0.begun.load(Ordering::SeqCst)
    }
    fn finish(&self, answer: Result<PluginResponse, RequestError>) {
        unreachable!("the bridge does not finish answers: {answer:?}");
    }
    fn stream(&self, head: ResponseHead) -> Option<Box<dyn PieceSender>> {
        assert!(!self.0.begun.swap(true, Ordering::SeqCst), "a stream begins once");
        *self.0.head.lock() = Some(head);
        Some(Box::new(Pieces(self.0.clone())))
    }
}

impl PieceSender for Pieces {
    fn send(&mut self, piece: Bytes, within: Duration) -> Sent {
        let mut pieces = self.0.pieces.lock();
        if pieces.len() < self.0.takes {
            pieces.push(piece);
            return Sent::Taken;
        }
        drop(pieces);
        if !self.0.stays {
            return Sent::ReaderGone;
        }
        std::thread::sleep(within);
        Sent::NoRoom
    }
}

fn asked(slot: Option<Arc<Slot>>) -> PluginRequest {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    PluginRequest {
        method: "PUT".into(),
        path: "shelf".into(),
        tail: Some("a%20b/c".into()),
        query_string: "q=1&q=2".into(),
        query: vec![pair("q", "1"), pair("q", "2")],
        headers: vec![pair("x-a", "1"), pair("x-a", "2"), pair("host", "h\u{e4}")],
        body: Bytes::from_static(b"\x00{}"),
        peer: Some("127.0.0.1:80".parse().unwrap()),
        answer: slot.map(|slot| Arc::new(Shared(slot)) as Arc<dyn AnswerSlot>),
    }
}

/// A run of a plugin whose `process_request` has this body.
fn run(execution: Execution, body: &str, slot: Option<Arc<Slot>>) -> RunRequest {
    let lines: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let source = format!("import json\n\ndef process_request(api, query, headers, body, args=None):\n{lines}");
    let request = request(Code::text(&source), vec![]);
    let mut def = request.trigger.def.clone();
    (def.id, def.execution) = (TriggerId(2000 + request.run_id.0), execution);
    let trigger = Arc::new(Trigger { def, code: request.trigger.code.clone() });
    RunRequest { trigger, event: RunEvent::Request(Arc::new(asked(slot))), ..request }
}

type Lane = fn(&mut Shard, RunRequest) -> RunReport;

const LANES: [(&str, Lane, Execution); 3] = [
    ("inline", Shard::inline, Execution::Inline),
    ("deferred", Shard::deferred, Execution::Deferred),
    ("process", Shard::process, Execution::Auto),
];
const STREAMING: [(&str, Lane, Execution); 2] = [LANES[1], LANES[2]];

fn answer(report: RunReport) -> (u16, Vec<(String, String)>, Vec<u8>) {
    report.result.unwrap_or_else(|e| panic!("{} {}", e.message, e.traceback));
    let PluginResponse { head, body } = report.response.unwrap();
    (head.status, head.headers, body.unwrap().to_vec())
}

#[test]
fn the_arguments_are_those_of_influxdb_and_the_request_has_the_rest() {
    on_shard(|shard| {
        let body = "r = api.request\n\
            assert (api.event.kind, api.event.ids) == ('request', ()), api.event\n\
            assert r.json is not None and r.headers.getall('X-A') == ['1', '2'], r.headers\n\
            return [query, headers, list(body), args, r.method, r.path, r.route, r.tail, r.query_string, \
            r.query.getall('q'), r.client, r.body == body]";
        for (name, lane, execution) in LANES {
            let (status, headers, body) = answer(lane(shard, run(execution, body, None)));
            assert_eq!((status, headers), (200, vec![("Content-Type".into(), "application/json".into())]), "{name}");
            let expected = r#"[{"q": "2"}, {"x-a": "2", "host": "h\u00e4"}, [0, 123, 125], null, "PUT", "shelf/a%20b/c", "shelf", "a b/c", "q=1&q=2", ["1", "2"], "127.0.0.1:80", true]"#;
            assert_eq!(String::from_utf8(body).unwrap(), expected, "{name}");
        }
    });
}

#[test]
fn other_runs_have_no_request() {
    on_shard(|shard| {
        let source = "def process_writes(api, batches, args):\n    api.info(api.request)\n";
        let report = shard.deferred(request(Code::text(source), vec![]));
        assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO None"]);
    });
}

#[test]
fn answers_come_out_of_every_lane_as_they_were_returned() {
    on_shard(|shard| {
        let all = "return b'\\xff\\x00', 201, {'Content-Type': 'image/png', 'Set-Cookie': ['a', 'b']}";
        for (name, lane, execution) in LANES {
            let (status, headers, body) = answer(lane(shard, run(execution, all, None)));
            let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let expected = [pair("Content-Type", "image/png"), pair("Set-Cookie", "a"), pair("Set-Cookie", "b")];
            assert_eq!((status, &headers[..], &body[..]), (201, &expected[..], &b"\xff\x00"[..]), "{name}");
            let (status, headers, body) = answer(lane(shard, run(execution, "return (404,)", None)));
            assert_eq!((status, headers.len(), body.len()), (404, 0, 0), "{name}");
            let large = answer(lane(shard, run(execution, "return 'x' * 3_000_000", None)));
            assert_eq!(large.2.len(), 3_000_000, "{name}");
        }
    });
}

#[test]
fn what_is_no_answer_is_an_error_of_its_own_kind() {
    on_shard(|shard| {
        for (name, lane, execution) in LANES {
            let error = lane(shard, run(execution, "return None", None)).result.unwrap_err();
            let text = "ResponseError: Unsupported return type from Python function";
            assert_eq!((error.kind.as_str(), error.message.as_str()), ("ResponseError", text), "{name}");
            let report = lane(shard, run(execution, "return undefined", None));
            assert!(report.entered.is_some() && report.response.is_none(), "{name}");
            assert_eq!(report.result.unwrap_err().message, "NameError: name 'undefined' is not defined", "{name}");
            let long = lane(shard, run(Execution::Deferred, "return b'x' * (65 << 20)", None));
            if name == "deferred" {
                assert_eq!(long.result.unwrap_err().kind, "LimitError");
            }
        }
    });
}

#[test]
fn a_generator_is_streamed_while_it_runs() {
    on_shard(|shard| {
        let body = "def pieces():\n    for n in range(100):\n        yield f'{n},'\n    \
            api.info('made')\nreturn pieces(), 206, {'Content-Type': 'text/csv'}";
        for (name, lane, execution) in STREAMING {
            let slot = Slot::taking(1000);
            let report = lane(shard, run(execution, body, Some(slot.clone())));
            report.result.unwrap_or_else(|e| panic!("{name}: {} {}", e.message, e.traceback));
            assert_eq!(report.response.unwrap().body, None, "{name}: what was streamed is not sent again");
            let expected: String = (0..100).map(|n| format!("{n},")).collect();
            assert_eq!(slot.text(), expected, "{name}");
            let head = slot.head.lock().clone().unwrap();
            assert_eq!((head.status, head.headers[0].1.as_str()), (206, "text/csv"), "{name}");
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO made"], "{name}");
        }
    });
}

#[test]
fn long_pieces_are_cut_and_arrive_whole() {
    on_shard(|shard| {
        for (name, lane, execution) in STREAMING {
            let slot = Slot::taking(1000);
            let body = "return iter(['a' * 200_000, 'b', 'c' * 70_000])";
            lane(shard, run(execution, body, Some(slot.clone()))).result.unwrap();
            let expected = format!("{}b{}", "a".repeat(200_000), "c".repeat(70_000));
            assert_eq!(slot.text(), expected, "{name}");
            assert!(slot.pieces.lock().iter().all(|piece| piece.len() <= 64 * 1024), "{name}");
        }
    });
}

#[test]
fn a_generator_whose_reader_goes_is_closed_and_its_run_is_good() {
    on_shard(|shard| {
        let body = "def pieces():\n    try:\n        while True:\n            yield 'x'\n    \
            finally:\n        api.info('closed')\nreturn pieces()";
        for (name, lane, execution) in STREAMING {
            let slot = Slot::taking(3);
            let report = lane(shard, run(execution, body, Some(slot)));
            report.result.unwrap_or_else(|e| panic!("{name}: {} {}", e.message, e.traceback));
            let lines = shard.host.lines_of(report.request.run_id);
            assert!(lines[0].starts_with("INFO the client hung up after "), "{name}: {lines:?}");
            assert_eq!(lines[1..], ["INFO closed"], "{name}");
        }
    });
}

#[test]
fn a_generator_that_fails_fails_its_run() {
    on_shard(|shard| {
        for (name, lane, execution) in STREAMING {
            let slot = Slot::taking(1000);
            let body = "def pieces():\n    yield 'x'\n    raise KeyError('late')\nreturn pieces()";
            let report = lane(shard, run(execution, body, Some(slot.clone())));
            assert_eq!(report.result.unwrap_err().message, "KeyError: 'late'", "{name}");
            assert_eq!((slot.text().as_str(), slot.begun.load(Ordering::SeqCst)), ("x", true), "{name}");

            let slot = Slot::taking(1000);
            let body = "def pieces():\n    raise KeyError('early')\n    yield\nreturn pieces()";
            lane(shard, run(execution, body, Some(slot.clone()))).result.unwrap_err();
            assert!(!slot.begun.load(Ordering::SeqCst), "{name}: an early failure can be an answer of its own");
        }
    });
}

#[test]
fn a_reader_that_takes_nothing_holds_its_run_until_the_deadline() {
    on_shard(|shard| {
        for (name, lane, execution) in STREAMING {
            let slot = Arc::new(Slot { takes: 2, stays: true, ..Slot::default() });
            let body = "def pieces():\n    while True:\n        yield 'x'\nreturn pieces()";
            let request =
                RunRequest { deadline: Duration::from_millis(300), ..run(execution, body, Some(slot.clone())) };
            let began = Instant::now();
            let report = lane(shard, request);
            assert_eq!(report.result.unwrap_err().kind, "PluginTimeout", "{name}");
            assert!(began.elapsed() < Duration::from_secs(20), "{name}");
            assert!(slot.pieces.lock().len() == 2, "{name}");
        }
    });
}

#[test]
fn inline_a_generator_moves_the_run_or_is_collected() {
    on_shard(|shard| {
        let body = "return (f'{n},' for n in range(3))";
        let slot = Slot::taking(1000);
        let report = shard.inline(run(Execution::Auto, body, Some(slot.clone())));
        assert_eq!(report.unwound, Some(Unwound::Blocked("a streamed answer".into())));
        assert!(!slot.begun.load(Ordering::SeqCst));
        let report = shard.inline(run(Execution::Inline, body, Some(slot.clone())));
        assert_eq!(answer(report).2, b"0,1,2,");
        assert!(!slot.begun.load(Ordering::SeqCst));
        let report = shard.deferred(run(Execution::Auto, body, Some(slot)));
        assert_eq!(report.reached.as_deref(), Some("a streamed answer"), "so that it does not earn the inline lane");
    });
}

#[test]
fn a_plugin_without_the_function_says_how_it_should_be() {
    on_shard(|shard| {
        let request = request(Code::text("x = 1\n"), vec![]);
        let report = shard.deferred(RunRequest { event: RunEvent::Request(Arc::new(asked(None))), ..request });
        let message = report.result.unwrap_err().message;
        assert!(message.starts_with("the process_request function is not present in the plugin."), "{message}");
        assert!(report.entered.is_none());
    });
}

/// The run as a test run, whose words go to a host of its own.
fn tested(id: TriggerId, request: RunRequest) -> (RunRequest, Arc<Host>) {
    let host = Arc::new(Host::default());
    let mut def = request.trigger.def.clone();
    def.id = id;
    let trigger = Arc::new(Trigger { def, code: request.trigger.code.clone() });
    (RunRequest { trigger, test_host: Some(host.clone()), ..request }, host)
}

#[test]
fn a_test_run_is_caught_and_has_caches_of_its_own() {
    on_shard(|shard| {
        let body = "api.info('own', api.cache.get('n'), 'global', api.cache.get('g', use_global=True))\n\
            api.cache.put('n', 1)\napi.cache.put('g', 2, use_global=True)\n\
            class L:\n    def build(self):\n        return 'm f=1'\napi.write(L())\napi.write(L())\nreturn ''";
        for (name, lane) in [("deferred", Shard::deferred as Lane), ("process", Shard::process)] {
            let ids = [TriggerId::of_test(u64::MAX), TriggerId::of_test(u64::MAX), TriggerId::of_test(1)];
            let mut said = Vec::new();
            for id in ids {
                let (request, host) = tested(id, run(Execution::Deferred, body, None));
                let run_id: RunId = request.run_id;
                let report = lane(shard, request);
                report.result.unwrap_or_else(|e| panic!("{name}: {} {}", e.message, e.traceback));
                assert_eq!(report.writes.len(), 2, "{name}: each call by itself");
                assert!(shard.host.all_of(run_id).is_empty(), "{name}: nothing goes to the process's host");
                said.extend(host.lines_of(run_id));
            }
            let empty = "INFO own None global None";
            assert_eq!(said, [empty, "INFO own 1 global 2", empty], "{name}");
            let looks = "api.info('own', api.cache.get('n'), 'global', api.cache.get('g', use_global=True))\nreturn ''";
            let report = lane(shard, run(Execution::Deferred, looks, None));
            assert_eq!(shard.host.lines_of(report.request.run_id), [empty], "{name}: nor do tests share real caches");
        }
    });
}
