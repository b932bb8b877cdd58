//! The deferred lane: workers, queries, the bounded queue, and shards beside each other.

use std::time::{Duration, Instant};

use crate::data::{every_kind, table};
use crate::host::Code;
use crate::{on_shard, plugin, request};

#[test]
fn a_deferred_run_sees_what_an_inline_run_sees() {
    on_shard(|shard| {
        let inline = shard.inline(request(plugin("rows.py"), vec![table("cpu", every_kind())]));
        let deferred = shard.deferred(request(plugin("rows.py"), vec![table("cpu", every_kind())]));
        deferred.result.unwrap();
        let lines = |run_id| shard.host.lines_of(run_id);
        assert_eq!(lines(deferred.request.run_id), lines(inline.request.run_id));
    });
}

#[test]
fn a_query_gives_dicts_and_its_failure_is_a_query_error() {
    on_shard(|shard| {
        let report = shard.deferred(request(plugin("queries.py"), vec![]));
        report.result.unwrap();
        assert_eq!(
            shard.host.lines_of(report.request.run_id),
            [
                "INFO [{'n': 1, 'text': 'home', 'param': 'a=b', 'at': 5000000}, \
                 {'n': None, 'text': 'SELECT 1', 'param': None, 'at': 6000000}]",
                "INFO other",
                "INFO QueryError error: no such table executing query on home: bad",
                "INFO TypeError args['n'] must be str, int, float, bool, datetime or None, not list",
            ]
        );
    });
}

#[test]
fn other_workers_run_while_one_waits_for_a_query() {
    on_shard(|shard| {
        let slow = request(Code::text("def process_writes(api, b, a): api.query('very slow')\n"), vec![]);
        let slow_id = slow.run_id;
        let begun = Instant::now();
        assert!(shard.lanes.submit(slow).is_ok());
        let quick = shard.deferred(request(Code::text("def process_writes(*a): pass\n"), vec![]));
        quick.result.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "the quick run has not waited for the slow query");
        shard.finished.wait(slow_id, Instant::now() + Duration::from_secs(20)).result.unwrap();
    });
}

#[test]
fn however_many_wait_there_is_a_worker_for_another() {
    on_shard(|shard| {
        // Twice as many as there are workers at first.
        let waits = "import socket\n\ndef process_writes(api, b, a):\n    mine, theirs = socket.socketpair()\n    \
                     mine.settimeout(15)\n    api.cache.put('theirs', theirs)\n    mine.recv(1)\n";
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let request = request(Code::text(waits), vec![]);
                let run_id = request.run_id;
                assert!(shard.lanes.submit(request).is_ok());
                run_id
            })
            .collect();
        let quick = shard.deferred(request(Code::text("def process_writes(*a): pass\n"), vec![]));
        quick.result.unwrap();
        assert!(waiting.iter().all(|run_id| !shard.finished.has(*run_id)), "they were done before the quick one");
        for run_id in waiting {
            let report = shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60));
            assert!(report.result.unwrap_err().message.contains("timed out"));
        }
    });
}

#[test]
fn a_full_queue_gives_the_request_back() {
    on_shard(|shard| {
        let slow = || request(Code::text("def process_writes(api, b, a): api.query('slow')\n"), vec![]);
        let mut accepted = Vec::new();
        let refused = loop {
            let request = slow();
            let run_id = request.run_id;
            match shard.lanes.submit(request) {
                Ok(()) => accepted.push(run_id),
                Err(refused) => break *refused,
            }
        };
        assert!(!accepted.contains(&refused.run_id));
        assert!((8..=24).contains(&accepted.len()), "8 wait and 2 to 16 run, not {}", accepted.len());
        for run_id in accepted {
            shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60)).result.unwrap();
        }
    });
}

#[test]
fn two_shards_have_interpreters_of_their_own() {
    let shards: Vec<_> = (0..2)
        .map(|_| {
            std::thread::spawn(|| {
                on_shard(|shard| {
                    let source = "def process_writes(api, b, a):\n    n = api.cache.get('n', 0) + 1\n    \
                                  api.cache.put('n', n)\n    sum(range(1000))\n    api.info(n)\n";
                    let mut last = Vec::new();
                    for _ in 0..200 {
                        let report = shard.inline(request(Code::text(source), vec![]));
                        report.result.unwrap();
                        last = shard.host.lines_of(report.request.run_id);
                    }
                    last
                })
            })
        })
        .collect();
    for shard in shards {
        assert_eq!(shard.join().unwrap(), ["INFO 200"]);
    }
}
