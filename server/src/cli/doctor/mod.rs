//! `saltus doctor`: what this machine does to a database with one thread per core, and what to do about it.
//!
//! Each check is a function from a [`Subject`] to findings; a [`Finding`] says what was found, why it matters and, if it is not well,
//! the command that mends it. Two checks try the real thing through the server's own code: a ring is set up, and the log's way of
//! writing is measured in the data directory. What a container hides is an outcome of its own and never a failure.
//!
//! Exit status: 1 if anything is `FAIL`, that is if `saltus serve` with these options would not start or not keep what it
//! acknowledges; warnings cost latency.

mod clock;
mod cpus;
mod devices;
mod disk;
mod host;
mod kernel;
mod memory;
mod python;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{CliError, say};
use crate::config::env::Env;
use crate::config::layers::{Layer, Text};
use crate::config::{Config, Machine};
use host::Host;

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The data directory, as for serve
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Cores of the shards, as for serve
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// How many shards, as for serve
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// The directory of plugins, as for serve
    #[arg(long, value_name = "DIR")]
    plugin_dir: Option<String>,
    /// The virtual environment of plugins, as for serve
    #[arg(long, value_name = "DIR")]
    virtual_env_location: Option<String>,
    /// The configuration file, as for serve
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Network interfaces that clients come by; default: all that have a device
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    interface: Vec<String>,
    /// How to write the result
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// Where sysfs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true)]
    sys_root: PathBuf,
    /// Where procfs is mounted
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    proc_root: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Pretty,
    Json,
}

/// What is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) host: Host,
    /// Cores that shards are pinned to; fewer than `shards` if some are not.
    pub(crate) cpus: Vec<usize>,
    pub(crate) shards: usize,
    /// Cores that this process may use.
    pub(crate) allowed: Vec<usize>,
    pub(crate) data_dir: PathBuf,
    pub(crate) virtual_env: Option<PathBuf>,
    /// Empty: all.
    pub(crate) interfaces: Vec<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and costs latency or room.
    Warn,
    /// The server would not start, or not keep what it acknowledged.
    Fail,
    /// Nothing to see from here.
    Unseen,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "OK",
            Outcome::Warn => "WARN",
            Outcome::Fail => "FAIL",
            Outcome::Unseen => "----",
        }
    }
}

/// A check's name, and why it matters to a thread-per-core database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) found: String,
    pub(crate) why: &'static str,
    pub(crate) remedy: Option<String>,
}

impl Check {
    pub(crate) fn ok(self, found: impl Into<String>) -> Finding {
        self.finding(Outcome::Ok, found.into(), None)
    }

    pub(crate) fn warn(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Outcome::Warn, found.into(), Some(remedy.into()))
    }

    pub(crate) fn fail(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Outcome::Fail, found.into(), Some(remedy.into()))
    }

    /// `what` is where it would stand.
    pub(crate) fn unseen(self, what: impl std::fmt::Display) -> Finding {
        self.finding(Outcome::Unseen, format!("not visible here ({what})"), None)
    }

    fn finding(self, outcome: Outcome, found: String, remedy: Option<String>) -> Finding {
        Finding { check: self.name, outcome, found, why: self.why, remedy }
    }
}

impl Doctor {
    pub(crate) fn run(self, env: &Env) -> Result<(), CliError> {
        let format = self.format;
        let findings = examine(&self.subject(env)?);
        match format {
            Format::Pretty => say(&pretty(&findings)),
            Format::Json => say(&as_json(&findings).to_string()),
        }
        match count(&findings, Outcome::Fail) {
            0 => Ok(()),
            1 => Err(CliError("1 check failed".to_owned())),
            failed => Err(CliError(format!("{failed} checks failed"))),
        }
    }

    /// As `serve` would understand the same options.
    fn subject(self, env: &Env) -> Result<Subject, CliError> {
        let mut flags = Layer::new();
        let given = [
            ("data-dir", self.data_dir),
            ("cpus", self.cpus),
            ("shards", self.shards),
            ("plugin-dir", self.plugin_dir),
            ("virtual-env-location", self.virtual_env_location),
            // Whether it is served to anybody is no matter here.
            ("without-auth", Some("true".to_owned())),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                flags.insert(key, Text { value, origin: format!("flag --{key}") });
            }
        }
        let interfaces = host::names(&self.sys_root.join("class/net"));
        if let Some(missing) = self.interface.iter().find(|name| !interfaces.contains(name)) {
            let text = format!("--interface: there is no {missing}; there are: {}", interfaces.join(", "));
            return Err(CliError(text));
        }
        let machine = Machine::look();
        let config = Config::resolve(flags, self.config, env, &machine).map_err(|error| CliError(error.0))?;
        Ok(Subject {
            host: Host { sys: self.sys_root, proc: self.proc_root },
            cpus: config.cpus.iter().flatten().copied().collect(),
            shards: config.cpus.len(),
            allowed: machine.cpus,
            data_dir: config.data_dir,
            virtual_env: config.virtual_env,
            interfaces: self.interface,
        })
    }
}

/// All checks, in the order in which they are read best.
fn examine(subject: &Subject) -> Vec<Finding> {
    type Examination = fn(&Subject) -> Vec<Finding>;
    const ALL: [Examination; 8] = [
        kernel::examine,
        cpus::examine,
        devices::examine,
        memory::examine,
        disk::examine,
        clock::examine,
        python::examine,
        kernel::examine_limits,
    ];
    ALL.iter().flat_map(|examine| examine(subject)).collect()
}

fn count(findings: &[Finding], outcome: Outcome) -> usize {
    findings.iter().filter(|finding| finding.outcome == outcome).count()
}

fn pretty(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for Finding { check, outcome, found, why, remedy } in findings {
        lines.push(format!("{:<5} {check:<width$}  {found}", outcome.as_str()));
        if let Some(remedy) = remedy {
            let indent = " ".repeat(width + 8);
            lines.push(format!("{indent}why: {why}"));
            lines.extend(remedy.lines().map(|line| format!("{indent} do: {line}")));
        }
    }
    lines.push(String::new());
    let of = |outcome| count(findings, outcome);
    lines.push(format!(
        "{} ok, {} to improve (WARN), {} in the way (FAIL), {} not visible here",
        of(Outcome::Ok),
        of(Outcome::Warn),
        of(Outcome::Fail),
        of(Outcome::Unseen)
    ));
    lines.join("\n")
}

fn as_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let outcome = match finding.outcome {
            Outcome::Unseen => "not visible",
            outcome => outcome.as_str(),
        };
        json!({
            "check": finding.check, "outcome": outcome, "found": finding.found, "why": finding.why,
            "remedy": finding.remedy,
        })
    };
    let of = |outcome| count(findings, outcome);
    json!({
        "checks": findings.iter().map(one).collect::<Vec<_>>(),
        "ok": of(Outcome::Ok), "warn": of(Outcome::Warn), "fail": of(Outcome::Fail), "not_visible": of(Outcome::Unseen),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// A machine made of files, as `path: content` lines; folders end with a slash.
    pub(crate) struct Made {
        root: tempfile::TempDir,
        pub(crate) subject: Subject,
    }

    impl Made {
        pub(crate) fn new(cpus: &[usize], files: &[(&str, &str)]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let host = Host { sys: root.path().join("sys"), proc: root.path().join("proc") };
            let subject = Subject {
                host,
                cpus: cpus.to_vec(),
                shards: cpus.len(),
                allowed: (0..8).collect(),
                data_dir: root.path().join("data"),
                virtual_env: None,
                interfaces: Vec::new(),
            };
            let made = Made { root, subject };
            for (path, content) in files {
                made.put(path, content);
            }
            made
        }

        pub(crate) fn put(&self, path: &str, content: &str) {
            let path = self.root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
            std::fs::write(path, content).unwrap();
        }

        pub(crate) fn of(&self, examine: fn(&Subject) -> Vec<Finding>, check: &str) -> Vec<Finding> {
            examine(&self.subject).into_iter().filter(|finding| finding.check == check).collect()
        }

        pub(crate) fn one(&self, examine: fn(&Subject) -> Vec<Finding>, check: &str) -> Finding {
            let mut found = self.of(examine, check);
            assert_eq!(found.len(), 1, "{check}: {found:?}");
            found.remove(0)
        }
    }

    #[test]
    fn nothing_to_see_is_an_outcome_of_every_check_that_reads() {
        let made = Made::new(&[0, 1], &[]);
        std::fs::create_dir(&made.subject.data_dir).unwrap();
        let findings = examine(&made.subject);
        for check in [
            "kernel",
            "governor",
            "isolation",
            "smt",
            "numa",
            "irq affinity",
            "huge pages",
            "swap",
            "clock source",
            "cpu quota",
            "virtual machine",
        ] {
            let finding =
                findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check}"));
            assert_eq!(finding.outcome, Outcome::Unseen, "{finding:?}");
        }
    }

    #[test]
    fn what_is_not_well_says_why_and_what_to_do() {
        let check = Check { name: "tea", why: "cold tea is no tea." };
        let findings = [check.ok("hot"), check.warn("lukewarm", "heat it\ndrink it"), check.unseen("/cup")];
        let text = pretty(&findings);
        assert_eq!(
            text,
            "OK    tea  hot\nWARN  tea  lukewarm\n           why: cold tea is no tea.\n            do: heat it\n            do: drink \
             it\n----  tea  not visible here (/cup)\n\n1 ok, 1 to improve (WARN), 0 in the way (FAIL), 1 not visible here"
        );
        let json = as_json(&findings);
        assert_eq!(json["checks"][1]["remedy"], "heat it\ndrink it");
        assert_eq!(json["checks"][2]["outcome"], "not visible");
        assert_eq!((&json["warn"], &json["fail"]), (&json!(1), &json!(0)));
    }

    #[test]
    fn every_finding_of_this_machine_has_a_reason_and_a_remedy_if_it_needs_one() {
        let data = tempfile::tempdir().unwrap();
        let subject = Subject {
            host: Host { sys: "/sys".into(), proc: "/proc".into() },
            cpus: vec![0],
            shards: 1,
            allowed: Machine::look().cpus,
            data_dir: data.path().join("not-there-yet"),
            virtual_env: None,
            interfaces: Vec::new(),
        };
        for finding in examine(&subject) {
            assert!(finding.why.ends_with('.') && !finding.found.is_empty(), "{finding:?}");
            let needs = matches!(finding.outcome, Outcome::Warn | Outcome::Fail);
            assert_eq!(needs, finding.remedy.is_some(), "{finding:?}");
        }
        assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
