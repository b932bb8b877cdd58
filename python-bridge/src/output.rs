//! What plugins print: lines for the log of the run that this thread makes. Never file descriptors 1 and 2.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use saltus_core::limits::LOG_TEXT_BYTES_MAX;
use saltus_core::ports::LogLevel;

use crate::effects::RunInfo;

/// Bytes printed by threads that make no run.
static DROPPED_BYTES: AtomicU64 = AtomicU64::new(0);

/// How many bytes plugins printed outside of any run; they are dropped.
pub fn dropped_bytes() -> u64 {
    DROPPED_BYTES.load(Ordering::Relaxed)
}

#[derive(Default)]
struct Sink {
    run: Option<Rc<RunInfo>>,
    /// Text after the last newline, of stdout and of stderr.
    rest: [String; 2],
}

thread_local! {
    static SINK: RefCell<Sink> = RefCell::default();
}

/// What is printed from now on by this thread belongs to `run`.
pub fn begin(run: Rc<RunInfo>) {
    SINK.with_borrow_mut(|sink| sink.run = Some(run));
}

/// The run that this thread makes.
pub fn current() -> Option<Rc<RunInfo>> {
    SINK.with_borrow(|sink| sink.run.clone())
}

/// The run is over; an unfinished line is logged as it is.
pub fn end() {
    SINK.with_borrow_mut(|sink| {
        let run = sink.run.take();
        for (at, rest) in sink.rest.iter_mut().enumerate() {
            if !rest.is_empty() {
                log(run.as_deref(), at == 1, rest);
                rest.clear();
            }
        }
    });
}

/// Takes what `sys.stdout` or `sys.stderr` was given.
pub fn emit(is_error: bool, text: &str) {
    SINK.with_borrow_mut(|sink| {
        let Sink { run, rest } = sink;
        if run.is_none() {
            DROPPED_BYTES.fetch_add(text.len() as u64, Ordering::Relaxed);
            return;
        }
        let rest = &mut rest[usize::from(is_error)];
        let mut lines = text.split('\n').peekable();
        while let Some(line) = lines.next() {
            rest.push_str(line);
            if lines.peek().is_some() || rest.len() > LOG_TEXT_BYTES_MAX {
                log(run.as_deref(), is_error, rest);
                rest.clear();
            }
        }
    });
}

fn log(run: Option<&RunInfo>, is_error: bool, text: &str) {
    if let Some(run) = run {
        run.log(if is_error { LogLevel::Error } else { LogLevel::Info }, text.to_owned());
    }
}
