//! Times of schedules against slow oracles, and what becomes of missed ones.

use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60;
const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

fn schedule(spec: &str, zone: Option<&str>) -> Schedule {
    let spec = TriggerSpec::parse(spec).expect(spec);
    Schedule::new(&spec, zone).expect("a known zone").expect("a schedule")
}

fn at(text: &str) -> i64 {
    let time: Timestamp = text.parse().expect(text);
    time.as_second() * SECOND_NS
}

/// The times after one instant and not after another, as local times of the zone with its offset.
fn times(spec: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
    let schedule = schedule(spec, Some(zone));
    let (mut now, until) = (at(after), at(until));
    let mut times = Vec::new();
    while let Some(next) = schedule.next_after(now).filter(|next| *next <= until) {
        let local = timestamp(next / SECOND_NS).to_zoned(time_zone(zone).expect(zone));
        times.push(local.strftime("%d %H:%M%:z").to_string());
        now = next;
    }
    times
}

#[test]
fn every_has_the_multiples_since_the_epoch() {
    let every = schedule("every:250ms", None);
    let ms = |n: i64| n * 1_000_000;
    assert_eq!(every.next_after(ms(1_000)), Some(ms(1_250)));
    assert_eq!(every.next_after(ms(1_249)), Some(ms(1_250)));
    assert_eq!(every.next_after(ms(-1)), Some(0));
    assert_eq!(every.next_after(ms(-300)), Some(ms(-250)));
    assert_eq!(every.last_until(0, ms(1_600)), Some(ms(1_500)));
    assert_eq!(every.last_until(ms(1_500), ms(1_600)), None);
    assert_eq!(every.count(ms(1), ms(1_000_000)), 4_000);
    assert_eq!(schedule("every:1y", None).next_after(i64::MAX - 1), None);
    // A day is one of UTC in every zone.
    assert_eq!(
        schedule("every:1d", Some("Asia/Tokyo")).next_after(at("2026-01-01T12:00Z")),
        Some(at("2026-01-02T00:00Z"))
    );
}

#[test]
fn a_time_of_day_comes_once_a_day_when_clocks_are_changed() {
    let spring = |spec| times(spec, "Europe/Berlin", "2026-03-27T12:00Z", "2026-03-30T12:00Z");
    // 02:30 does not exist on the 29th.
    assert_eq!(spring("cron:30 2 * * *"), ["28 02:30+01:00", "29 03:00+02:00", "30 02:30+02:00"]);
    // However many do not exist, they come once; 03:00 is one of them.
    assert_eq!(spring("cron:0,20,40 2,3 29 * *"), ["29 03:00+02:00", "29 03:20+02:00", "29 03:40+02:00"]);
    assert_eq!(spring("cron:0 3 * * *"), ["28 03:00+01:00", "29 03:00+02:00", "30 03:00+02:00"]);
    let autumn = |spec| times(spec, "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-25T12:00Z");
    assert_eq!(autumn("cron:30 2 * * *"), ["25 02:30+02:00"]);
    assert_eq!(autumn("cron:0 1-4 * * *"), ["25 01:00+02:00", "25 02:00+02:00", "25 03:00+01:00", "25 04:00+01:00"]);
}

#[test]
fn an_expression_for_every_hour_comes_every_real_hour() {
    let spring = times("cron:15 * * * *", "America/New_York", "2026-03-08T05:30Z", "2026-03-08T08:30Z");
    assert_eq!(spring, ["08 01:15-05:00", "08 03:15-04:00", "08 04:15-04:00"]);
    let autumn = times("cron:*/30 * * * *", "America/New_York", "2026-11-01T04:59Z", "2026-11-01T06:59Z");
    assert_eq!(autumn, ["01 01:00-04:00", "01 01:30-04:00", "01 01:00-05:00", "01 01:30-05:00"]);
}

#[test]
fn without_a_zone_cron_is_in_utc_and_no_offset_is_told() {
    let cron = schedule("cron:0 30 2 * * *", None);
    assert_eq!(cron.next_after(at("2026-03-29T00:00Z")), Some(at("2026-03-29T02:30Z")));
    assert_eq!(cron.utc_offset_secs(0), None);
    let tokyo = schedule("cron:0 30 2 * * *", Some("asia/tokyo"));
    assert_eq!(tokyo.next_after(at("2026-03-29T00:00Z")), Some(at("2026-03-29T17:30Z")));
    assert_eq!(tokyo.utc_offset_secs(at("2026-03-29T17:30Z")), Some(9 * 3600));
}

#[test]
fn zones_are_known_by_name_and_what_is_none_is_named() {
    assert_eq!(time_zone_name("europe/berlin").expect("known"), "Europe/Berlin");
    assert_eq!(time_zone_name("UTC").expect("known"), "UTC");
    let error = time_zone_name("Europe/Berln").expect_err("unknown").to_string();
    assert!(error.starts_with("'Europe/Berln' is no time zone: expected a name of the IANA"), "{error}");
}

#[test]
fn a_schedule_may_have_no_times() {
    for never in ["cron:0 0 30 2 *", "cron:0 0 0 31 4 *", "cron:0 0 0 1 1 * 2020"] {
        assert_eq!(schedule(never, None).next_after(at("2026-01-01T00:00Z")), None, "{never}");
        assert_eq!(schedule(never, Some("Europe/Berlin")).next_after(at("2026-01-01T00:00Z")), None, "{never}");
    }
    assert_eq!(schedule("cron:0 0 29 2 *", None).next_after(at("2026-01-01T00:00Z")), Some(at("2028-02-29T00:00Z")));
}

#[test]
fn the_last_time_is_found_without_going_through_all_of_them() {
    let start = at("2026-01-01T00:00Z");
    for (spec, until, last) in [
        ("cron:* * * * * *", "2027-01-01T00:00:07Z", Some("2027-01-01T00:00:07Z")),
        ("cron:0 5 29 2 *", "2033-01-01T00:00Z", Some("2032-02-29T05:00Z")),
        ("cron:0 0 1 * *", "2026-01-31T23:59:59Z", None),
        ("cron:0 0 1 * *", "2026-02-01T00:00Z", Some("2026-02-01T00:00Z")),
        ("cron:*/5 9-17 * * 1-5", "2026-06-07T12:00Z", Some("2026-06-05T17:55Z")),
    ] {
        assert_eq!(schedule(spec, None).last_until(start, at(until)), last.map(at), "{spec}");
    }
}

/// All times of a cron expression in a part of time, minute by minute.
fn oracle(expression: &str, zone: &str, from: i64, to: i64) -> Vec<i64> {
    let zone = time_zone(zone).expect("a known zone");
    let crons: Vec<Cron> = cron_schedules(expression).expect(expression).into_iter().map(Cron::new).collect();
    let local = |at: i64| at + offset_at(&zone, at);
    let includes =
        |cron: &Cron, local: i64| cron.schedule.includes(DateTime::from_timestamp(local, 0).expect("in range"));
    let is_time = |cron: &Cron, at: i64| {
        // Local times that were passed just now: none, one, or those of a gap.
        let (before, now) = (local(at - MINUTE), local(at));
        if cron.hourly {
            return includes(cron, now);
        }
        let been_before = (1..=4 * 60).any(|minutes| local(at - minutes * MINUTE) == now);
        let gap = (before + MINUTE..now).step_by(MINUTE as usize);
        (includes(cron, now) && !been_before) || gap.into_iter().any(|local| includes(cron, local))
    };
    let minutes = (from.div_euclid(MINUTE) + 1)..=to.div_euclid(MINUTE);
    minutes.map(|minute| minute * MINUTE).filter(|at| crons.iter().any(|cron| is_time(cron, *at))).collect()
}

fn expression() -> impl Strategy<Value = String> {
    let minute = prop_oneof![Just("*/7".to_owned()), Just("0".to_owned()), (0..60_u32).prop_map(|m| m.to_string())];
    let hour = prop_oneof![
        3 => Just("*".to_owned()),
        2 => (0..4_u32, 0..4_u32).prop_map(|(first, more)| format!("{first}-{}", first + more)),
        1 => Just("*/2".to_owned()),
        1 => Just("0,1,2,3,23".to_owned()),
    ];
    let day = prop_oneof![4 => Just("*".to_owned()), 1 => (1..32_u32).prop_map(|day| day.to_string())];
    let weekday = prop_oneof![4 => Just("*".to_owned()), 1 => (0..8_u32).prop_map(|day| day.to_string())];
    (minute, hour, day, weekday).prop_map(|(m, h, d, w)| format!("{m} {h} {d} * {w}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cron_in_a_zone_has_exactly_the_times_that_a_look_at_every_minute_finds(
        expression in expression(),
        // Changes by an hour, by half an hour, at midnight, twice in a month, by 24 hours, and none.
        (zone, change) in prop::sample::select(vec![
            ("Europe/Berlin", "2026-03-29T01:00Z"),
            ("Europe/Berlin", "2026-10-25T01:00Z"),
            ("America/New_York", "2026-11-01T06:00Z"),
            ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
            ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
            ("America/Havana", "2026-03-08T05:00Z"),
            ("Africa/Casablanca", "2026-02-15T02:00Z"),
            ("Africa/Casablanca", "2026-03-22T02:00Z"),
            ("Pacific/Apia", "2011-12-30T10:00Z"),
            ("Asia/Kolkata", "2026-06-01T00:00Z"),
        ]),
        before in 0..2 * DAY,
        length in HOUR..2 * DAY,
    ) {
        let from = at(change) / SECOND_NS - before;
        let expected = oracle(&expression, zone, from, from + length);
        let schedule = schedule(&format!("cron:{expression}"), Some(zone));
        let mut found = Vec::new();
        let mut now = from * SECOND_NS;
        while let Some(next) = schedule.next_after(now).filter(|next| *next <= (from + length) * SECOND_NS) {
            prop_assert!(next > now);
            found.push(next / SECOND_NS);
            now = next;
        }
        prop_assert_eq!(&found, &expected, "{} in {}", expression, zone);
        // Whatever instant it is asked from.
        let middle = from + length / 2;
        let last = expected.iter().copied().rfind(|at| *at <= middle);
        prop_assert_eq!(schedule.last_until(from * SECOND_NS, middle * SECOND_NS), last.map(|at| at * SECOND_NS));
        let next = expected.iter().copied().find(|at| *at > middle);
        if next.is_some() {
            prop_assert_eq!(schedule.next_after(middle * SECOND_NS + 1), next.map(|at| at * SECOND_NS));
        }
        let start = schedule.start_of_last(from * SECOND_NS, middle * SECOND_NS, 7);
        let (left, all) = (schedule.count(start, middle * SECOND_NS), schedule.count(from * SECOND_NS, middle * SECOND_NS));
        prop_assert!(left <= 7 && (all > 7 || left == all), "{} of {}", left, all);
    }
}

/// A trigger with one run at a time, whose runs take so many seconds of a clock that nobody sets.
struct Simulated {
    scheduler: Scheduler,
    now: i64,
    takes: i64,
    running: Option<(i64, i64)>,
    /// When, for which time, and how many were missed before.
    runs: Vec<(i64, i64, u64)>,
}

impl Simulated {
    fn new(spec: &str, missed_runs: MissedRuns, takes: i64, mark: Option<Mark>) -> Self {
        let scheduler = Scheduler::new(schedule(spec, None), missed_runs, 0, mark);
        Simulated { scheduler, now: 0, takes, running: None, runs: Vec::new() }
    }

    /// The clock goes on, second by second.
    fn pass(&mut self, seconds: i64) -> &mut Self {
        for _ in 0..seconds {
            self.now += 1;
            self.look();
        }
        self
    }

    fn look(&mut self) {
        if let Some((scheduled, _)) = self.running.filter(|(_, until)| *until <= self.now) {
            self.scheduler.finish(scheduled);
            self.running = None;
        }
        while let Step::Run { call, .. } = self.scheduler.poll(self.now * SECOND_NS, self.running.is_none()) {
            let scheduled = call.scheduled_ns;
            self.runs.push((self.now, scheduled / SECOND_NS, call.missed));
            if self.takes == 0 {
                self.scheduler.finish(scheduled);
            } else {
                self.running = Some((scheduled, self.now + self.takes));
            }
        }
    }
}

#[test]
fn runs_longer_than_the_period_make_neither_a_burst_nor_a_drift() {
    let runs = |missed_runs| Simulated::new("every:10s", missed_runs, 25, None).pass(100).runs.clone();
    assert_eq!(runs(MissedRuns::Skip), [(10, 10, 0), (40, 40, 2), (70, 70, 2), (100, 100, 2)]);
    assert_eq!(runs(MissedRuns::Once), [(10, 10, 0), (35, 30, 1), (60, 60, 2), (85, 80, 1)]);
    assert_eq!(runs(MissedRuns::All), [(10, 10, 0), (35, 20, 0), (60, 30, 0), (85, 40, 0)]);
    // A run that fits the period changes nothing.
    let on_time = Simulated::new("every:10s", MissedRuns::Skip, 9, None).pass(35).runs.clone();
    assert_eq!(on_time, [(10, 10, 0), (20, 20, 0), (30, 30, 0)]);
}

#[test]
fn what_was_missed_while_the_server_was_down_is_made_up_for_as_asked() {
    let mark = Some(Mark { handled_ns: 100 * SECOND_NS, last_run_ns: Some(100 * SECOND_NS) });
    let runs = |spec: &str, missed_runs, start: i64, length| {
        let mut trigger = Simulated::new(spec, missed_runs, 0, mark);
        assert_eq!(trigger.scheduler.last_run_ns(), Some(100 * SECOND_NS));
        trigger.now = start - 1;
        trigger.pass(length).runs.clone()
    };
    assert_eq!(runs("every:10s", MissedRuns::Skip, 1000, 20), [(1010, 1010, 90)]);
    assert_eq!(runs("every:10s", MissedRuns::Once, 1000, 20), [(1000, 1000, 89), (1010, 1010, 0)]);
    let all = runs("every:10s", MissedRuns::All, 1000, 1);
    assert_eq!((all[0], all.len(), all[89]), ((1000, 110, 0), 90, (1000, 1000, 0)));
    // Too many are not made up for, and that is told.
    let bounded = runs("every:1s", MissedRuns::All, 6100, 1);
    assert_eq!((bounded[0], bounded.len()), ((6100, 5601, 5500), 500));
    let bounded = runs("cron:* * * * * *", MissedRuns::All, 6100, 1);
    assert!((250..=500).contains(&bounded.len()), "{}", bounded.len());
    assert_eq!(bounded.last().map(|run| run.1), Some(6100));
}

#[test]
fn a_trigger_that_began_after_its_mark_has_missed_nothing_before() {
    let mark = Some(Mark { handled_ns: 10 * SECOND_NS, last_run_ns: None });
    let every = schedule("every:10s", None);
    let mut scheduler = Scheduler::new(every, MissedRuns::Once, 95 * SECOND_NS, mark);
    assert_eq!(scheduler.poll(96 * SECOND_NS, true), Step::Wait(Some(100 * SECOND_NS)));
}

#[test]
fn a_clock_that_is_set_is_followed() {
    let mut hourly = Simulated::new("every:1h", MissedRuns::Skip, 0, None);
    hourly.pass(2 * HOUR);
    // Forward: what is skipped is counted, the run after it is on time.
    hourly.now += 90 * MINUTE;
    hourly.pass(HOUR);
    assert_eq!(hourly.runs, [(3600, 3600, 0), (7200, 7200, 0), (14_400, 14_400, 1)]);
    // Back by little: no time is run again.
    hourly.now = 14_400 - 30;
    hourly.pass(40);
    assert_eq!(hourly.runs.len(), 3);
    // Back by much: the schedule goes on with the new time.
    hourly.now = 5000;
    hourly.pass(HOUR);
    assert_eq!(hourly.runs[3..], [(7200, 7200, 0)]);
}

#[test]
fn the_mark_waits_for_the_oldest_run_that_is_not_over() {
    let mut scheduler = Scheduler::new(schedule("every:10s", None), MissedRuns::All, 5 * SECOND_NS, None);
    let mark = |handled_ns: i64, last: Option<i64>| Some(Mark { handled_ns, last_run_ns: last.map(|s| s * SECOND_NS) });
    assert_eq!(scheduler.take_mark(), mark(5 * SECOND_NS, None));
    assert_eq!(scheduler.take_mark(), None);
    for second in [10, 20] {
        // Overlapping runs.
        assert!(matches!(scheduler.poll(second * SECOND_NS, true), Step::Run { .. }));
    }
    assert_eq!(scheduler.take_mark(), mark(10 * SECOND_NS - 1, Some(20)));
    scheduler.finish(20 * SECOND_NS);
    assert_eq!(scheduler.take_mark(), None);
    scheduler.finish(10 * SECOND_NS);
    assert_eq!(scheduler.take_mark(), mark(20 * SECOND_NS, Some(20)));
}

/// What may happen to a trigger.
#[derive(Clone, Debug)]
enum Event {
    /// So many seconds pass, each looked at.
    Pass(i64),
    /// The clock is set forward, or nobody looks for so long.
    Jump(i64),
    /// Runs take so long from now on.
    Takes(i64),
    /// The process dies and comes back.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..50_i64).prop_map(Event::Pass),
        1 => (1..5_000_i64).prop_map(Event::Jump),
        2 => (0..40_i64).prop_map(Event::Takes),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_time_is_run_once_in_order_or_counted_as_missed(
        period in prop::sample::select(vec!["every:1s", "every:7s", "cron:*/10 * * * * *", "cron:* * * * *"]),
        missed_runs in prop::sample::select(vec![MissedRuns::Skip, MissedRuns::Once, MissedRuns::All]),
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut trigger = Simulated::new(period, missed_runs, 0, None);
        // Every time up to here is over when this life of the process begins.
        let mut handled = 0;
        for event in events {
            match event {
                Event::Pass(seconds) => drop(trigger.pass(seconds)),
                Event::Jump(seconds) => {
                    trigger.now += seconds;
                    trigger.look();
                }
                Event::Takes(seconds) => trigger.takes = seconds,
                Event::Restart => {
                    let mark = trigger.scheduler.take_mark().or(trigger.scheduler.recorded);
                    handled = mark.map_or(0, |mark| mark.handled_ns);
                    trigger.scheduler = Scheduler::new(schedule(period, None), missed_runs, 0, mark);
                    trigger.running = None;
                    trigger.runs.clear();
                    trigger.look();
                }
            }
            let runs = &trigger.runs;
            if let Some((_, first, missed)) = runs.first() {
                let times = trigger.scheduler.schedule.count(handled, first * SECOND_NS);
                prop_assert!(times > 0 && (*missed == times - 1 || times >= SCHEDULE_COUNTED_MAX), "{runs:?}");
            }
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].1), "{runs:?}");
            for (now, scheduled, _) in runs {
                prop_assert!(scheduled <= now);
                let is_time = trigger.scheduler.schedule.next_after(scheduled * SECOND_NS - 1) == Some(scheduled * SECOND_NS);
                prop_assert!(is_time, "{scheduled} is no time of {period}");
                if missed_runs == MissedRuns::Skip {
                    prop_assert!(now - scheduled <= LATE_NS / SECOND_NS);
                }
            }
            // Nothing is lost between two runs: what lies between them was told as missed.
            for pair in runs.windows(2) {
                let between = trigger.scheduler.schedule.count(pair[0].1 * SECOND_NS, pair[1].1 * SECOND_NS) - 1;
                prop_assert!(pair[1].2 == between || between >= SCHEDULE_COUNTED_MAX - 1, "{pair:?}");
                if missed_runs == MissedRuns::All && between > 0 {
                    prop_assert!(between > SCHEDULE_CATCH_UP_MAX / 4, "{pair:?}: only what is too much is passed over");
                }
            }
        }
    }
}
