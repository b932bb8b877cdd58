//! The shelf of evil plugins, `pytests/evil`, in every lane. Each file says at its head what becomes of its run:
//!
//! - the kind of an error, `ok`, or several of those that chance decides between, with `|`;
//! - `unwound` and why: the run is discarded, to be run deferred;
//! - `barred`: the static check keeps it out of the inline lane, where nothing could stop it. The run is not made;
//! - `refused`: with `--python-hardened`, which these tests have, it needs a process of its own;
//! - `unshared`: the lane promises nothing, as the plugin harms only what it has for itself or was put there by its operator;
//!
//! Whatever becomes of it, an innocent plugin runs in the same interpreters before and afterwards, and the process is as it was.

use std::time::{Duration, Instant};

use saltus_core::policy::Lane;
use saltus_core::ports::{PluginError, RunReport, RunRequest, Unwound};
use saltus_core::trigger::{Execution, Isolation, Limits};

use crate::host::Code;
use crate::{Shard, on_shard, request};

const INLINE_LIMIT: Duration = Duration::from_millis(50);
/// Long enough for what ends by itself, on a machine that does something else as well.
const LIMIT: Duration = Duration::from_millis(1_500);
const MEMORY_LIMIT: u64 = 16 << 20;

/// What plugins rely on.
const INNOCENT: &str = "import json\nimport logging\nimport os\nimport threading\n\ndef process_writes(api, batches, args):\n    \
                        assert len(json.dumps({'a': [1]})) == 10\n    logging.getLogger('innocent').warning('x')\n    \
                        print('printed')\n    line = LineBuilder('t').int64_field('n', 1)\n    api.write(line)\n    \
                        threading.current_thread().name\n    assert api.cache.get('mine') in (None, 5)\n    \
                        api.cache.put('mine', 5)\n";

struct Evil {
    name: String,
    code: String,
}

impl Evil {
    fn outcome(&self, lane: &str) -> Vec<&str> {
        let line = self.code.lines().find_map(|line| line.strip_prefix(lane)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{} says nothing of {lane}", self.name)).split('|').collect()
    }
}

fn shelf() -> Vec<Evil> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pytests/evil");
    let mut shelf: Vec<Evil> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "py"))
        .map(|path| Evil {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            code: std::fs::read_to_string(&path).unwrap(),
        })
        .collect();
    shelf.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(shelf.len() >= 25, "the shelf is there");
    shelf
}

fn run_of(code: &str, lane: Lane, deadline: Duration) -> RunRequest {
    let plain = request(Code::text(code), vec![]);
    // Little, so that whoever wants all there is meets it soon.
    let limits = Limits { memory_bytes: MEMORY_LIMIT, ..plain.limits };
    let request = RunRequest { deadline, lane, limits, ..plain };
    let mut def = request.trigger.def.clone();
    def.execution = if lane == Lane::Inline { Execution::Auto } else { Execution::Deferred };
    def.isolation = if lane == Lane::Process { Isolation::Process } else { Isolation::Auto };
    // A cache of its own: by its code.
    def.id = saltus_core::ids::TriggerId(1 + request.trigger.code.current().hash % 1_000_000);
    let code = request.trigger.code.clone();
    RunRequest { trigger: std::sync::Arc::new(saltus_core::ports::Trigger { def, code }), ..request }
}

fn became(report: &RunReport) -> String {
    match (&report.unwound, &report.result) {
        (Some(Unwound::Overran), _) => "unwound overran".to_owned(),
        (Some(Unwound::Blocked(_)), _) => "unwound blocked".to_owned(),
        (Some(_), _) => "unwound".to_owned(),
        (None, Ok(())) => "ok".to_owned(),
        (None, Err(error)) if error.refused_import().is_some() => "refused".to_owned(),
        (None, Err(PluginError { kind, .. })) => kind.clone(),
    }
}

fn innocent(shard: &mut Shard, lane: Lane, when: &str) {
    // The interpreter may have been given up since: then the run is to be made again.
    for _ in 0..3 {
        let report = make(shard, INNOCENT, lane, Duration::from_secs(20));
        if report.unwound.is_some() {
            continue;
        }
        return report.result.unwrap_or_else(|error| panic!("{when}: {error:?}"));
    }
    panic!("{when}: the innocent plugin is discarded again and again");
}

fn make(shard: &mut Shard, code: &str, lane: Lane, deadline: Duration) -> RunReport {
    let request = run_of(code, lane, deadline);
    if lane == Lane::Inline {
        return shard.inline(request);
    }
    let run_id = request.run_id;
    assert!(shard.lanes.submit(request).is_ok(), "the queue has room");
    shard.finished.wait(run_id, Instant::now() + Duration::from_secs(60))
}

/// What a plugin could have changed of the process.
fn process() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kept = ["Umask", "Uid", "Gid", "SigCgt", "SigIgn", "Cpus_allowed_list"];
    let mut state: Vec<String> =
        status.lines().filter(|line| kept.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect();
    state.push(std::env::current_dir().unwrap().display().to_string());
    state.push(format!("{:?} {:?}", std::env::var("PATH"), std::env::var("HOME")));
    for fd in 0..3 {
        state.push(
            std::fs::read_link(format!("/proc/self/fd/{fd}"))
                .map_or_else(|e| e.to_string(), |p| p.display().to_string()),
        );
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    state.extend(limits.lines().map(str::to_owned));
    state
}

fn all_in(lane: Lane) {
    on_shard(move |shard| {
        innocent(shard, lane, "before all");
        let before = process();
        for evil in shelf() {
            let expected = evil.outcome(lane.as_str());
            if expected == ["unshared"] {
                continue;
            }
            if expected == ["barred"] {
                let verdict = make(shard, &evil.code, Lane::Process, LIMIT).code.expect("it was checked");
                assert!(verdict.inline.is_err(), "{}: the static check lets it in", evil.name);
                continue;
            }
            let limit = if lane == Lane::Inline { INLINE_LIMIT } else { LIMIT };
            let report = make(shard, &evil.code, lane, limit);
            let became = became(&report);
            assert!(
                expected.contains(&became.as_str()),
                "{}: {became}, not {expected:?}: {:?}",
                evil.name,
                report.result
            );
            innocent(shard, lane, &evil.name);
            assert_eq!(process(), before, "{} has changed the process", evil.name);
        }
    });
}

#[test]
fn evil_plugins_inline() {
    all_in(Lane::Inline);
}

#[test]
fn evil_plugins_deferred() {
    all_in(Lane::Deferred);
}

#[test]
fn evil_plugins_in_a_process() {
    all_in(Lane::Process);
}
