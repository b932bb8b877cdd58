//! What a shard decides around an inline run, without the run.

use std::time::Duration;

use saltus_core::ids::{MonoNs, TriggerId};
use saltus_core::limits::INLINE_RUN_BUDGET_US;
use saltus_core::policy::{Cost, InlineBudget, Lane, Observation, Policy};
use saltus_core::trigger::{Execution, Isolation};

use super::{Measured, Size, warm};

/// Runs that are decided on and noted.
pub(super) const RUNS: usize = 1000;
/// Between two runs; little enough of it is run time that nobody is demoted.
const PERIOD_NS: u64 = 1_000_000;
/// What a run takes.
const RUN_NS: u64 = 20_000;

struct Decisions {
    policy: Policy,
    budget: InlineBudget,
    now: u64,
    runs: usize,
}

impl Decisions {
    fn run_once(&mut self) -> u64 {
        self.now += PERIOD_NS;
        let now = MonoNs(self.now);
        self.budget.begin_turn();
        let rows = self.policy.rows_max().min(3) * usize::from(self.budget.turn_has_room());
        // Every run costs a little more or less, so that the percentiles have something to find.
        let nanoseconds = RUN_NS + (self.now / PERIOD_NS) % 97;
        let changed = self.policy.observe(Observation::Ran(Cost { nanoseconds, rows, event_rows: 1 }), now);
        let overspent = self.budget.charge(TriggerId(1), nanoseconds, now);
        u64::from(changed.is_none() && overspent.is_none())
    }
}

impl Measured for Decisions {
    fn reset(&mut self) {}

    fn run(&mut self) -> u64 {
        (0..self.runs).map(|_| self.run_once()).sum()
    }
}

/// A trigger that has earned the inline lane and stays there.
pub(super) fn inline_runs(size: Size) -> Box<dyn Measured> {
    let mut policy =
        Policy::new(Execution::Auto, Isolation::Auto, Duration::from_micros(INLINE_RUN_BUDGET_US), MonoNs(0));
    policy.observe(Observation::Checked(Ok(())), MonoNs(0));
    let mut decisions = Decisions { policy, budget: InlineBudget::new(MonoNs(0)), now: 0, runs: 200 };
    decisions.run();
    assert_eq!(decisions.policy.lane(), Lane::Inline, "{}", decisions.policy.reason());
    warm(Decisions { runs: size.of(RUNS), ..decisions }, 1)
}
