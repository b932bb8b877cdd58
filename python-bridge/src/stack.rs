//! The stack of a thread that does not come back, in words.
//!
//! It is here because looking into another thread needs code that only [`crate::ffi`] may hold. It works without a Python runtime.

use std::ffi::c_void;
use std::path::{Path, PathBuf};

use crate::ffi::stack;

/// Where the signal's handler is; what it called, and the frame that the kernel made for it, come before the stack looked for.
const HANDLER: &str = "src/ffi/stack.rs";
/// Folders of a file's path that are told.
const FOLDERS: usize = 3;

/// Where a thread was: addresses of code, the innermost call first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack(Vec<usize>);

impl Stack {
    /// Of a thread of this process, by the kernel's id. The thread is interrupted for some microseconds.
    ///
    /// `None`: the thread is gone or does not answer (it is in a system call that cannot be interrupted), or this C library (older
    /// than glibc 2.35) has no safe way to ask.
    pub fn of_thread(thread: i32) -> Option<Stack> {
        stack::frames_of(thread).map(Stack)
    }

    /// One text per call, with file and line where they are known. Finding the names may take a second.
    pub fn calls(&self) -> Vec<String> {
        names_of(&self.0)
    }
}

fn names_of(frames: &[usize]) -> Vec<String> {
    let mut calls: Vec<String> = Vec::new();
    let mut interrupted = None;
    for (at, &address) in frames.iter().enumerate().filter(|(_, address)| **address != 0) {
        let before = calls.len();
        // Addresses are those behind a call, and names are looked for one byte before; but the interrupted instruction's is its own,
        // which may be the first of its function.
        let address = address + usize::from(interrupted == Some(at));
        backtrace::resolve(address as *mut c_void, |symbol| {
            let name = symbol.name().map_or_else(|| "(unknown)".to_owned(), |name| short(&format!("{name:#}")));
            calls.push(match (symbol.filename().map(end_of), symbol.lineno()) {
                (Some(file), Some(line)) => format!("{name} ({file}:{line})"),
                _ => name,
            });
        });
        if calls.len() == before {
            calls.push(format!("(unknown, at {address:#x})"));
        }
        if calls[before..].iter().any(|call| call.contains(HANDLER)) {
            // Behind the handler is the frame from which the kernel returns.
            interrupted = Some(at + 2);
        }
    }
    backtrace::clear_symbol_cache();
    // The handler, and the frame from which the kernel returns.
    let handler = calls.iter().rposition(|call| call.contains(HANDLER));
    calls.split_off(handler.map_or(0, |at| (at + 2).min(calls.len())))
}

/// A name without its type parameters, which are longer than all the rest.
fn short(name: &str) -> String {
    match name.find('<') {
        Some(at) if at > 0 => name[..at].trim_end_matches("::").to_owned(),
        _ => name.to_owned(),
    }
}

fn end_of(file: &Path) -> String {
    let parts: Vec<_> = file.iter().collect();
    let end: PathBuf = parts[parts.len().saturating_sub(FOLDERS + 1)..].iter().collect();
    end.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

    use super::*;

    #[inline(never)]
    fn go_round_until(stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn names_are_without_type_parameters_and_paths_are_short() {
        assert_eq!(short("take<core::task::Poll<()>>"), "take");
        assert_eq!(short("a::Vec<T>::push"), "a::Vec");
        assert_eq!(short("<T as U>::f"), "<T as U>::f");
        assert_eq!(end_of(Path::new("/a/b/shards/src/shard/mod.rs")), "shards/src/shard/mod.rs");
        assert_eq!(end_of(Path::new("x.c")), "x.c");
    }

    #[test]
    fn a_busy_thread_says_where_it_is_and_goes_on() {
        let (stop, busy) = (AtomicBool::new(false), AtomicI32::new(0));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                busy.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
                go_round_until(&stop);
                7
            });
            while busy.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            // It has still to come to its rounds.
            std::thread::sleep(std::time::Duration::from_millis(200));
            let stacks: Vec<_> = (0..100).map(|_| Stack::of_thread(busy.load(Ordering::Relaxed))).collect();
            // Before anything is asserted: a scope waits for its threads also when it panics.
            stop.store(true, Ordering::Relaxed);
            // Wherever in its rounds it was.
            let mut places: Vec<Stack> = stacks.into_iter().map(|stack| stack.expect("it answers")).collect();
            places.sort_by(|one, other| one.0.cmp(&other.0));
            places.dedup();
            for place in places {
                let text = place.calls().join("\n");
                assert!(text.contains("go_round_until") && text.contains("src/stack.rs:"), "{text}");
                assert!(!text.contains(HANDLER), "{text}");
            }
            assert_eq!(thread.join().unwrap(), 7, "an interrupted thread goes on as if nothing had been");
        });
        assert_eq!(Stack::of_thread(busy.load(Ordering::Relaxed)), None, "it is gone");
        assert_eq!(Stack::of_thread(0), None);
    }
}
