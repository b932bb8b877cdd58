//! Schedules: at which times a trigger is to run, and what becomes of the times that were missed.
//!
//! No clock is read here: instants are arguments, nanoseconds since the epoch.
//!
//! # Times
//! `every:` has the multiples of its duration since the epoch, whatever the time zone. `cron:` has the local times of a time
//! zone that its fields name. Where clocks are put forward or back, an expression that names every hour has each real
//! hour once: a time that does not exist is left out, one that comes twice is there twice. Any other names times of day, and each
//! is to come once a day: what does not exist comes at the moment when the clocks are put forward (once, however many
//! there are), what would come twice comes the first time.
//!
//! # Missed times
//! A [`Scheduler`] goes from each time to the next, never from the end of a run, so it does not drift. A time is missed when a
//! run of the trigger is under way (unless runs may overlap), when the server is down, or when it is met too late.
//! [`MissedRuns`] says what follows. **Invariants:** the times of runs rise, unless the clock is set back by more than
//! [`SCHEDULE_CLOCK_BACK_MS`]; each time is either run or counted as missed in the run that follows.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use chrono::{DateTime, SecondsFormat};
use cron::TimeUnitSpec as _;
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::limits::{SCHEDULE_CATCH_UP_MAX, SCHEDULE_CLOCK_BACK_MS, SCHEDULE_COUNTED_MAX, SCHEDULE_LATE_MS};
use crate::ports::ScheduledCall;
use crate::trigger::{MissedRuns, TriggerSpec, cron_schedules};

const SECOND_NS: i64 = 1_000_000_000;
const LATE_NS: i64 = SCHEDULE_LATE_MS as i64 * 1_000_000;
const CLOCK_BACK_NS: i64 = SCHEDULE_CLOCK_BACK_MS as i64 * 1_000_000;

/// The IANA database of this build: the system's may be older, newer, or missing.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A name that is no time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time zone: expected a name of the IANA database, such as Europe/Berlin or UTC")]
pub struct UnknownTimeZone(pub String);

/// The name of a time zone as the IANA database writes it; any case is taken.
///
/// # Errors
/// There is none of that name.
pub fn time_zone_name(name: &str) -> Result<String, UnknownTimeZone> {
    let zone = time_zone(name)?;
    Ok(zone.iana_name().unwrap_or(name).to_owned())
}

fn time_zone(name: &str) -> Result<TimeZone, UnknownTimeZone> {
    ZONES.get(name).map_err(|_| UnknownTimeZone(name.to_owned()))
}

/// An instant as RFC 3339 text in UTC, with as many decimals as it needs.
pub fn utc_text(at_ns: i64) -> String {
    DateTime::from_timestamp_nanos(at_ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The times of a schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    times: Times,
    /// The trigger's own.
    zone: Option<TimeZone>,
}

#[derive(Clone, Debug)]
enum Times {
    /// Multiples of so many nanoseconds.
    Every(i64),
    /// Local times, those of all the expressions.
    Cron(Vec<Cron>),
}

#[derive(Clone, Debug)]
struct Cron {
    schedule: cron::Schedule,
    /// It names every hour of the day.
    hourly: bool,
}

impl Schedule {
    /// The schedule of a trigger, `None` if it is no schedule trigger. Without a time zone, cron expressions are read in UTC.
    ///
    /// # Errors
    /// The time zone is not known.
    pub fn new(spec: &TriggerSpec, time_zone_name: Option<&str>) -> Result<Option<Schedule>, UnknownTimeZone> {
        let zone = time_zone_name.map(time_zone).transpose()?;
        let times = match spec {
            TriggerSpec::Every(duration) => Times::Every(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX).max(1)),
            TriggerSpec::Cron(expression) => {
                let schedules = cron_schedules(expression).unwrap_or_default();
                Times::Cron(schedules.into_iter().map(Cron::new).collect())
            }
            TriggerSpec::Table(_) | TriggerSpec::AllTables | TriggerSpec::Request(_) => return Ok(None),
        };
        Ok(Some(Schedule { times, zone }))
    }

    /// The first time after an instant; `None` if there is none any more.
    pub fn next_after(&self, after_ns: i64) -> Option<i64> {
        match &self.times {
            Times::Every(period) => (after_ns.div_euclid(*period) + 1).checked_mul(*period),
            Times::Cron(crons) => {
                let after = after_ns.div_euclid(SECOND_NS);
                let next = crons.iter().filter_map(|cron| cron.next_after(after, self.zone.as_ref())).min()?;
                next.checked_mul(SECOND_NS)
            }
        }
    }

    /// The last time after one instant and not after another.
    pub fn last_until(&self, after_ns: i64, until_ns: i64) -> Option<i64> {
        let mut found = self.next_after(after_ns).filter(|at| *at <= until_ns)?;
        if let Times::Every(period) = self.times {
            return Some(until_ns.div_euclid(period) * period);
        }
        // There is one beyond `low`, and none beyond `high`.
        let (mut low, mut high) = (found, until_ns);
        while low < high {
            match self.next_after(low).filter(|at| *at <= until_ns) {
                None => break,
                Some(next) => (found, low) = (next, next),
            }
            let middle = low + (high - low) / 2;
            match self.next_after(middle).filter(|at| *at <= until_ns) {
                Some(next) => (found, low) = (next, next),
                None => high = middle,
            }
        }
        Some(found)
    }

    /// How many times there are after one instant and not after another; of a cron expression, counted up to
    /// [`SCHEDULE_COUNTED_MAX`].
    pub fn count(&self, after_ns: i64, until_ns: i64) -> u64 {
        self.count_to(after_ns, until_ns, SCHEDULE_COUNTED_MAX)
    }

    fn count_to(&self, after_ns: i64, until_ns: i64, most: u64) -> u64 {
        if let Times::Every(period) = self.times {
            let (before, until) = (after_ns.div_euclid(period), until_ns.div_euclid(period));
            return u64::try_from(until.saturating_sub(before)).unwrap_or(0);
        }
        let mut times = 0;
        let mut at = after_ns;
        while times < most
            && let Some(next) = self.next_after(at).filter(|next| *next <= until_ns)
        {
            times += 1;
            at = next;
        }
        times
    }

    /// An instant, not before `after_ns`, from which on there are at most `most` times until `until_ns`, and not many fewer
    /// if there are more in all.
    fn start_of_last(&self, after_ns: i64, until_ns: i64, most: u64) -> i64 {
        if let Times::Every(period) = self.times {
            let span = i64::try_from(most).unwrap_or(i64::MAX).saturating_mul(period);
            return after_ns.max(until_ns.saturating_sub(span));
        }
        let (mut start, mut width) = (until_ns, SECOND_NS);
        loop {
            let earlier = after_ns.max(until_ns.saturating_sub(width));
            if self.count_to(earlier, until_ns, most + 1) > most {
                return start;
            }
            start = earlier;
            if earlier == after_ns {
                return start;
            }
            width = width.saturating_mul(2);
        }
    }

    /// What the trigger's own time zone is ahead of UTC at an instant; `None` without one.
    pub fn utc_offset_secs(&self, at_ns: i64) -> Option<i32> {
        let zone = self.zone.as_ref()?;
        Some(offset_at(zone, at_ns.div_euclid(SECOND_NS)) as i32)
    }
}

impl Cron {
    fn new(schedule: cron::Schedule) -> Self {
        let hourly = schedule.hours().count() == 24;
        Cron { schedule, hourly }
    }

    /// The first local time after another, both in seconds as if they were UTC.
    fn next_local(&self, after: i64) -> Option<i64> {
        let after = DateTime::from_timestamp(after, 0)?;
        self.schedule.after(&after).next().map(|at| at.timestamp())
    }

    /// The first instant after another, in seconds.
    fn next_after(&self, after: i64, zone: Option<&TimeZone>) -> Option<i64> {
        let Some(zone) = zone else { return self.next_local(after) };
        let mut offset = offset_at(zone, after);
        // Local times beyond this one have not been yet.
        let mut local_after = after + offset;
        if let Some(change) = zone.preceding(timestamp(after + 1)).next() {
            let at = change.timestamp().as_second();
            local_after = local_after.max(self.local_begin(at, offset_at(zone, at - 1), offset) - 1);
        }
        for change in zone.following(timestamp(after)) {
            let local = self.next_local(local_after)?;
            let (at, ahead) = (change.timestamp().as_second(), i64::from(change.offset().seconds()));
            if local < at + offset {
                return Some(local - offset);
            }
            if !self.hourly && local < at + ahead {
                // It does not exist: the clocks pass it now.
                return Some(at);
            }
            local_after = self.local_begin(at, offset, ahead) - 1;
            offset = ahead;
        }
        Some(self.next_local(local_after)? - offset)
    }

    /// The first local time that counts when the clocks are changed at an instant.
    fn local_begin(&self, at: i64, offset_before: i64, offset: i64) -> i64 {
        at + if self.hourly { offset } else { offset.max(offset_before) }
    }
}

fn offset_at(zone: &TimeZone, second: i64) -> i64 {
    i64::from(zone.to_offset(timestamp(second)).seconds())
}

fn timestamp(second: i64) -> Timestamp {
    // Nanoseconds in 64 bits cover less than this type does.
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How far a schedule trigger has come; kept over restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Every time up to here was run to its end, or passed over.
    pub handled_ns: i64,
    /// The last time that was run.
    pub last_run_ns: Option<i64>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run it, and ask again.
    Run {
        /// What for.
        call: ScheduledCall,
        /// It does not make up for a time that was missed.
        on_time: bool,
    },
    /// Ask again at this time; `None`: the schedule has no times any more.
    Wait(Option<i64>),
    /// Ask again when a run can begin.
    Hold,
}

/// Where a trigger is in its schedule.
#[derive(Clone, Debug)]
pub struct Scheduler {
    schedule: Schedule,
    missed_runs: MissedRuns,
    /// Every time up to here was handed over or passed over.
    last_ns: i64,
    /// The first time after it.
    next_ns: Option<i64>,
    /// Times that were passed over since the last run.
    missed: u64,
    /// All of them since the scheduler began.
    missed_total: u64,
    /// Times came while no run could begin.
    held_up: bool,
    /// For [`MissedRuns::All`]: the times up to `owed_to_ns` that are to be run, counted.
    owed: u64,
    owed_to_ns: i64,
    /// Times whose runs are not over.
    open: BTreeSet<i64>,
    last_run_ns: Option<i64>,
    recorded: Option<Mark>,
}

impl Scheduler {
    /// Begins beyond `since_ns`, or where the trigger was in an earlier life.
    pub fn new(schedule: Schedule, missed_runs: MissedRuns, since_ns: i64, mark: Option<Mark>) -> Self {
        let last_ns = mark.map_or(since_ns, |mark| mark.handled_ns.max(since_ns));
        let last_run_ns = mark.and_then(|mark| mark.last_run_ns);
        Scheduler {
            next_ns: schedule.next_after(last_ns),
            schedule,
            missed_runs,
            last_ns,
            missed: 0,
            missed_total: 0,
            held_up: true,
            owed: 0,
            owed_to_ns: last_ns,
            open: BTreeSet::new(),
            last_run_ns,
            recorded: mark,
        }
    }

    /// What is to be done at `now_ns`, if a run can begin (`free`) or not.
    pub fn poll(&mut self, now_ns: i64, free: bool) -> Step {
        if self.last_ns.saturating_sub(now_ns) > CLOCK_BACK_NS {
            self.begin_at(now_ns);
        }
        let Some(next) = self.next_ns else { return Step::Wait(None) };
        if next > now_ns {
            self.held_up = false;
            return Step::Wait(Some(next));
        }
        if !free {
            self.held_up = true;
            return Step::Hold;
        }
        let held_up = std::mem::take(&mut self.held_up);
        match self.missed_runs {
            MissedRuns::Skip => {
                let latest = self.latest(next, now_ns);
                if held_up || now_ns - latest > LATE_NS {
                    self.pass_over(latest);
                    return Step::Wait(self.next_ns);
                }
                Step::Run { call: self.run(latest), on_time: true }
            }
            MissedRuns::Once => {
                let latest = self.latest(next, now_ns);
                Step::Run { call: self.run(latest), on_time: !held_up && now_ns - latest <= LATE_NS }
            }
            MissedRuns::All => {
                self.bound_debt(now_ns);
                let oldest = self.next_ns.unwrap_or(next);
                self.owed = self.owed.saturating_sub(1);
                let on_time = !held_up && now_ns - oldest <= LATE_NS;
                Step::Run { call: self.run(oldest), on_time }
            }
        }
    }

    /// The run of a time is over, or will never be.
    pub fn finish(&mut self, scheduled_ns: i64) {
        self.open.remove(&scheduled_ns);
    }

    /// Another answer to missed times from now on.
    pub fn set_missed_runs(&mut self, missed_runs: MissedRuns) {
        self.missed_runs = missed_runs;
        (self.owed, self.owed_to_ns) = (0, self.last_ns);
    }

    /// How far it has come, if that is further than when it was taken last.
    pub fn take_mark(&mut self) -> Option<Mark> {
        let handled_ns = self.open.first().map_or(self.last_ns, |first| (first - 1).min(self.last_ns));
        let mark = Mark { handled_ns, last_run_ns: self.last_run_ns };
        (self.recorded.replace(mark) != Some(mark)).then_some(mark)
    }

    /// It waits until a run can begin.
    pub fn is_held_up(&self) -> bool {
        self.held_up
    }

    /// The next time.
    pub fn next_ns(&self) -> Option<i64> {
        self.next_ns
    }

    /// The last time that was run.
    pub fn last_run_ns(&self) -> Option<i64> {
        self.last_run_ns
    }

    /// Times that were passed over since the scheduler began.
    pub fn missed_total(&self) -> u64 {
        self.missed_total
    }

    fn begin_at(&mut self, now_ns: i64) {
        self.last_ns = now_ns;
        self.next_ns = self.schedule.next_after(now_ns);
        (self.missed, self.held_up, self.owed, self.owed_to_ns) = (0, false, 0, now_ns);
    }

    /// The last time that is due, if `next` is.
    fn latest(&self, next: i64, now_ns: i64) -> i64 {
        self.schedule.last_until(next, now_ns).unwrap_or(next)
    }

    /// Passes over what is due before a time, and takes that for a run.
    fn run(&mut self, scheduled_ns: i64) -> ScheduledCall {
        if self.next_ns != Some(scheduled_ns) {
            self.pass_over(scheduled_ns - 1);
        }
        self.last_ns = scheduled_ns;
        self.next_ns = self.schedule.next_after(scheduled_ns);
        self.last_run_ns = Some(scheduled_ns);
        self.open.insert(scheduled_ns);
        let utc_offset_secs = self.schedule.utc_offset_secs(scheduled_ns);
        ScheduledCall { scheduled_ns, missed: std::mem::take(&mut self.missed), utc_offset_secs }
    }

    fn pass_over(&mut self, to_ns: i64) {
        let times = self.schedule.count(self.last_ns, to_ns);
        self.missed = self.missed.saturating_add(times);
        self.missed_total = self.missed_total.saturating_add(times);
        self.last_ns = to_ns;
        self.next_ns = self.schedule.next_after(to_ns);
    }

    /// Passes over the oldest times if too many are to be run.
    fn bound_debt(&mut self, now_ns: i64) {
        let counted_to = self.owed_to_ns.max(self.last_ns);
        self.owed = self.owed.saturating_add(self.schedule.count_to(counted_to, now_ns, SCHEDULE_CATCH_UP_MAX + 1));
        self.owed_to_ns = now_ns;
        if self.owed > SCHEDULE_CATCH_UP_MAX {
            // Half of them, so that this is not done again with the next time.
            let start = self.schedule.start_of_last(self.last_ns, now_ns, SCHEDULE_CATCH_UP_MAX / 2);
            self.pass_over(start);
            self.owed = self.schedule.count_to(start, now_ns, SCHEDULE_CATCH_UP_MAX);
        }
    }
}

#[cfg(test)]
mod tests;
