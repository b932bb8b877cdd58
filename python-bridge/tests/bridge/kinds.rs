//! Events of every kind in every lane (reference, 1.2): which function is called, and with what.

use std::sync::Arc;

use saltus_core::ports::{RunEvent, RunReport, RunRequest, ScheduledCall};
use saltus_core::request::PluginRequest;
use saltus_core::trigger::TriggerKind;

use crate::host::Code;
use crate::{Shard, on_shard, request};

/// 2026-07-01 12:34:56.000789 UTC.
const CALLED_NS: i64 = 1_782_909_296_000_789_000;

fn run(source: &str, event: RunEvent) -> RunRequest {
    RunRequest { event, ..request(Code::text(source), vec![]) }
}

fn scheduled(utc_offset_secs: Option<i32>) -> RunEvent {
    RunEvent::Schedule(ScheduledCall { scheduled_ns: CALLED_NS, missed: 3, utc_offset_secs })
}

fn asked(query: &[(&str, &str)], body: &'static [u8]) -> RunEvent {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    RunEvent::Request(Arc::new(PluginRequest {
        method: "POST".to_owned(),
        path: "p".into(),
        tail: None,
        query_string: String::new(),
        query: pairs(query),
        headers: pairs(&[("content-type", "text/plain"), ("x-n", "1"), ("x-n", "2")]),
        body: body.into(),
        peer: None,
        answer: None,
    }))
}

/// What the plugin said in each of the lanes, without level.
fn said_in_every_lane(shard: &mut Shard, source: &str, event: &RunEvent) -> [Vec<String>; 3] {
    reports(shard, source, event).map(|report| {
        report.result.unwrap_or_else(|e| panic!("{} {}", e.message, e.traceback));
        let lines = shard.host.lines_of(report.request.run_id);
        lines.iter().map(|line| line.trim_start_matches("INFO ").to_owned()).collect()
    })
}

fn reports(shard: &mut Shard, source: &str, event: &RunEvent) -> [RunReport; 3] {
    let run = || run(source, event.clone());
    [shard.inline(run()), shard.deferred(run()), shard.process(run())]
}

#[test]
fn a_scheduled_call_has_a_time_in_seconds_and_the_event_the_exact_one() {
    on_shard(|shard| {
        let source = "def process_scheduled_call(api, call_time, args):\n    e = api.event\n    api.info(call_time.isoformat(), call_time.tzinfo, args)\n    api.info(e.kind, e.scheduled_time_ns, e.scheduled_time, e.missed, e.id)\n";
        for said in said_in_every_lane(shard, source, &scheduled(Some(2 * 3600))) {
            let exact = format!("schedule {CALLED_NS} 2026-07-01T14:34:56.000789+02:00 3 7-at-{CALLED_NS}");
            assert_eq!(said, ["2026-07-01T14:34:56+02:00 UTC+02:00 None", &exact]);
        }
        // Without a zone of the trigger's, it is the server's local time, and the text is in UTC.
        let local = "def process_scheduled_call(api, call_time, args):\n    api.info(call_time.timestamp(), api.event.scheduled_time)\n";
        for said in said_in_every_lane(shard, local, &scheduled(None)) {
            assert_eq!(said, [format!("{}.0 2026-07-01T12:34:56.000789Z", CALLED_NS / 1_000_000_000)]);
        }
    });
}

/// With a time zone of the trigger's `call_time` is aware: the window that is made of it is the right one, wherever the server is.
#[test]
fn the_call_time_of_a_trigger_with_a_time_zone_is_aware() {
    on_shard(|shard| {
        let source = "import datetime
def process_scheduled_call(api, call_time, args):
    hour = call_time - datetime.timedelta(hours=1)
    said = [row['param'] for row in api.query('params', {'b': call_time, 'a': hour})]
    api.info(call_time.isoformat(), call_time.fold, call_time.astimezone(datetime.UTC).isoformat(), *said)
";
        // The hour that comes twice, and the one that does not exist.
        for (second, zone, offset, said) in [
            (
                1_782_909_296_i64,
                "America/New_York",
                -4 * 3600,
                "2026-07-01T08:34:56-04:00 0 2026-07-01T12:34:56+00:00 b=Timestamp(1782909296000000000) a=Timestamp(1782905696000000000)",
            ),
            (
                1_792_888_200,
                "Europe/Berlin",
                2 * 3600,
                "2026-10-25T02:30:00+02:00 0 2026-10-25T00:30:00+00:00 b=Timestamp(1792888200000000000) a=Timestamp(1792884600000000000)",
            ),
            (
                1_792_891_800,
                "Europe/Berlin",
                3600,
                "2026-10-25T02:30:00+01:00 1 2026-10-25T01:30:00+00:00 b=Timestamp(1792891800000000000) a=Timestamp(",
            ),
            // A zone that this Python does not have, or has otherwise: the offset is what the schedule went by.
            (
                1_782_909_296,
                "Mars/Olympus",
                5400,
                "2026-07-01T14:04:56+01:30 0 2026-07-01T12:34:56+00:00 b=Timestamp(1782909296000000000) a=Timestamp(1782905696000000000)",
            ),
        ] {
            let event = RunEvent::Schedule(ScheduledCall {
                scheduled_ns: second * 1_000_000_000,
                missed: 0,
                utc_offset_secs: Some(offset),
            });
            let make = || {
                let plain = run(source, event.clone());
                let mut def = plain.trigger.def.clone();
                def.timing.time_zone = Some(zone.to_owned());
                let code = plain.trigger.code.clone();
                RunRequest { trigger: Arc::new(saltus_core::ports::Trigger { def, code }), ..plain }
            };
            for report in [shard.deferred(make()), shard.process(make())] {
                report.result.unwrap_or_else(|e| panic!("{} {}", e.message, e.traceback));
                let lines = shard.host.lines_of(report.request.run_id);
                assert!(lines[0].starts_with(&format!("INFO {said}")), "{zone}: {lines:?}");
            }
            // An interval is real time.
            let plain = make();
            let mut def = plain.trigger.def.clone();
            def.spec = saltus_core::trigger::TriggerSpec::Every(std::time::Duration::from_secs(3600));
            let trigger = Arc::new(saltus_core::ports::Trigger { def, code: plain.trigger.code.clone() });
            let every = || RunRequest { trigger: trigger.clone(), ..make() };
            for report in [shard.deferred(every()), shard.process(every())] {
                let lines = shard.host.lines_of(report.request.run_id);
                assert!(lines[0].ends_with(&format!("a=Timestamp({})", (second - 3600) * 1_000_000_000)), "{lines:?}");
            }
            let inline = "def process_scheduled_call(api, call_time, args):\n    api.info(call_time.isoformat())\n";
            let plain = run(inline, event.clone());
            let mut def = plain.trigger.def.clone();
            def.timing.time_zone = Some(zone.to_owned());
            let code = plain.trigger.code.clone();
            let report =
                shard.inline(RunRequest { trigger: Arc::new(saltus_core::ports::Trigger { def, code }), ..plain });
            report.result.unwrap_or_else(|e| panic!("{} {}", e.message, e.traceback));
            let lines = shard.host.lines_of(report.request.run_id);
            assert_eq!(lines, [format!("INFO {}", said.split(' ').next().unwrap())]);
        }
    });
}

#[test]
fn a_request_brings_parameters_headers_and_body_and_its_answer_goes_back() {
    on_shard(|shard| {
        let source = "def process_request(api, query, headers, body, args):\n    api.info(api.event.kind, api.event.id)\n    return f'{query} {headers} {body!r} {args}'\n";
        let event = asked(&[("a", "1"), ("b", "x y"), ("a", "2")], b"\x00\xff");
        for report in reports(shard, source, &event) {
            let response = report.response.expect("a request is answered");
            let text = String::from_utf8(response.body.expect("it is whole").to_vec()).unwrap();
            let expected = r"{'a': '2', 'b': 'x y'} {'content-type': 'text/plain', 'x-n': '2'} b'\x00\xff' None";
            assert_eq!((response.head.status, text.as_str()), (200, expected));
            assert_eq!(shard.host.lines_of(report.request.run_id), ["INFO request None"]);
        }
        let large: &'static [u8] = Vec::leak(vec![b'x'; 5_000_000]);
        let echo = "def process_request(api, query, headers, body, args):\n    return body.decode()\n";
        for report in reports(shard, echo, &asked(&[], large)) {
            assert!(report.response.expect("answered").body.expect("it is whole") == large);
        }
    });
}

#[test]
fn a_missing_entry_function_is_told_in_the_references_words() {
    on_shard(|shard| {
        for (event, kind) in [
            (RunEvent::Writes(Vec::new()), TriggerKind::Write),
            (scheduled(None), TriggerKind::Schedule),
            (asked(&[], b""), TriggerKind::Request),
        ] {
            for report in reports(shard, "X = 1\n", &event) {
                let error = report.result.expect_err("there is no such function");
                assert_eq!((error.message.as_str(), error.traceback.as_str()), (kind.entry_missing(), ""));
                assert!(report.response.is_none());
            }
        }
        assert!(TriggerKind::Request.entry_missing().ends_with("args=None) -> Tuple[str, Optional[Dict[str, str]]]"));
    });
}

#[test]
fn a_plugin_for_all_kinds_keeps_its_functions_apart() {
    on_shard(|shard| {
        // Nobody can tell whether the globals of this file are kept, so they are: one function must not stand for another.
        let source = "def process_writes(api, batches, args):\n    api.info('writes')\n\ndef process_scheduled_call(api, time, args):\n    api.info('call')\n\ndef process_request(api, query, headers, body, args):\n    api.info('request')\n    return ''\n";
        for _ in 0..2 {
            for (event, word) in
                [(RunEvent::Writes(Vec::new()), "writes"), (scheduled(None), "call"), (asked(&[], b""), "request")]
            {
                assert_eq!(said_in_every_lane(shard, source, &event), [[word], [word], [word]]);
            }
        }
    });
}
