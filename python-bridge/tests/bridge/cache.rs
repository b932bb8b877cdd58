//! `influxdb3_local.cache` (reference, 1.6), in every lane.

use std::time::{Duration, Instant};

use saltus_core::ids::TriggerId;
use saltus_core::ports::{RunRequest, Unwound};
use saltus_core::trigger::Execution;

use crate::api::with_trigger;
use crate::host::Code;
use crate::{on_shard, request, runtime};

fn of_trigger(id: u64, source: &str) -> RunRequest {
    with_trigger(request(Code::text(source), vec![]), |def| def.id = TriggerId(id))
}

#[test]
fn a_live_object_is_the_same_object_in_the_next_run() {
    on_shard(|shard| {
        let put = "import threading\nclass Live: pass\ndef process_writes(api, b, a):\n    live = Live()\n    live.lock, live.items = threading.Lock(), []\n    \
                   api.cache.put('live', live)\n    assert api.cache.get('live') is live\n    live.items.append(1)\n    api.info(id(live))\n";
        let get = "def process_writes(api, b, a):\n    live = api.cache.get('live')\n    assert live.items == [1] and not live.lock.locked()\n    api.info(id(live))\n";
        let first = shard.everywhere(|| of_trigger(70, put));
        let second = shard.everywhere(|| of_trigger(70, get));
        for (first, second) in first.iter().zip(&second) {
            assert_eq!(shard.said(first), shard.said(second));
        }
    });
}

#[test]
fn misses_defaults_none_and_deletes_are_those_of_the_reference() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    c = api.cache\n    assert c.get('x') is None and c.get('x', 5) == 5 and c.get(key='x', default=6) == 6\n    \
                      assert c.put('x', None) is None\n    assert c.get('x', 5) is None\n    assert c.delete('x') is True and c.delete('x') is False\n    \
                      c.put('x', 1, ttl=0)\n    assert c.get('x', 'gone') == 'gone'\n    c.put('x', 1, ttl=0)\n    \
                      assert c.delete('x') is True, 'expired and not read yet'\n    c.put('x', 1, 100)\n    c.put('x', 2)\n    assert c.get('x') == 2\n    \
                      c.put('y', 'v', ttl=30, use_global=False)\n    assert c.get('y', use_global=None) == 'v'\n";
        for report in shard.everywhere(|| of_trigger(71, source)) {
            shard.said(&report);
        }
    });
}

#[test]
fn refusals_of_the_cache_have_the_words_of_the_reference() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    c = api.cache\n    for call in (lambda: c.put('k', 1, ttl=-1), lambda: c.put('k', 1, ttl=float('nan')), \
                      lambda: c.put('k', 1, ttl=1e30), lambda: c.put(1, 1), lambda: c.get(1), lambda: c.delete(None), lambda: c.put('k', 1, ttl='x'), \
                      lambda: c.put('k'), lambda: c.put('k', 1, use_global=1)):\n        try:\n            call()\n        except Exception as e:\n            \
                      api.info(type(e).__name__, e)\n    assert c.get('k') is None\n";
        let too_big = "INFO ValueError cannot convert float seconds to Duration: value is either too big or NaN";
        for report in shard.everywhere(|| of_trigger(72, source)) {
            assert_eq!(
                shard.said(&report),
                [
                    "INFO ValueError cannot convert float seconds to Duration: value is negative",
                    too_big,
                    too_big,
                    "INFO TypeError key must be str, not int",
                    "INFO TypeError key must be str, not int",
                    "INFO TypeError key must be str, not NoneType",
                    "INFO TypeError must be real number, not str",
                    "INFO TypeError put() missing required argument 'value'",
                    "INFO TypeError argument 'use_global': 'int' object cannot be converted to 'PyBool'",
                ]
            );
        }
    });
}

#[test]
fn an_entry_expires_by_the_systems_clock() {
    on_shard(|shard| {
        let put = "def process_writes(api, b, a):\n    api.cache.put('short', [1], ttl=0.05)\n    api.cache.put('long', [1], ttl=60)\n";
        let get = "def process_writes(api, b, a):\n    api.info(api.cache.get('short'), api.cache.get('long'))\n";
        for report in shard.everywhere(|| of_trigger(73, put)) {
            shard.said(&report);
        }
        std::thread::sleep(Duration::from_millis(60));
        for report in shard.everywhere(|| of_trigger(73, get)) {
            assert_eq!(shard.said(&report), ["INFO None [1]"]);
        }
    });
}

#[test]
fn triggers_do_not_see_each_others_entries() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.info(api.cache.get('k'))\n    api.cache.put('k', 1)\n";
        for id in [74, 75] {
            for report in shard.everywhere(|| of_trigger(id, source)) {
                assert_eq!(shard.said(&report), ["INFO None"]);
            }
        }
    });
}

#[test]
fn a_plain_value_of_the_global_cache_is_seen_in_every_lane_by_every_trigger_and_is_the_same_object_at_home() {
    on_shard(|shard| {
        let put = "def process_writes(api, b, a):\n    value = {'n': [1, (2,)], 's': {3}}\n    api.cache.put('config', value, use_global=True)\n    \
                   assert api.cache.get('config', use_global=True) is value\n    assert api.cache.get('config') is None\n";
        let get = "def process_writes(api, b, a):\n    first = api.cache.get('config', use_global=True)\n    api.info(first)\n    \
                   assert first is None or api.cache.get('config', use_global=True) is first\n";
        let report = shard.process(of_trigger(76, put));
        shard.said(&report);
        for report in shard.everywhere(|| of_trigger(77, get)) {
            assert_eq!(shard.said(&report), ["INFO {'n': [1, (2,)], 's': {3}}"]);
        }
        let newer = "def process_writes(api, b, a):\n    api.cache.put('config', 'newer', use_global=True)\n";
        let report = shard.deferred(of_trigger(78, newer));
        shard.said(&report);
        for report in shard.everywhere(|| of_trigger(76, get)) {
            assert_eq!(shard.said(&report), ["INFO newer"]);
        }
        let delete = "def process_writes(api, b, a):\n    api.info(api.cache.delete('config', use_global=True), api.cache.delete('config', use_global=True))\n";
        let report = shard.process(of_trigger(77, delete));
        assert_eq!(shard.said(&report), ["INFO True False"]);
        for report in shard.everywhere(|| of_trigger(76, get)) {
            assert_eq!(shard.said(&report), ["INFO None"]);
        }
    });
}

#[test]
fn a_live_object_of_the_global_cache_is_seen_by_all_triggers_of_its_interpreter_and_hides_older_plain_values() {
    on_shard(|shard| {
        let plain = "def process_writes(api, b, a):\n    api.cache.put('conn', 'old', use_global=True)\n";
        let live = "class Live: pass\ndef process_writes(api, b, a):\n    live = Live()\n    api.cache.put('conn', live, use_global=True)\n    api.info(id(live))\n";
        let get = "def process_writes(api, b, a):\n    found = api.cache.get('conn', use_global=True)\n    api.info(found if found is None else id(found))\n";
        let report = shard.process(of_trigger(80, plain));
        shard.said(&report);
        let put = shard.deferred(of_trigger(81, live));
        let seen = shard.deferred(of_trigger(82, get));
        assert_eq!(shard.said(&put), shard.said(&seen));
        let elsewhere = shard.process(of_trigger(80, get)).result.unwrap_err().message;
        assert!(
            elsewhere.contains("'conn' in the global cache is a live object in the interpreter in which trigger"),
            "{elsewhere}"
        );
        assert!(
            elsewhere.contains("a trigger in a process of its own cannot have it; or put plain values"),
            "{elsewhere}"
        );
        let delete = "def process_writes(api, b, a):\n    api.info(api.cache.delete('conn', use_global=True), api.cache.get('conn', use_global=True))\n";
        let report = shard.deferred(of_trigger(81, delete));
        assert_eq!(shard.said(&report), ["INFO True None"]);
    });
}

#[test]
fn a_global_value_expires_for_all() {
    on_shard(|shard| {
        let put = "def process_writes(api, b, a):\n    api.cache.put('g', 1, ttl=0.05, use_global=True)\n";
        let get = "def process_writes(api, b, a):\n    api.info(api.cache.get('g', 'gone', use_global=True))\n";
        let report = shard.deferred(of_trigger(83, put));
        shard.said(&report);
        std::thread::sleep(Duration::from_millis(60));
        for report in shard.everywhere(|| of_trigger(84, get)) {
            assert_eq!(shard.said(&report), ["INFO gone"]);
        }
    });
}

#[test]
fn inline_the_global_cache_is_left_to_those_who_were_told_to_run_there() {
    on_shard(|shard| {
        let source = "def process_writes(api, b, a):\n    api.cache.get('g', use_global=True)\n";
        let auto = with_trigger(of_trigger(85, source), |def| def.execution = Execution::Auto);
        let report = shard.inline(auto);
        assert_eq!(report.unwound, Some(Unwound::Blocked("the global cache".into())));
    });
}

#[test]
fn a_forgotten_trigger_begins_with_an_empty_cache_in_every_lane() {
    on_shard(|shard| {
        let source =
            "def process_writes(api, b, a):\n    api.info(api.cache.get('k'))\n    api.cache.put('k', object())\n";
        for said in [["INFO None"], ["INFO None"]] {
            for report in shard.everywhere(|| of_trigger(86, source)) {
                assert_eq!(shard.said(&report), said);
            }
            shard.lanes.forget(TriggerId(86));
        }
    });
}

#[test]
fn an_idle_worker_leaves_its_cache_to_the_next_one() {
    on_shard(|shard| {
        let source = "import os\ndef process_writes(api, b, a):\n    api.info(os.getpid())\n    api.info(api.cache.get('plain'), api.cache.get('live') is not None)\n    \
                      api.cache.put('plain', [1, 'x'])\n    api.cache.put('live', object())\n";
        let mut pids = Vec::new();
        for said in ["INFO None False", "INFO [1, 'x'] True", "INFO [1, 'x'] False"] {
            if pids.len() == 2 {
                let alive = || runtime().0.process_counts().alive > 0;
                let until = Instant::now() + Duration::from_secs(20);
                while alive() {
                    assert!(Instant::now() < until, "an idle worker is ended");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            let report = shard.process(of_trigger(87, source));
            let lines = shard.said(&report);
            pids.push(lines[0].clone());
            assert_eq!(lines[1], said);
        }
        assert!(pids[0] == pids[1] && pids[1] != pids[2]);
        assert!(runtime().0.cache_counts().vault.live >= 1);
    });
}
