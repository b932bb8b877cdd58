//! Made-up times and costs: the policy sees no clock and runs nothing.

use proptest::prelude::*;

use super::*;
use crate::limits::INLINE_RUN_BUDGET_US;

const MS: u64 = 1_000_000;
const BUDGET: Duration = Duration::from_micros(INLINE_RUN_BUDGET_US);

fn cost(microseconds: u64) -> Cost {
    Cost { nanoseconds: microseconds * 1000, rows: 1, event_rows: 1 }
}

/// A trigger left to the policy, with a clock of its own.
struct Life {
    policy: Policy,
    now: MonoNs,
    decisions: Vec<Decision>,
}

impl Life {
    fn new() -> Self {
        let now = MonoNs(1);
        let mut life =
            Life { policy: Policy::new(Execution::Auto, Isolation::Auto, BUDGET, now), now, decisions: Vec::new() };
        life.tell(Observation::Checked(Ok(())));
        life
    }

    fn tell(&mut self, observation: Observation) {
        self.now.0 += MS;
        self.decisions.extend(self.policy.observe(observation, self.now));
    }

    fn run(&mut self, times: u32, each: Cost) {
        (0..times).for_each(|_| self.tell(Observation::Ran(each)));
    }

    /// Runs until the trigger is promoted; after how many.
    fn run_until_inline(&mut self) -> u32 {
        for runs in 1..2_000_000 {
            self.tell(Observation::Ran(cost(20)));
            if self.policy.lane() == Lane::Inline {
                return runs;
            }
        }
        panic!("never promoted: {:?}", self.policy);
    }
}

#[test]
fn a_cheap_trigger_earns_the_inline_lane() {
    let mut life = Life::new();
    assert_eq!((life.policy.lane(), life.policy.reason()), (Lane::Deferred, &Reason::New));
    assert_eq!(life.run_until_inline(), RUNS_TO_EARN);
    assert_eq!(life.decisions.last().unwrap().reason, Reason::Earned { p50: Duration::from_micros(20) });
}

#[test]
fn what_is_not_known_to_be_harmless_stays_deferred() {
    let unchecked = Policy::new(Execution::Auto, Isolation::Auto, BUDGET, MonoNs(0));
    let mut life = Life { policy: unchecked, now: MonoNs(0), decisions: Vec::new() };
    life.run(1000, cost(1));
    assert_eq!(life.policy.lane(), Lane::Deferred, "nobody has read the code yet");
    life.tell(Observation::Checked(Err("calls lock.acquire".into())));
    life.run(1000, cost(1));
    assert_eq!(life.policy.lane(), Lane::Deferred);
    assert_eq!(life.policy.barred(), Some(Reason::Check("calls lock.acquire".into())));

    let mut life = Life::new();
    life.tell(Observation::CachePlain(false));
    life.run(1000, cost(1));
    assert_eq!((life.policy.lane(), life.policy.barred()), (Lane::Deferred, Some(Reason::CacheNotPlain)));
    life.tell(Observation::CachePlain(true));
    life.run(1, cost(1));
    assert_eq!(life.policy.lane(), Lane::Inline);

    let mut life = Life::new();
    life.run(1000, cost(INLINE_RUN_BUDGET_US * PROMOTED_AT_PERCENT / 100 + 1));
    assert_eq!(life.policy.lane(), Lane::Deferred, "cheap enough to stay is not cheap enough to come");
}

#[test]
fn another_budget_is_in_force_at_once() {
    let mut life = Life::new();
    life.policy.set_budget(Duration::from_millis(5));
    life.run(RUNS_TO_EARN, cost(3_000));
    assert_eq!(life.policy.lane(), Lane::Inline);
    life.run(RUNS_TO_EARN, cost(4_000));
    assert_eq!((life.policy.lane(), life.policy.rows_max()), (Lane::Inline, 1));
    life.policy.set_budget(BUDGET);
    life.run(1, cost(4_000));
    assert_eq!(life.policy.reason(), &Reason::Slow { p99: Duration::from_millis(4) });
}

proptest! {
    /// The percentile that is kept is the one of all values.
    #[test]
    fn the_percentile_of_a_window_is_that_of_its_values(values in proptest::collection::vec(0_u64..40, 1..400)) {
        let mut window = Window::default();
        for (n, &value) in values.iter().enumerate() {
            window.put(n % RECENT_RUNS, value);
            let mut last = values[(n + 1).saturating_sub(RECENT_RUNS)..=n].to_vec();
            last.sort_unstable();
            prop_assert_eq!(window.p99(), Some(last[last.len() - 1 - last.len() / 100]));
        }
    }
}

#[test]
fn runs_over_many_events_are_judged_by_what_one_event_costs() {
    let mut life = Life::new();
    let batch = Cost { nanoseconds: 50 * MS, rows: 10_000, event_rows: 10 };
    life.run(RUNS_TO_EARN, batch);
    assert_eq!(life.policy.lane(), Lane::Inline, "50 us for ten rows");
    life.run(RUNS_TO_EARN, Cost { nanoseconds: 100_000, rows: 20, event_rows: 10 });
    assert_eq!(life.policy.rows_max(), 50, "5 us a row, 250 us a run");
}

#[test]
fn a_lane_that_is_short_of_time_still_shows_that_a_trigger_is_cheap() {
    let mut life = Life::new();
    // Few runs of many events each, one in ten of them disturbed.
    let gathered = Cost { nanoseconds: 2 * MS, rows: 100, event_rows: 1 };
    life.run(4, gathered);
    assert_eq!(life.policy.lane(), Lane::Inline, "20 us an event");
    let mut life = Life::new();
    for _ in 0..6 {
        life.run(9, cost(20));
        life.run(1, cost(2_000));
    }
    assert_eq!(life.policy.lane(), Lane::Inline);
    let mut life = Life::new();
    for _ in 0..60 {
        life.run(4, cost(20));
        life.run(1, cost(2_000));
    }
    assert_eq!(life.policy.lane(), Lane::Deferred, "one in five is no disturbance");
    // Cold caches and a core that is shared: four in ten take far longer than they would inline.
    let mut life = Life::new();
    for _ in 0..4 {
        life.run(6, cost(120));
        life.run(4, cost(400));
    }
    assert_eq!(life.policy.lane(), Lane::Inline);
}

#[test]
fn a_demotion_has_its_reason_and_doubles_the_way_back() {
    let mut life = Life::new();
    life.run_until_inline();
    let mut runs_before = 0;
    for demotions in 1..5 {
        life.tell(Observation::Blocked("open".into()));
        assert_eq!(life.policy.reason(), &Reason::Blocked("open".into()));
        // What blocks counts against the code itself; here only the way back is looked at.
        life.policy.blocks = 0;
        let runs = life.run_until_inline();
        assert!(runs > runs_before, "the way back after demotion {demotions} is longer: {runs} runs");
        runs_before = runs;
    }
}

#[test]
fn code_that_blocks_again_and_again_stays_out_until_it_changes() {
    let mut life = Life::new();
    for _ in 0..BLOCKS_MAX {
        life.run_until_inline();
        life.tell(Observation::Blocked("socket.connect".into()));
    }
    life.run(100_000, cost(1));
    assert_eq!(life.policy.lane(), Lane::Deferred);
    life.tell(Observation::CodeChanged);
    life.run(1000, cost(1));
    assert_eq!(life.policy.lane(), Lane::Deferred, "the new code is not checked yet");
    life.tell(Observation::Checked(Ok(())));
    life.run(1, cost(1));
    assert_eq!(life.policy.lane(), Lane::Inline);
}

#[test]
fn a_trigger_that_became_slow_is_demoted_and_a_hiccup_is_not() {
    let mut life = Life::new();
    life.run_until_inline();
    life.run(200, cost(20));
    life.run(1, cost(5_000));
    life.run(50, cost(20));
    assert_eq!(life.policy.lane(), Lane::Inline, "one run of 128 is beyond the 99th percentile");
    life.run(2, cost(5_000));
    assert_eq!(life.policy.reason(), &Reason::Slow { p99: Duration::from_millis(5) });
    assert_eq!(life.policy.lane(), Lane::Deferred);
}

#[test]
fn code_that_has_held_up_a_shard_leaves_it_whatever_the_operator_chose_if_there_is_another_place() {
    for (isolation, lane) in [(Isolation::Auto, Lane::Process), (Isolation::Interpreter, Lane::Inline)] {
        let mut policy = Policy::new(Execution::Inline, isolation, BUDGET, MonoNs(0));
        let decision = policy.observe(Observation::Quarantined, MonoNs(MS));
        assert_eq!(decision.map(|decision| decision.to), (lane == Lane::Process).then_some(Lane::Process));
        assert_eq!(policy.lane(), lane);
    }
}

#[test]
fn what_the_operator_chose_stays() {
    let trouble = || {
        [
            Observation::Checked(Err("calls input".into())),
            Observation::Blocked("open".into()),
            Observation::Overran(Duration::from_secs(1)),
            Observation::CachePlain(false),
            Observation::OverBudget { share_percent: 90 },
            Observation::ImportRefused("numpy".into()),
            Observation::CodeChanged,
            Observation::CodeRefused("numpy".into()),
            Observation::Checked(Ok(())),
        ]
    };
    for (execution, isolation, lane) in [
        (Execution::Inline, Isolation::Auto, Lane::Inline),
        (Execution::Inline, Isolation::Interpreter, Lane::Inline),
        (Execution::Deferred, Isolation::Interpreter, Lane::Deferred),
        (Execution::Auto, Isolation::Process, Lane::Process),
    ] {
        let mut policy = Policy::new(execution, isolation, BUDGET, MonoNs(0));
        for round in 0..100 {
            for observation in trouble() {
                assert_eq!(policy.observe(observation, MonoNs(round * MS)), None);
            }
            (0..100).for_each(|_| drop(policy.observe(Observation::Ran(cost(1)), MonoNs(round * MS))));
        }
        assert_eq!((policy.lane(), policy.reason()), (lane, &Reason::Operator));
    }
}

#[test]
fn a_module_that_needs_a_process_gets_one_until_the_code_changes() {
    for execution in [Execution::Auto, Execution::Deferred] {
        let mut policy = Policy::new(execution, Isolation::Auto, BUDGET, MonoNs(0));
        let decision = policy.observe(Observation::ImportRefused("numpy".into()), MonoNs(1)).unwrap();
        assert_eq!((decision.from, decision.to), (Lane::Deferred, Lane::Process));
        (0..1000).for_each(|_| assert_eq!(policy.observe(Observation::Ran(cost(1)), MonoNs(2)), None));
        let decision = policy.observe(Observation::CodeChanged, MonoNs(3)).unwrap();
        assert_eq!((decision.to, decision.reason), (Lane::Deferred, Reason::CodeChanged));
    }
}

#[test]
fn new_code_whose_module_needs_a_process_goes_there_in_one_step() {
    let refused = || Observation::CodeRefused("numpy".into());
    let mut life = Life::new();
    life.run_until_inline();
    life.tell(refused());
    let last = life.decisions.last().unwrap().clone();
    assert_eq!((last.from, last.to, last.reason), (Lane::Inline, Lane::Process, Reason::ImportRefused("numpy".into())));
    let (decisions, since) = (life.decisions.len(), life.policy.since());
    life.tell(refused());
    assert_eq!((life.decisions.len(), life.policy.since()), (decisions, since), "it is there");
    life.tell(Observation::CodeChanged);
    assert_eq!(life.policy.lane(), Lane::Deferred);
}

#[test]
fn the_account_says_what_a_new_trigger_may_expect() {
    let mut policy = Policy::new(Execution::Auto, Isolation::Auto, BUDGET, MonoNs(0));
    assert_eq!(policy.account(), "a new trigger starts deferred, and is moved inline when its runs fit the budget");
    policy.observe(Observation::Checked(Err("calls eval".into())), MonoNs(1));
    assert_eq!(
        policy.account(),
        "a new trigger starts deferred, and is not moved inline: the static check: calls eval"
    );
    policy.observe(Observation::ImportRefused("numpy".into()), MonoNs(2));
    assert_eq!(policy.account(), "module numpy does not load in an interpreter with a GIL of its own");
}

#[test]
fn a_shard_spends_no_more_than_its_share_and_the_costliest_pays() {
    let mut budget = InlineBudget::new(MonoNs(0));
    let (dear, cheap) = (TriggerId(1), TriggerId(2));
    let mut overspent = None;
    for ms in 1..=500 {
        budget.begin_turn();
        assert!(budget.turn_has_room());
        overspent = overspent.or(budget.charge(cheap, MS / 100, MonoNs(ms * MS)));
        overspent = overspent.or(budget.charge(dear, MS / 2, MonoNs(ms * MS)));
        assert!(budget.turn_has_room());
    }
    assert_eq!(overspent, Some(Overspent { by: dear, share_percent: 30 }));
    assert_eq!(budget.charge(cheap, MS / 100, MonoNs(501 * MS)), None, "the next window starts anew");
    budget.charge(dear, 2 * MS, MonoNs(502 * MS));
    assert!(!budget.turn_has_room());
}

fn observation() -> impl Strategy<Value = Observation> {
    prop_oneof![
        60 => (0u64..400, 1usize..200, 1usize..20).prop_map(|(us, rows, event_rows)| Observation::Ran(Cost {
            nanoseconds: us * 1000,
            rows,
            event_rows
        })),
        2 => Just(Observation::Checked(Ok(()))),
        1 => Just(Observation::Checked(Err("calls eval".into()))),
        1 => Just(Observation::CodeChanged),
        1 => Just(Observation::CodeRefused("numpy".into())),
        1 => Just(Observation::Blocked("open".into())),
        1 => Just(Observation::Overran(Duration::from_millis(10))),
        1 => any::<bool>().prop_map(Observation::CachePlain),
        1 => Just(Observation::OverBudget { share_percent: 40 }),
        1 => Just(Observation::ImportRefused("numpy".into())),
    ]
}

/// A stretch of the same thing, so that promotions happen at all.
fn story() -> impl Strategy<Value = Vec<(Observation, u32)>> {
    prop::collection::vec((observation(), prop_oneof![1u32..4, 30u32..3000]), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold(
        story in story(),
        execution in prop_oneof![5 => Just(Execution::Auto), 1 => Just(Execution::Inline), 1 => Just(Execution::Deferred)],
        isolation in prop_oneof![5 => Just(Isolation::Auto), 1 => Just(Isolation::Interpreter), 1 => Just(Isolation::Process)],
    ) {
        let mut now = MonoNs(0);
        let mut policy = Policy::new(execution, isolation, BUDGET, now);
        let mut lane = policy.lane();
        let (mut checked, mut plain) = (false, true);
        // Of this code: when it was demoted last, how often it was, and the events of its runs in the lane.
        let (mut demoted_at, mut demotions, mut runs, mut blocks) = (None, 0u32, 0u32, 0u32);
        for (observation, times) in story {
            for _ in 0..times {
                now.0 += MS / 10;
                match &observation {
                    Observation::CodeChanged | Observation::CodeRefused(_) => (checked, demoted_at, demotions, blocks) = (false, None, 0, 0),
                    Observation::Checked(verdict) => checked = verdict.is_ok(),
                    Observation::CachePlain(is) => plain = *is,
                    Observation::Blocked(_) => blocks += 1,
                    Observation::Ran(cost) => {
                        runs += if lane == Lane::Inline { 1 } else { cost.events().min(EVENTS_OF_A_RUN_MAX) };
                        let forgiven = lane == Lane::Inline && runs.is_multiple_of(FORGIVEN_AFTER);
                        demotions = demotions.saturating_sub(u32::from(forgiven));
                    }
                    _ => {}
                }
                let decision = policy.observe(observation.clone(), now);
                if let Some(decision) = &decision {
                    prop_assert_eq!(decision.from, lane, "decisions form a chain");
                    prop_assert_ne!(decision.from, decision.to);
                    prop_assert_eq!(&decision.reason, policy.reason());
                    prop_assert_eq!(decision.at, now);
                    lane = decision.to;
                    if decision.to == Lane::Inline {
                        let fits = matches!(&decision.reason, Reason::Earned { p50 }
                            if *p50 <= Duration::from_micros(INLINE_RUN_BUDGET_US));
                        prop_assert!(fits && checked && plain && blocks < BLOCKS_MAX, "{:?}", policy);
                        prop_assert!(runs >= RUNS_TO_EARN);
                        if let Some(at) = demoted_at.filter(|_| demotions > 0) {
                            let wait = (DEMOTED_FOR.as_nanos() as u64) << (demotions.min(DOUBLINGS_MAX) - 1);
                            prop_assert!(now.since(at) >= wait, "back after {} ns, wanted {wait}", now.since(at));
                        }
                    } else if decision.from == Lane::Inline && decision.to == Lane::Deferred
                        && decision.reason != Reason::CodeChanged
                    {
                        (demoted_at, demotions) = (Some(now), demotions + 1);
                    }
                    runs = 0;
                }
                prop_assert_eq!(policy.lane(), lane, "no change without a decision");
                match (isolation, execution) {
                    (Isolation::Process, _) => prop_assert_eq!(lane, Lane::Process),
                    (_, Execution::Inline) => prop_assert_eq!(lane, Lane::Inline),
                    (_, Execution::Deferred) => prop_assert_ne!(lane, Lane::Inline),
                    (_, Execution::Auto) => {}
                }
                if isolation == Isolation::Interpreter {
                    prop_assert_ne!(lane, Lane::Process);
                }
                if lane == Lane::Inline && execution == Execution::Auto {
                    prop_assert!(checked && plain, "inline only while it is known to be harmless");
                }
            }
        }
    }
}

/// Costs of runs, and the time that the machine takes while each is under way.
fn runs_and_theft() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let theft = prop_oneof![4 => Just(0_u64), 2 => 0..5 * MS, 1 => 0..800 * MS];
    // Some cost more than the budget, but not so many that the trigger would lose its lane.
    let cost = prop_oneof![200 => 5_000_u64..150_000, 1 => 300_000_u64..2 * MS];
    proptest::collection::vec((cost, theft), 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// What a machine does to the clock while runs are under way changes no decision: neither of a trigger nor of a shard's share.
    #[test]
    fn a_machine_that_steals_time_changes_nothing(runs in runs_and_theft(), share_percent in 1_u64..29) {
        let decisions = |steals: bool| {
            let mut now = MonoNs(1);
            let mut policy = Policy::new(Execution::Auto, Isolation::Auto, BUDGET, now);
            let _none = policy.observe(Observation::Checked(Ok(())), now);
            let mut made = Vec::new();
            for &(cost, theft) in &runs {
                now.0 += cost + if steals { theft } else { 0 };
                let cost = Cost { nanoseconds: cost, rows: 1, event_rows: 1 };
                made.extend(policy.observe(Observation::Ran(cost), now).map(|made| (made.from, made.to, made.reason)));
            }
            made
        };
        let (stolen, idle) = (decisions(true), decisions(false));
        // A trigger that has lost its lane by its costs waits on the clock: up to there it is the same.
        let until_lost = |made: &[(Lane, Lane, Reason)]| {
            let lost = made.iter().position(|(_, to, _)| *to == Lane::Deferred);
            made[..lost.map_or(made.len(), |at| at + 1)].to_vec()
        };
        prop_assert_eq!(until_lost(&stolen), until_lost(&idle));
        // A share of a shard's time below the bound stays below it, however long the clock says that runs take.
        let (mut budget, mut now) = (InlineBudget::new(MonoNs(0)), MonoNs(0));
        for &(cost, theft) in &runs {
            now.0 += cost * 100 / share_percent + theft;
            prop_assert_eq!(budget.charge(TriggerId(1), cost, now), None);
        }
    }
}

/// A trigger that its operator has deferred, so that nothing but its seat moves.
fn deferred() -> Life {
    let now = MonoNs(1);
    let policy = Policy::new(Execution::Deferred, Isolation::Auto, BUDGET, now);
    Life { policy, now, decisions: Vec::new() }
}

const LONG: u64 = LONG_RUN_US + 1;

#[test]
fn who_is_new_is_with_the_new_until_its_runs_have_been_short_for_a_while() {
    let mut life = deferred();
    life.run(RUNS_TO_EARN - 1, cost(1_000));
    assert_eq!((life.policy.seat(), life.policy.take_moved()), (Seat::New, None));
    life.run(1, cost(1_000));
    assert_eq!((life.policy.seat(), life.policy.take_moved()), (Seat::Shared, Some(Reason::Short)));
    assert_eq!(life.policy.take_moved(), None, "said once");
    life.run(1000, cost(1_000));
    life.tell(Observation::CodeChanged);
    assert_eq!(life.policy.seat(), Seat::New, "nothing is known of new code");
}

#[test]
fn who_takes_long_sits_apart_until_it_has_been_short_for_long() {
    let mut life = deferred();
    life.run(1, cost(1_000_000));
    assert_eq!(life.policy.seat(), Seat::New, "the first run imports modules");
    life.run(1, cost(200_000));
    let p90 = Duration::from_millis(200);
    assert_eq!((life.policy.seat(), life.policy.take_moved()), (Seat::Own, Some(Reason::Long { p90 })));
    assert!(
        life.policy.account().ends_with("its runs take long (p90 200ms of CPU time): it has an interpreter of its own")
    );
    life.tell(Observation::Crowded(true));
    assert!(life.policy.account().contains("which it shares with others like it"), "{}", life.policy.account());

    for returns in 0..3 {
        let from = life.now;
        // By runs of 1 ms each the clock of this test moves.
        while life.policy.seat() == Seat::Own {
            life.run(1, cost(10));
        }
        let waited = life.now.since(from);
        // It was moved by one of the last thirty runs.
        assert!(waited + 30 * MS >= (10_000 * MS) << returns, "it came back after {waited} ns");
        assert!(matches!(life.policy.take_moved(), Some(Reason::ShortAgain { .. })));
        life.run(30, cost(LONG));
        assert_eq!(life.policy.seat(), Seat::Own);
    }
}

#[test]
fn one_run_in_five_that_takes_a_little_longer_moves_nobody_by_itself_but_every_tenth_does() {
    let mut life = deferred();
    life.run(RUNS_TO_EARN, cost(100));
    for _ in 0..50 {
        life.run(19, cost(100));
        life.run(1, cost(LONG));
    }
    assert_eq!(life.policy.seat(), Seat::Shared);
    for _ in 0..50 {
        life.run(5, cost(100));
        life.run(1, cost(LONG));
    }
    assert_eq!(life.policy.seat(), Seat::Own);
}

#[test]
fn who_was_interrupted_sits_apart_at_once_and_who_was_inline_is_not_new() {
    let mut life = deferred();
    life.tell(Observation::Overran(Duration::from_millis(400)));
    assert_eq!(life.policy.seat(), Seat::Own);

    let mut life = Life::new();
    life.run_until_inline();
    life.tell(Observation::Blocked("open".into()));
    assert_eq!((life.policy.lane(), life.policy.seat()), (Lane::Deferred, Seat::Shared));
    let mut life = Life::new();
    life.run_until_inline();
    life.tell(Observation::Overran(Duration::from_millis(10)));
    assert_eq!((life.policy.lane(), life.policy.seat()), (Lane::Deferred, Seat::New));
}

#[test]
fn what_holds_a_trigger_where_it_is_is_said_and_asked_again_later() {
    let mut life = deferred();
    life.run(RUNS_TO_EARN, cost(100));
    life.run(1, cost(100));
    life.run(1, cost(100_000));
    assert_eq!(life.policy.seat(), Seat::Own);
    life.tell(Observation::Stays { seat: Seat::Shared, why: "its cache holds a lock".into() });
    assert!(life.policy.account().ends_with("it stays in its interpreter: its cache holds a lock"));
    life.run(1_000, cost(100_000));
    assert_eq!(life.policy.seat(), Seat::Shared);
    life.now.0 += 60_000 * MS;
    life.run(1, cost(100_000));
    assert_eq!(life.policy.seat(), Seat::Own);

    let room = RoomId(7);
    life.tell(Observation::LivesIn { room, what: "'lock' of the global cache".into() });
    life.run(1_000, cost(100_000));
    assert_eq!(life.policy.seat(), Seat::Beside(room), "what it shares keeps it there");
}

#[test]
fn a_run_is_given_no_more_rows_than_fit_where_others_wait_for_it() {
    let mut life = deferred();
    life.run(10, Cost { nanoseconds: MS, rows: 100, event_rows: 1 });
    assert_eq!(life.policy.rows_max(), LONG_RUN_US as usize / 10, "10 us a row");
    life.run(10, cost(200_000));
    assert_eq!((life.policy.seat(), life.policy.rows_max()), (Seat::Own, usize::MAX), "nobody waits for it there");
}
