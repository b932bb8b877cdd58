//! The process that tries imports: a Python of which nothing else is wanted, and an interpreter with a GIL of its own in it.
//!
//! What an import does there (threads, memory, a crash, an endless loop) ends with the process, which [`super::imports`] ends when
//! it has had enough of it. Messages are lines of JSON on the socket that is its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::process::{Pid, Signal};
use saltus_core::limits::IMPORT_TRIAL_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::{system, worker};
use crate::ffi::pylifecycle::{self, DaemonThreads};
use crate::ffi::{Object, Py, PyResult};
use crate::interpreter::{self, Surroundings, plain_error};
use crate::runtime::find_home;

/// The source of `saltus._imports`, which plugins have no use for.
pub const IMPORTS: &str = include_str!("../../python/saltus/_imports.py");

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToTrial {
    /// The first message.
    Hello {
        /// The server's process id: another parent means that the server is gone.
        server: u32,
        /// As every interpreter's.
        surroundings: Surroundings,
    },
    /// A module to be imported, as `saltus._imports` writes it.
    Try(String),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTrial {
    /// It is there.
    Ready,
    /// Nothing can be tried: why.
    Refused(String),
    /// What became of an import.
    Tried {
        /// What.
        outcome: Outcome,
        /// Modules in the interpreter now.
        modules: usize,
    },
}

/// What became of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It loads.
    Loads,
    /// It does not in an interpreter with a GIL of its own.
    Refused,
    /// This module is not installed.
    Missing(String),
    /// It raises.
    Fails(String),
}

/// The whole of the process, on its first thread.
pub fn trial_main() -> ExitCode {
    let socket = match system::take_socket() {
        Ok(socket) => UnixStream::from(socket),
        Err(error) => {
            eprintln!("`saltus worker` is started by the server and not by hand: standard input is {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(why) = live(&socket) {
        let _gone = say(&socket, &FromTrial::Refused(why));
    }
    // Threads of modules may be in any code.
    system::exit_now(0)
}

fn live(socket: &UnixStream) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("it cannot be tied to the server: {error}"))?;
    let mut lines = BufReader::new(socket).lines();
    let mut next = || -> Option<ToTrial> { serde_json::from_str(&lines.next()?.ok()?).ok() };
    let Some(ToTrial::Hello { server, surroundings }) = next() else {
        return Err("the first message is another one".to_owned());
    };
    if rustix::process::getppid().map(Pid::as_raw_nonzero).map(std::num::NonZeroI32::get) != i32::try_from(server).ok()
    {
        return Ok(());
    }
    let _not_allowed = std::fs::write("/proc/self/oom_score_adj", "1000");
    let home = find_home()?;
    crate::native::register();
    let main = pylifecycle::initialize(&home, false, None)?;
    // Before another interpreter imports it (`runtime`).
    Object::import(main, "datetime").map_err(|raised| plain_error(main, raised).message)?;
    pylifecycle::release_main(main);
    let py = pylifecycle::new_interpreter(DaemonThreads::Allowed)?;
    let text = |raised| plain_error(py, raised).message;
    interpreter::prepare(py, &surroundings).map_err(text)?;
    interpreter::load_module(py, "saltus._imports", IMPORTS).map_err(text)?;
    worker::limit_memory(IMPORT_TRIAL_BYTES_MAX).map_err(|error| format!("its memory cannot be limited: {error}"))?;
    let mut told = say(socket, &FromTrial::Ready);
    while told.is_ok() {
        let Some(ToTrial::Try(what)) = py.detach(&mut next) else { break };
        let (outcome, modules) = attempt(py, &what).map_err(text)?;
        told = say(socket, &FromTrial::Tried { outcome, modules });
    }
    Ok(())
}

fn attempt(py: Py, what: &str) -> PyResult<(Outcome, usize)> {
    let tried = Object::import(py, "saltus._imports")?.call_method(py, "attempt", [&Object::text(py, what)?])?;
    let tried = tried.sequence_items(py)?;
    let (outcome, text) = (tried[0].extract_str(py, "an outcome")?, tried[1].extract_str(py, "a text")?);
    let outcome = match outcome.as_str() {
        "loads" => Outcome::Loads,
        "refused" => Outcome::Refused,
        "missing" => Outcome::Missing(text),
        _ => Outcome::Fails(text),
    };
    Ok((outcome, usize::try_from(tried[2].extract_i64(py)?).unwrap_or(usize::MAX)))
}

/// One line.
pub fn say(mut socket: &UnixStream, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    socket.write_all(&line)
}
