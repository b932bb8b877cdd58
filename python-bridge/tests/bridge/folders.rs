//! Plugins that are folders: each runs its own code, from the snapshot of its version, whatever it and others are called.

use std::sync::Arc;

use saltus_core::ids::TriggerId;
use saltus_core::ports::{RunEvent, RunRequest, ScheduledCall, Trigger};
use saltus_core::request::PluginRequest;

use crate::host::Code;
use crate::{Shard, on_shard, request};

/// Every entry function says what `name()` gives.
const ENTRIES: &str = "\ndef process_writes(api, b, a):\n    api.info(name())\ndef process_scheduled_call(api, t, a):\n    api.info(name())\ndef process_request(api, q, h, b, a):\n    api.info(name())\n    return ''\n";

/// How the code of a folder `common` may reach its own module `who`: each row is the text of its `__init__.py`.
const WAYS: &[(&str, &str)] = &[
    ("from .who import NAME", "from .who import NAME\ndef name():\n    return NAME\n"),
    ("from . import who", "from . import who\ndef name():\n    return who.NAME\n"),
    ("late, relative", "def name():\n    from .who import NAME\n    return NAME\n"),
    ("late, from .", "def name():\n    from . import who\n    return who.NAME\n"),
    ("import common.who", "import common.who\ndef name():\n    return common.who.NAME\n"),
    ("import common.who as w", "import common.who as w\ndef name():\n    return w.NAME\n"),
    ("from common import who", "from common import who\ndef name():\n    return who.NAME\n"),
    ("from common.who import *", "from common.who import *\ndef name():\n    return NAME\n"),
    ("late, by the own name", "def name():\n    import json, common.who, os\n    return common.who.NAME\n"),
    (
        "importlib, relative",
        "import importlib\ndef name():\n    return importlib.import_module('.who', __package__).NAME\n",
    ),
    (
        "importlib, by the own name",
        "import importlib\ndef name():\n    return importlib.import_module('common.who').NAME\n",
    ),
    (
        "importlib, taken out",
        "from importlib import import_module\ndef name():\n    return import_module('.who', __name__).NAME\n",
    ),
    ("__import__", "def name():\n    return __import__('common.who').who.NAME\n"),
    ("__import__, relative", "def name():\n    return __import__('who', globals(), None, ['NAME'], 1).NAME\n"),
    ("sys.modules", "import sys\nfrom . import who\ndef name():\n    return sys.modules[__name__ + '.who'].NAME\n"),
    (
        "purged from sys.modules",
        "import sys\nfrom . import who\ndef name():\n    for m in [m for m in sys.modules if m.startswith('common')]:\n        del sys.modules[m]\n    from .who import NAME\n    import common.who as w\n    assert w.NAME == NAME\n    return NAME\n",
    ),
    ("a package below", "from .sub.deep import NAME\ndef name():\n    return NAME\n"),
    ("a folder without __init__.py", "from .plain.leaf import NAME\ndef name():\n    return NAME\n"),
    (
        "pickle",
        "import pickle\nfrom .who import Thing\ndef name():\n    return pickle.loads(pickle.dumps(Thing())).name\n",
    ),
    (
        "a data class with annotations as text",
        "from __future__ import annotations\nimport dataclasses, typing\nfrom .who import Thing\n@dataclasses.dataclass\nclass D:\n    t: Thing\ndef name():\n    return typing.get_type_hints(D)['t'].name\n",
    ),
    ("importlib.reload", "import importlib\nfrom . import who\ndef name():\n    return importlib.reload(who).NAME\n"),
    ("inspect", "import inspect\nfrom . import who\ndef name():\n    return inspect.getsource(who).split(\"'\")[1]\n"),
    ("exec", "def name():\n    g = {}\n    exec('from .who import NAME', {**globals()}, g)\n    return g['NAME']\n"),
];

/// The lanes in which a way works: inline, what was imported is not imported in a run again and again.
fn lanes(way: &str) -> &'static [&'static str] {
    if way.starts_with("purged") { &["deferred"] } else { &["inline", "deferred"] }
}

fn folder(root: &str, name: &str, init: &str, says: &str) -> Code {
    let init = format!("{init}{ENTRIES}");
    let who = format!("NAME = '{says}'\nclass Thing:\n    name = NAME\n");
    let files = [
        ("__init__.py", init.as_str()),
        ("plain/leaf.py", "from ..who import NAME\n"),
        ("sub/__init__.py", ""),
        ("sub/deep.py", "from ..who import NAME as above\nfrom .beside import NAME\nassert above == NAME\n"),
        ("sub/beside.py", "from common.who import NAME\n"),
        ("who.py", who.as_str()),
    ];
    Code::folder(&format!("/nowhere/{root}/{name}"), &files)
}

fn of(trigger: u64, code: &Code, event: RunEvent) -> RunRequest {
    let plain = request(code.clone(), vec![]);
    let mut def = plain.trigger.def.clone();
    def.id = TriggerId(trigger);
    RunRequest { trigger: Arc::new(Trigger { def, code: Arc::new(code.clone()) }), event, ..plain }
}

fn asked() -> RunEvent {
    RunEvent::Request(Arc::new(PluginRequest {
        method: "GET".to_owned(),
        path: "p".into(),
        tail: None,
        query_string: String::new(),
        query: Vec::new(),
        headers: Vec::new(),
        body: bytes::Bytes::new(),
        peer: None,
        answer: None,
    }))
}

impl Shard {
    fn said_by(&mut self, lane: &str, run: RunRequest) -> String {
        let report = match lane {
            "inline" => self.inline(run),
            "deferred" => self.deferred(run),
            _ => self.process(run),
        };
        report.result.unwrap_or_else(|error| panic!("{lane}: {} {}", error.message, error.traceback));
        self.host.lines_of(report.request.run_id).join("|")
    }
}

#[test]
fn folders_of_one_name_each_run_their_own_code() {
    on_shard(|shard| {
        for (way, init) in WAYS {
            let (a, b) = (folder("a", "common", init, "a"), folder("b", "common", init, "b"));
            for lane in lanes(way) {
                for _ in 0..2 {
                    for (trigger, code, says) in [(1, &a, "INFO a"), (2, &b, "INFO b")] {
                        let run = of(trigger, code, RunEvent::Writes(Vec::new()));
                        assert_eq!(shard.said_by(lane, run), says, "{way}, {lane}");
                    }
                }
            }
        }
    });
}

#[test]
fn whatever_kind_of_event_and_in_processes_of_their_own() {
    on_shard(|shard| {
        let call = RunEvent::Schedule(ScheduledCall { scheduled_ns: 0, missed: 0, utc_offset_secs: None });
        for init in [WAYS[0].1, WAYS[8].1] {
            let (a, b) = (folder("a", "common", init, "a"), folder("b", "common", init, "b"));
            for event in [RunEvent::Writes(Vec::new()), call.clone(), asked()] {
                for lane in ["inline", "deferred", "process"] {
                    for (trigger, code, says) in [(21, &a, "INFO a"), (22, &b, "INFO b")] {
                        assert_eq!(shard.said_by(lane, of(trigger, code, event.clone())), says, "{lane}");
                    }
                }
            }
        }
    });
}

/// Two versions may be in use at a time, the older one by a run that began before; and a version may come back.
#[test]
fn versions_of_a_folder_do_not_mix() {
    on_shard(|shard| {
        // Lines of source are found by file: those of the version that was imported last.
        for (way, init) in WAYS.iter().filter(|(way, _)| *way != "inspect") {
            let versions: Vec<Code> = (0..5).map(|v| folder("v", "common", init, &format!("v{v}"))).collect();
            for at in [0, 1, 0, 2, 1, 3, 4, 0, 4] {
                for lane in lanes(way) {
                    let run = of(3, &versions[at], RunEvent::Writes(Vec::new()));
                    assert_eq!(shard.said_by(lane, run), format!("INFO v{at}"), "{way}, {lane}");
                }
            }
        }
    });
}

#[test]
fn a_folder_may_be_called_like_a_standard_module_and_shadows_nothing() {
    on_shard(|shard| {
        for name in ["json", "statistics", "logging", "random", "string", "asyncio", "my.plug-in", "class"] {
            let init = "import json, logging, random, statistics, string\nfrom .who import NAME\ndef name():\n    assert json.loads('[1]') == [1] and statistics.mean([1, 3]) == 2 and logging.INFO == 20 and string.digits\n    random.random()\n    return NAME\n";
            let files = [("__init__.py", &*format!("{init}{ENTRIES}")), ("who.py", &*format!("NAME = '{name}'\n"))];
            let code = Code::folder(&format!("/nowhere/{name}"), &files);
            let neighbour = Code::text(
                "import json, statistics, logging\ndef process_writes(api, b, a):\n    import random, string, asyncio\n    api.info(json.dumps([1]), statistics.mean([1]), random.__name__, asyncio.__name__)\n",
            );
            for lane in ["inline", "deferred"] {
                let run = |code: &Code| of(4, code, RunEvent::Writes(Vec::new()));
                assert_eq!(shard.said_by(lane, run(&code)), format!("INFO {name}"), "{lane}");
                if lane == "deferred" {
                    assert_eq!(shard.said_by(lane, run(&neighbour)), "INFO [1] 1 random asyncio", "{name}");
                }
            }
        }
        // A module of its own behind the name of a standard one.
        let init = "from json.who import NAME\nfrom json.decoder import JSONDecoder\ndef name():\n    return NAME\n";
        let files = [("__init__.py", &*format!("{init}{ENTRIES}")), ("who.py", "NAME = 'mine'\n")];
        let run = of(4, &Code::folder("/nowhere/json", &files), RunEvent::Writes(Vec::new()));
        assert_eq!(shard.said_by("deferred", run), "INFO mine");
    });
}

#[test]
fn a_version_that_cannot_be_imported_leaves_the_work_to_the_last_good_one() {
    on_shard(|shard| {
        let good = folder("f", "common", WAYS[0].1, "good");
        let bad = folder("f", "common", "from .who import MISSING\n", "bad");
        let run = |code: &Code| of(5, code, RunEvent::Writes(Vec::new()));
        assert_eq!(shard.said_by("deferred", run(&good)), "INFO good");
        let said = shard.said_by("deferred", run(&bad));
        assert!(
            said.ends_with("INFO good") && said.contains("its last good one goes on: ImportError: cannot"),
            "{said}"
        );
        assert_eq!(shard.said_by("deferred", run(&bad)), "INFO good", "it is said once");
        // The first one has nobody to leave it to; the error names modules as their author knows them.
        let report = shard.deferred(of(6, &folder("g", "common", "from .who import MISSING\n", "x"), asked()));
        let error = report.result.unwrap_err();
        assert_eq!(
            error.message,
            "ImportError: cannot import name 'MISSING' from 'common.who' (/nowhere/g/common/who.py)"
        );
        assert!(error.traceback.contains("from .who import MISSING"), "{}", error.traceback);
    });
}

#[test]
fn tracebacks_show_the_lines_that_were_executed() {
    on_shard(|shard| {
        let files = [
            ("__init__.py", "from .parts import fail\ndef process_writes(api, b, a):\n    fail(1)\n"),
            ("parts.py", "def fail(n):\n    raise KeyError(n)  # here\n"),
        ];
        let report = shard.deferred(of(7, &Code::folder("/nowhere/trace", &files), RunEvent::Writes(Vec::new())));
        let error = report.result.unwrap_err();
        assert_eq!(error.message, "KeyError: 1");
        for line in ["File \"/nowhere/trace/parts.py\", line 2, in fail", "raise KeyError(n)  # here", "    fail(1)"] {
            assert!(error.traceback.contains(line), "{line}: {}", error.traceback);
        }
    });
}
