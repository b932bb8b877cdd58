//! SIGTERM and SIGINT: the first asks for a stop, the second ends the process at once.
//!
//! The second one is handled inside the signal handler itself, with the exit code that shells give a process which that
//! signal ended (130 or 143), so that it works whatever the other threads are stuck in. It skips the drain: what was
//! acknowledged as durable is in the log, and nothing else is promised.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// What a shell reports for a process that a signal ended, less the signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// Waits for the first signal; made once, early, before any thread that could miss it.
pub struct StopSignal {
    signals: Signals,
    stopping: Arc<AtomicBool>,
}

impl StopSignal {
    /// Takes over SIGTERM and SIGINT.
    ///
    /// # Errors
    /// What the system said; only with exhausted file descriptors.
    pub fn install() -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Actions run in the order of registration: at the first signal the flag is still down when the
            // conditional exit looks at it.
            flag::register_conditional_shutdown(signal, EXIT_BY_SIGNAL + signal, stopping.clone())?;
            flag::register(signal, stopping.clone())?;
        }
        Ok(StopSignal { signals: Signals::new([SIGTERM, SIGINT])?, stopping })
    }

    /// Blocks until a stop is asked for; gives the signal's name.
    pub fn wait(&mut self) -> &'static str {
        match self.signals.forever().next() {
            Some(SIGINT) => "SIGINT",
            _ => "SIGTERM",
        }
    }

    /// Up from the first signal on.
    pub fn stopping(&self) -> Arc<AtomicBool> {
        self.stopping.clone()
    }
}
