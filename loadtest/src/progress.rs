//! One line of progress on stderr, rewritten in place, and only where a person is watching.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the line is rewritten.
const INTERVAL: Duration = Duration::from_millis(200);

/// A progress line; dropping it wipes the line.
pub struct Progress {
    /// False where stderr is no terminal: everything is then silent.
    visible: bool,
    start: Instant,
    total: Duration,
    written: Instant,
}

impl Progress {
    /// For something that takes `total`.
    pub fn start(total: Duration) -> Self {
        let start = Instant::now();
        Self { visible: std::io::stderr().is_terminal(), start, total, written: start }
    }

    /// Shows how far it is, at most a few times a second. `note` is made only if it is shown.
    pub fn show(&mut self, note: impl FnOnce() -> String) {
        if !self.visible || self.written.elapsed() < INTERVAL {
            return;
        }
        self.written = Instant::now();
        let line = line(self.start.elapsed(), self.total, &note());
        // A closed stderr is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.visible {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(elapsed: Duration, total: Duration, note: &str) -> String {
    /// Characters of the bar.
    const WIDTH: usize = 30;
    let share = (elapsed.as_secs_f64() / total.as_secs_f64().max(1e-9)).min(1.0);
    let done = (share * WIDTH as f64) as usize;
    let bar = format!("{}{}", "#".repeat(done), "-".repeat(WIDTH - done));
    format!("[{bar}] {:>3.0}/{:.0} s  {note}", elapsed.as_secs_f64(), total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_full_at_the_end_and_never_overflows() {
        let ten = Duration::from_secs(10);
        assert_eq!(line(ten / 2, ten, "x"), "[###############---------------]   5/10 s  x");
        assert_eq!(line(ten * 2, ten, ""), "[##############################]  20/10 s  ");
    }
}
