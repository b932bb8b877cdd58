//! Tells when a task holds its shard for too long, while it does, with the stack of the shard's thread.
//!
//! One thread looks at what all shards show of themselves ([`Pulse`]); it wakes nobody. A turn that lasts `loop-stall-limit` is told
//! once, and once more if it lasts ten times that. Taking a stack interrupts the shard for some microseconds; finding the names takes
//! longer, and is done here. What is told of a shard is at most one short stall a second, so that a shard in trouble, or on a
//! machine in trouble, does not fill the log; stalls that are left out are counted in the next line, and all of them by the shard
//! itself (`saltus_shard_stalls_total`).
//!
//! What this is not: the watch over inline runs that cannot be interrupted (`stall-limit`), which acts.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use saltus_core::ids::TriggerId;
use saltus_python::Stack;
use saltus_shards::engine::EngineHandle;
use saltus_shards::pulse::{Pulse, Turn};

use crate::registry::Registry;

/// The shortest pause between two lines about one shard.
const PAUSE: Duration = Duration::from_secs(1);
/// A turn of so many times the limit is told whatever was told before.
const LONG: u32 = 10;
/// Where the function is below which there is only the executor.
const EXECUTOR_BELOW: &str = "shards/src/pulse.rs";
/// Calls of a stack that are told.
const CALLS_MAX: usize = 60;
/// Above the shards, where the system allows it: one that spins on its core is not to keep this thread off.
const NICE: i32 = -15;

/// What is told, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoopStall {
    /// Turns that last so long.
    pub limit: Duration,
    /// With the stack of the shard's thread.
    pub backtrace: bool,
}

/// The thread; ended by its drop.
pub(crate) struct LoopWatch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for LoopWatch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// One shard, as it was when it was looked at last.
struct Seen {
    pulse: Arc<Pulse>,
    /// Begin of the turn that was seen last, and whether it was long then.
    last: (u64, bool),
    /// When something was told last.
    told_at: Option<Instant>,
    /// Turns that were left out since.
    left_out: u32,
}

/// Starts the watch over all shards of `engine`.
pub(crate) fn start(engine: &EngineHandle, registry: Registry, stall: LoopStall) -> io::Result<LoopWatch> {
    let mut seen: Vec<Seen> =
        engine.pulses().into_iter().map(|pulse| Seen { pulse, last: (0, false), told_at: None, left_out: 0 }).collect();
    let (end, ended) = channel();
    let thread = std::thread::Builder::new().name("saltus-loops".to_owned()).spawn(move || {
        if let Err(error) = rustix::process::nice(NICE) {
            tracing::debug!(%error, "the watch over the shards has their priority");
        }
        watch(&mut seen, &registry, stall, &ended);
    })?;
    Ok(LoopWatch { end: Some(end), thread: Some(thread) })
}

fn watch(seen: &mut [Seen], registry: &Registry, stall: LoopStall, ended: &Receiver<()>) {
    let limit = stall.limit;
    // A turn is seen at the latest when it has lasted one and a half times the limit.
    let pause = (limit / 2).max(Duration::from_millis(1));
    while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        for (shard, seen) in seen.iter_mut().enumerate() {
            let Some(turn) = seen.pulse.turn().filter(|turn| turn.lasts >= limit) else { continue };
            let now = (turn.began_ns, turn.lasts >= limit * LONG);
            if now == seen.last || (now.0 == seen.last.0 && !now.1) {
                continue;
            }
            seen.last = now;
            if !now.1 && seen.told_at.is_some_and(|at| at.elapsed() < PAUSE) {
                seen.left_out += 1;
                continue;
            }
            tell(shard, seen, turn, registry, stall.backtrace);
            seen.told_at = Some(Instant::now());
        }
    }
}

fn tell(shard: usize, seen: &mut Seen, turn: Turn, registry: &Registry, stacks: bool) {
    let trigger = turn.trigger.map_or_else(String::new, |id| name_of(registry, id));
    let Turn { lasts, thread, .. } = turn;
    let others = std::mem::take(&mut seen.left_out);
    let stack = if stacks { Stack::of_thread(thread) } else { None };
    // What was taken after its end is where another turn was, or none.
    let over = seen.pulse.turn().is_none_or(|now| now.began_ns != turn.began_ns);
    match stack {
        Some(stack) if !over => {
            let calls = told(stack.calls()).join("\n  ");
            tracing::warn!(
                shard,
                ?lasts,
                trigger,
                others,
                "a task holds its shard, which does nothing else meanwhile:\n  {calls}"
            );
        }
        Some(_) => {
            tracing::warn!(
                shard,
                ?lasts,
                trigger,
                others,
                "a task held its shard; it was over before its stack was taken"
            );
        }
        None if stacks => {
            tracing::warn!(
                shard,
                ?lasts,
                trigger,
                others,
                "a task holds its shard; its thread does not say where it is"
            );
        }
        None => tracing::warn!(shard, ?lasts, trigger, others, "a task holds its shard"),
    }
}

fn name_of(registry: &Registry, id: TriggerId) -> String {
    let catalog = registry.catalog();
    let def = catalog.triggers.values().find(|def| def.id == id);
    def.map_or_else(
        || format!("(deleted, id {})", id.0),
        |def| format!("{}.{} ({})", def.db, def.name, def.plugin_filename),
    )
}

/// The calls down to the executor's, not too many.
fn told(mut calls: Vec<String>) -> Vec<String> {
    let own = calls.iter().position(|call| call.contains(EXECUTOR_BELOW)).unwrap_or(calls.len());
    calls.truncate(own);
    let left_out = calls.len().saturating_sub(CALLS_MAX);
    calls.truncate(CALLS_MAX);
    if left_out > 0 {
        calls.push(format!("(and {left_out} more)"));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_ends_where_the_executor_begins_and_is_not_endless() {
        let call = |name: &str| name.to_owned();
        let calls = vec![call("a"), call("b"), call("take (shards/src/pulse.rs:9)"), call("run")];
        assert_eq!(told(calls), ["a", "b"]);
        let long = told((0..100).map(|n| n.to_string()).collect());
        assert_eq!((long.len(), long.last().map(String::as_str)), (CALLS_MAX + 1, Some("(and 40 more)")));
    }
}
