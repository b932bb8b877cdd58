//! A deferred interpreter: a few threads that share it, and a guard that replaces what is lost. Which triggers run in which is in
//! [`crate::rooms`].
//!
//! # Mechanism
//! 1. Workers take jobs from one bounded queue. There are few at first; when all of them are busy the guard hires another, up to a
//!    bound, so that runs which wait for something delay no other trigger. Each job is entered in the *book* while it is under way, with the instant at
//!    which it is overdue: its deadline, at which it is interrupted, and a grace.
//! 2. After an interrupt the interpreter is *suspect*: it may have been raised between the acquisition of a lock and the block that
//!    releases it. So it may be if a job is overdue. Then a *canary* (`saltus._canary`) has `CANARY_MS` to show that importing,
//!    logging and threads work, on a thread that is left behind if it does not come back.
//! 3. The canary came back: only the overdue run is lost. It waits for something, without the GIL, and its thread is left behind;
//!    another takes its place.
//! 4. It did not: the interpreter is given up. A new one with new workers goes on with the same queue. Jobs in the book are taken
//!    out of it: the guilty runs fail with [`PluginError::STUCK`], which moves their triggers to the process lane; the others
//!    are run again.
//! 5. Whoever takes a job out of the book answers for it: a worker that comes back late finds nothing, and goes.
//!
//! Threads and interpreters that are left behind are bounded ([`THREADS_LEFT_BEHIND_MAX`], [`INTERPRETERS_GIVEN_UP_MAX`]): beyond, the
//! process asks for a restart.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender, TrySendError};
use parking_lot::Mutex;
use saltus_core::ids::{RoomId, ShardId, TriggerId};
use saltus_core::limits::{
    CANARY_MS, DEFERRED_WORKERS_MIN, IMPORT_TRIAL_RUN_WAIT_MS, INTERPRETERS_GIVEN_UP_MAX, THREADS_LEFT_BEHIND_MAX,
};
use saltus_core::ports::{CodeVerdict, Completions, PluginCode, PluginError, RunReport, RunRequest, Unwound};
use saltus_core::trigger::{Execution, Isolation};

use crate::deadline;
use crate::effects::{self, Lane};
use crate::ffi::pystate::InterpreterId;
use crate::ffi::time;
use crate::global_cache::{self, Home};
use crate::interpreter::{Interpreter, failure};
use crate::lanes::{Shared, tell};
use crate::memory_limit;
use crate::prepare::Prepared;
use crate::refusals;
use crate::runtime::Priority;

/// How often the guard looks for overdue jobs.
const LOOK: Duration = Duration::from_millis(100);

/// After so long an interpreter that could not be made is tried again.
const MADE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Triggers of which little is known.
    New,
    /// Triggers whose runs are short.
    Shared,
    /// A trigger whose runs take long, or several if there must be.
    Own,
}

impl Kind {
    /// The letter in the names of its threads.
    fn letter(self) -> char {
        match self {
            Kind::New => 'n',
            Kind::Shared => 's',
            Kind::Own => 'o',
        }
    }

    fn priority(self) -> Priority {
        match self {
            Kind::Shared => Priority::Short,
            Kind::New | Kind::Own => Priority::Long,
        }
    }

    fn workers_min(self) -> usize {
        match self {
            Kind::New | Kind::Shared => DEFERRED_WORKERS_MIN,
            Kind::Own => 1,
        }
    }
}

/// CPU time during a canary's wait that makes a worker one that is busy: little, as it may share its CPU with a shard.
const BUSY_NS: u64 = CANARY_MS * 1_000_000 / 100;

/// How often it is looked at whether a worker runs, and after which pauses.
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// Interpreters given up by all shards of the process.
static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// What a trigger's cache was, as bytes.
pub type CacheAnswer = Sender<Result<Vec<u8>, String>>;

/// What can be kept of all caches of an interpreter: per trigger the bytes, and the keys of the rest.
pub type CachesAnswer = Sender<Vec<(TriggerId, Vec<u8>, Vec<String>)>>;

/// What a run finds in its cache.
pub enum CacheIn {
    /// What is in the interpreter.
    Stays,
    /// This, whatever is there; empty: nothing.
    Fresh(Arc<[u8]>),
}

/// A run for a worker.
pub struct Run {
    /// What is to be run.
    pub request: Box<RunRequest>,
    /// What it finds.
    pub cache: CacheIn,
    /// Who is told when it is over: the trigger's home.
    pub home: Arc<dyn Completions>,
}

/// For whom a cache is taken out of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// The inline interpreter: nothing that an inline run could not put back as it was.
    Inline,
    /// Another deferred one: whatever is plain.
    Deferred,
}

/// What a worker does.
pub enum Job {
    /// A run.
    Run(Run),
    /// Takes a trigger's cache out of the interpreter.
    TakeCache(TriggerId, Taker, CacheAnswer, Arc<dyn Completions>),
    /// Drops a trigger's cache.
    DropCache(TriggerId),
    /// Says what caches hold.
    DumpCaches(CachesAnswer),
}

/// A shard's end of a deferred interpreter.
pub struct Deferred {
    id: RoomId,
    queue: Sender<Job>,
    crew: Arc<Crew>,
}

impl Deferred {
    /// Makes the interpreter and starts the workers; returns when all are ready. One of [`Kind::Own`] is made while the shard goes on:
    /// what it is given waits until then.
    ///
    /// # Errors
    /// What Python or the system said.
    pub fn start(
        shared: Arc<Shared>,
        (shard, kind): (ShardId, Kind),
        workers: usize,
        queue_max: usize,
        completions: Arc<dyn Completions>,
    ) -> Result<Self, PluginError> {
        let (queue, jobs) = channel::bounded(queue_max.max(1));
        let (requests, requested) = channel::bounded(workers.max(1) * 2);
        let id = RoomId(shared.rooms_made.fetch_add(1, Ordering::Relaxed));
        let crew = Arc::new(Crew {
            id,
            kind,
            shared,
            shard,
            workers: workers.max(1),
            jobs,
            back: queue.clone(),
            completions,
            requests,
            idle: AtomicUsize::new(0),
            book: Mutex::default(),
            next_job: AtomicU64::new(1),
            generation: AtomicU64::new(0),
            left_behind: AtomicUsize::new(0),
            interpreter: AtomicUsize::new(0),
            bytes_at_first: AtomicU64::new(0),
        });
        let team = if kind == Kind::Own { None } else { Some(Team::make(&crew)?) };
        let watched = crew.clone();
        std::thread::Builder::new()
            .name(format!("saltus-py-{shard}{}-guard", kind.letter()))
            .spawn(move || Guard::live(watched, requested, team))
            .map_err(|e| failure("OSError", &format!("cannot start the guard of plugin workers: {e}")))?;
        Ok(Deferred { id, queue, crew })
    }

    /// Which one it is.
    pub fn id(&self) -> RoomId {
        self.id
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.crew.kind
    }

    /// Whose it is.
    pub fn shard(&self) -> ShardId {
        self.crew.shard
    }

    /// Bytes that it needed when it was made.
    pub fn bytes_at_first(&self) -> u64 {
        self.crew.bytes_at_first.load(Ordering::Relaxed)
    }

    /// Bytes that it holds, with all that triggers hold in it.
    pub fn bytes(&self) -> u64 {
        self.bytes_at_first() + memory_limit::held_in(self.crew.interpreter.load(Ordering::Relaxed))
    }

    /// Whether a job would find no room.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Hands a job over, or back.
    ///
    /// # Errors
    /// The job.
    pub fn send(&self, job: Job) -> Result<(), Job> {
        self.queue.try_send(job).map_err(|(TrySendError::Full(job) | TrySendError::Disconnected(job))| job)?;
        if self.crew.idle.load(Ordering::SeqCst) < self.queue.len() {
            // If the guard has its hands full, it is asked again with the next job, and looks by itself now and then.
            let _asked = self.crew.requests.try_send(Ask::Hire);
        }
        Ok(())
    }

    /// Has the guard look for runs that are to end early; if it has its hands full, it looks by itself soon.
    pub fn nudge(&self) {
        let _asked = self.crew.requests.try_send(Ask::Hire);
    }

    /// Rises when the interpreter is given up, and with it all caches in it.
    pub fn generation(&self) -> u64 {
        self.crew.generation.load(Ordering::Acquire)
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        // The guard and the workers hold senders themselves.
        self.crew.generation.store(u64::MAX, Ordering::Release);
    }
}

/// A job under way.
struct UnderWay {
    /// When its worker got the interpreter: when it is overdue.
    overdue: Option<Instant>,
    /// The CPU time of its worker.
    clock: Option<i32>,
    /// The system's number of its worker's thread.
    thread_id: i32,
    what: Taken,
    /// It was interrupted because nobody wants it any more.
    cancelled: bool,
}

impl UnderWay {
    fn cpu_ns(&self) -> u64 {
        self.clock.and_then(time::of_clock).unwrap_or(0)
    }
}

enum Taken {
    Run(Box<RunRequest>, Arc<dyn Completions>),
    /// Dropped when it is given up: whoever waits for the answer sees that.
    TakeCache {
        _answer: CacheAnswer,
        asked_by: Arc<dyn Completions>,
    },
    /// Likewise; nobody waits, or not for long.
    Caches,
}

/// What workers and guard share.
struct Crew {
    id: RoomId,
    kind: Kind,
    shared: Arc<Shared>,
    shard: ShardId,
    workers: usize,
    jobs: Receiver<Job>,
    /// For a job that a worker took and may not do any more.
    back: Sender<Job>,
    completions: Arc<dyn Completions>,
    /// To the guard.
    requests: Sender<Ask>,
    /// Workers that wait for a job.
    idle: AtomicUsize,
    book: Mutex<HashMap<u64, UnderWay>>,
    next_job: AtomicU64,
    /// Of the interpreter in use; `u64::MAX` when the lane ends.
    generation: AtomicU64,
    /// Threads in runs that wait for ever.
    left_behind: AtomicUsize,
    /// The interpreter in use, as a number, and the bytes that it needed when it was made.
    interpreter: AtomicUsize,
    bytes_at_first: AtomicU64,
}

/// What the guard is asked.
enum Ask {
    /// Is an interpreter sound?
    Suspect(Suspicion),
    /// There are more jobs than workers that wait for one.
    Hire,
}

/// A run was interrupted: is its interpreter sound?
struct Suspicion {
    generation: u64,
    verdict: Sender<bool>,
}

impl Crew {
    fn enter(&self, what: Taken) -> u64 {
        let job = self.next_job.fetch_add(1, Ordering::Relaxed);
        let clock = time::cpu_clock_of_this_thread();
        let thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        self.book.lock().insert(job, UnderWay { overdue: None, clock, thread_id, what, cancelled: false });
        job
    }

    /// The job has the interpreter: its time runs.
    fn begin(&self, job: u64) {
        if let Some(under_way) = self.book.lock().get_mut(&job) {
            let deadline = match &under_way.what {
                Taken::Run(request, _) => request.deadline,
                Taken::TakeCache { .. } | Taken::Caches => Duration::ZERO,
            };
            // Far enough for any deadline.
            let time = deadline.saturating_add(self.shared.deferred_grace).min(Duration::from_secs(1 << 31));
            under_way.overdue = Some(Instant::now() + time);
        }
    }

    /// Takes a job out of the book; `None` if somebody else has answered for it.
    fn take(&self, job: u64) -> Option<UnderWay> {
        self.book.lock().remove(&job)
    }

    fn is_current(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) == generation
    }

    fn report(&self, report: RunReport, home: &dyn Completions) {
        home.completed(report);
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An interpreter with its workers.
struct Team {
    interpreter: InterpreterId,
    generation: u64,
    /// Dropped: workers that wait for a job go.
    _stay: Sender<()>,
    stays: Receiver<()>,
    /// How many were hired, those left behind included.
    hired: usize,
    /// How many there are.
    staff: usize,
    /// Of these, how many wait for the GIL to come in.
    joining: Arc<AtomicUsize>,
}

impl Team {
    fn make(crew: &Arc<Crew>) -> Result<Self, PluginError> {
        let generation = crew.generation.load(Ordering::Acquire);
        let (stay, stays) = channel::bounded(0);
        let (made, is_made) = channel::bounded(1);
        let entered = move |outcome| drop(made.send(outcome));
        hire(crew, generation, None, &stays, 0, entered)?;
        // Nobody else has a GIL that is made just now.
        let interpreter = is_made.recv().unwrap_or_else(|_| Err(failure("RuntimeError", "a plugin worker died")))?;
        let staff = crew.workers.min(crew.kind.workers_min());
        let joining = Arc::default();
        let mut team = Team { interpreter, generation, _stay: stay, stays, hired: 1, staff, joining };
        for _ in 1..staff {
            team.hire(crew)?;
        }
        Ok(team)
    }

    /// Hires another worker if jobs wait for one, and there may be more; not while the last one is not in yet, as then the next one
    /// would not come in either.
    fn grow(&mut self, crew: &Arc<Crew>) {
        let enough = self.staff >= crew.workers || crew.jobs.len() <= crew.idle.load(Ordering::SeqCst);
        if enough || self.joining.load(Ordering::SeqCst) > 0 {
            return;
        }
        match self.hire(crew) {
            Ok(()) => {
                self.staff += 1;
                tracing::debug!(shard = crew.shard.0, workers = self.staff, "another plugin worker was hired");
            }
            Err(error) => {
                tracing::warn!(shard = crew.shard.0, error = %error.message, "runs wait, and no plugin worker can be hired");
            }
        }
    }

    /// Another worker for the same interpreter. Not waited for: a run that does not let go of the GIL keeps it out, and the guard is who
    /// ends that.
    fn hire(&mut self, crew: &Arc<Crew>) -> Result<(), PluginError> {
        let (joining, shard) = (self.joining.clone(), crew.shard.0);
        let entered = move |outcome: Result<InterpreterId, PluginError>| {
            joining.fetch_sub(1, Ordering::SeqCst);
            if let Err(error) = outcome {
                tracing::error!(shard, error = %error.message, "the deferred lane has a worker less");
            }
        };
        self.joining.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = hire(crew, self.generation, Some(self.interpreter), &self.stays, self.hired, entered) {
            self.joining.fetch_sub(1, Ordering::SeqCst);
            return Err(error);
        }
        self.hired += 1;
        Ok(())
    }
}

/// Starts a worker, which tells once it is in its interpreter, or why it is not.
fn hire(
    crew: &Arc<Crew>,
    generation: u64,
    interpreter: Option<InterpreterId>,
    stays: &Receiver<()>,
    number: usize,
    entered: impl FnOnce(Result<InterpreterId, PluginError>) + Send + 'static,
) -> Result<(), PluginError> {
    let worker = Worker { crew: crew.clone(), generation, stays: stays.clone() };
    std::thread::Builder::new()
        .name(format!("saltus-py-{}{}-{number}", crew.shard, crew.kind.letter()))
        .spawn(move || worker.live(interpreter, entered))
        .map(drop)
        .map_err(|e| failure("OSError", &format!("cannot start a plugin worker: {e}")))
}

struct Guard {
    crew: Arc<Crew>,
    requested: Receiver<Ask>,
    team: Team,
}

impl Guard {
    /// Makes the team, if there is none yet, and watches over it.
    fn live(crew: Arc<Crew>, requested: Receiver<Ask>, team: Option<Team>) {
        // It interrupts what others wait for.
        crew.shared.scheduling.apply(Priority::Short);
        let mut made = team.map_or_else(|| Team::make(&crew), Ok);
        loop {
            match made {
                Ok(team) => {
                    crew.completions.prepared();
                    return Guard { crew, requested, team }.watch();
                }
                Err(error) => {
                    tracing::error!(shard = crew.shard.0, error = %error.message, "an interpreter for runs that take long cannot be made; it is tried again, and they wait");
                }
            }
            std::thread::sleep(MADE_AGAIN_AFTER);
            if crew.generation.load(Ordering::Acquire) == u64::MAX {
                return;
            }
            made = Team::make(&crew);
        }
    }

    fn watch(&mut self) {
        loop {
            let suspicion = match self.requested.recv_timeout(LOOK) {
                Ok(Ask::Suspect(suspicion)) => Some(suspicion),
                Ok(Ask::Hire) | Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.crew.generation.load(Ordering::Acquire) == u64::MAX {
                return;
            }
            self.team.grow(&self.crew);
            self.cancel();
            // A suspicion about an interpreter that has been given up since is confirmed.
            if let Some(Suspicion { generation, verdict }) = &suspicion
                && *generation != self.team.generation
            {
                let _gone = verdict.send(false);
                continue;
            }
            let overdue = self.overdue();
            if (suspicion.is_none() && overdue.is_empty()) || self.crew.shared.stopping.load(Ordering::SeqCst) {
                if let Some(Suspicion { verdict, .. }) = suspicion {
                    let _gone = verdict.send(true);
                }
                continue;
            }
            let before = self.cpu_times();
            let sound = canary(&self.crew, self.team.interpreter);
            let busy = self.busy_since(&before);
            // A run that has the interpreter to itself, and has time left.
            if !sound && busy.iter().any(|job| !overdue.contains(job)) {
                if let Some(Suspicion { verdict, .. }) = suspicion {
                    let _gone = verdict.send(true);
                }
                continue;
            }
            if let Some(Suspicion { verdict, .. }) = suspicion {
                let _gone = verdict.send(sound);
            }
            if sound && self.crew.left_behind.load(Ordering::Relaxed) + overdue.len() <= THREADS_LEFT_BEHIND_MAX {
                self.leave_behind(&overdue);
            } else {
                // Others that are overdue wait for the one that does not let them in.
                let guilty: Vec<u64> = overdue.iter().copied().filter(|job| busy.contains(job)).collect();
                self.give_up(if guilty.is_empty() { &overdue } else { &guilty });
            }
        }
    }

    fn cpu_times(&self) -> HashMap<u64, u64> {
        self.crew.book.lock().iter().map(|(job, under_way)| (*job, under_way.cpu_ns())).collect()
    }

    /// Jobs whose worker has been running since, and is. Who waits for the GIL looks for it now and then, which uses the
    /// processor as well, but is asleep in between.
    fn busy_since(&self, before: &HashMap<u64, u64>) -> Vec<u64> {
        let after = self.cpu_times();
        let used = |job: &u64, then: &u64| after.get(job).map_or(0, |now| now.saturating_sub(*then));
        let mut busy: Vec<u64> =
            before.iter().filter(|(job, then)| used(job, then) > BUSY_NS).map(|(job, _)| *job).collect();
        for _ in 0..LOOKS {
            let book = self.crew.book.lock();
            busy.retain(|job| book.get(job).is_some_and(|under_way| deadline::would_run(under_way.thread_id)));
            drop(book);
            std::thread::sleep(BETWEEN_LOOKS);
        }
        busy
    }

    /// Interrupts runs that are to end early. What does not end then is overdue after the usual grace.
    fn cancel(&self) {
        let mut book = self.crew.book.lock();
        for under_way in book.values_mut().filter(|under_way| !under_way.cancelled) {
            let Taken::Run(request, _) = &under_way.what else { continue };
            if under_way.overdue.is_none() || request.stop.cause().is_none() {
                continue;
            }
            under_way.cancelled = true;
            let grace = Instant::now() + self.crew.shared.deferred_grace;
            under_way.overdue = under_way.overdue.map(|overdue| overdue.min(grace));
            deadline::cancel(request.run_id);
        }
    }

    fn overdue(&self) -> Vec<u64> {
        let now = Instant::now();
        let book = self.crew.book.lock();
        book.iter()
            .filter(|(_, under_way)| under_way.overdue.is_some_and(|overdue| overdue <= now))
            .map(|(job, _)| *job)
            .collect()
    }

    /// The interpreter is sound: these runs wait for something that does not come, each on a thread of its own.
    fn leave_behind(&mut self, overdue: &[u64]) {
        for job in overdue {
            let Some(under_way) = self.crew.take(*job) else { continue };
            self.crew.left_behind.fetch_add(1, Ordering::Relaxed);
            self.fail(under_way, "it waits for something that cannot be interrupted, and its thread is left behind");
            if let Err(error) = self.team.hire(&self.crew) {
                tracing::error!(shard = self.crew.shard.0, error = %error.message, "the deferred lane has a worker less");
            }
        }
    }

    /// The interpreter does not work any more.
    fn give_up(&mut self, guilty: &[u64]) {
        let crew = self.crew.clone();
        let given_up = GIVEN_UP.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(
            shard = crew.shard.0,
            given_up,
            "the deferred interpreter is given up: a run in it cannot be ended, or has left a lock behind; a new one takes its place"
        );
        crew.generation.store(self.team.generation + 1, Ordering::Release);
        global_cache::local().lost(Home::Room(crew.id));
        let lost: Vec<(u64, UnderWay)> = {
            let mut book = crew.book.lock();
            let jobs: Vec<u64> = book.keys().copied().collect();
            jobs.into_iter().filter_map(|job| Some((job, book.remove(&job)?))).collect()
        };
        match Team::make(&crew) {
            Ok(team) => {
                // Workers of the old one that wait for a job go when its end of the channel is dropped.
                self.team = team;
                crew.left_behind.store(0, Ordering::Relaxed);
            }
            Err(error) => {
                crew.shared.host.ask_restart(format!(
                    "the deferred interpreter of shard {} cannot be replaced: {}",
                    crew.shard, error.message
                ));
            }
        }
        if given_up >= INTERPRETERS_GIVEN_UP_MAX {
            crew.shared.host.ask_restart(format!(
                "{given_up} interpreters were given up because of plugins whose runs could not be ended: restart the server to have their memory and threads back"
            ));
        }
        for (job, under_way) in lost {
            if guilty.contains(&job) {
                self.fail(under_way, "it is in a call that cannot be interrupted, and its interpreter is given up");
            } else {
                match under_way.what {
                    Taken::Run(request, home) => {
                        let error = failure("Unwound", "the run is discarded");
                        let unwound = Some(Unwound::InterpreterLost);
                        let report = RunReport { unwound, ..RunReport::not_run(*request, error, time::now()) };
                        crew.report(report, home.as_ref());
                    }
                    Taken::TakeCache { asked_by, .. } => asked_by.prepared(),
                    Taken::Caches => {}
                }
            }
        }
        crew.completions.prepared();
    }

    fn fail(&self, under_way: UnderWay, why: &str) {
        let (request, home) = match under_way.what {
            Taken::Run(request, home) => (request, home),
            Taken::TakeCache { asked_by, .. } => return asked_by.prepared(),
            Taken::Caches => return self.crew.completions.prepared(),
        };
        if request.stop.cause().is_some() {
            let error = failure(PluginError::CANCELLED, &format!("{}; it did not end: {why}", effects::CANCELLED));
            return self.crew.report(RunReport::not_run(*request, error, time::now()), home.as_ref());
        }
        let limit = request.deadline.as_millis();
        let text = format!(
            "the run took longer than its deadline of {limit} ms and did not end when it was interrupted: {why}"
        );
        let message = format!("PluginTimeout: {text}");
        let error = PluginError { kind: PluginError::STUCK.to_owned(), message, traceback: String::new() };
        self.crew.report(RunReport::not_run(*request, error, time::now()), home.as_ref());
    }
}

/// Whether the interpreter still does what every plugin needs.
fn canary(crew: &Arc<Crew>, interpreter: InterpreterId) -> bool {
    let (answer, answered) = channel::bounded(1);
    let within = Duration::from_millis(CANARY_MS);
    let scheduling = crew.shared.scheduling.clone();
    let started = std::thread::Builder::new().name(format!("saltus-py-{}-canary", crew.shard)).spawn(move || {
        scheduling.apply(Priority::Short);
        let Ok(visitor) = Interpreter::join(interpreter) else { return };
        let sound = visitor.check(within);
        visitor.abandon();
        let _late = answer.send(sound);
    });
    let sound = match started {
        Ok(_) => answered.recv_timeout(within.saturating_mul(2)).unwrap_or_else(|_| Err("it does not answer".into())),
        Err(error) => Err(format!("no thread for it: {error}")),
    };
    if let Err(why) = &sound {
        tracing::warn!(shard = crew.shard.0, why, "the deferred interpreter is not sound");
    }
    sound.is_ok()
}

/// The report of a run that is to be made where its module loads.
fn not_run_here(request: RunRequest, code: &PluginCode, prepared: &Prepared, module: &str) -> RunReport {
    let verdict = CodeVerdict { hash: code.hash, inline: prepared.inline.clone() };
    RunReport { code: Some(verdict), ..RunReport::not_run(request, refusals::refusal(module), time::now()) }
}

/// One worker.
struct Worker {
    crew: Arc<Crew>,
    generation: u64,
    stays: Receiver<()>,
}

enum Next {
    TakeCache {
        job: u64,
        trigger: TriggerId,
        taker: Taker,
        answer: CacheAnswer,
        asked_by: Arc<dyn Completions>,
    },
    DropCache {
        job: u64,
        trigger: TriggerId,
    },
    DumpCaches {
        job: u64,
        answer: CachesAnswer,
    },
    Run {
        job: u64,
        run: Run,
        code: Arc<PluginCode>,
        prepared: Arc<Prepared>,
        /// A module of the code does not load here, and the trigger may move to where it does.
        refused: Option<Arc<str>>,
    },
    /// Nothing: a run was not wanted any more.
    Look,
}

impl Worker {
    fn live(
        self,
        interpreter: Option<InterpreterId>,
        entered: impl FnOnce(Result<InterpreterId, PluginError>) + Send + 'static,
    ) {
        let crew = &self.crew;
        crew.shared.scheduling.apply(crew.kind.priority());
        let made = match interpreter {
            None => {
                let (made, bytes) =
                    memory_limit::counted(|| Interpreter::create(Lane::Deferred, &crew.shared.surroundings));
                crew.bytes_at_first.store(bytes, Ordering::Relaxed);
                made
            }
            Some(id) => Interpreter::join(id),
        };
        let mut interpreter = match made {
            Ok(interpreter) => interpreter,
            Err(error) => return entered(Err(error)),
        };
        interpreter.is_room(crew.id);
        let id = interpreter.id();
        crew.interpreter.store(id.as_usize(), Ordering::Relaxed);
        let mut entered = Some(entered);
        while let Some(next) = interpreter.while_waiting(|| {
            if let Some(entered) = entered.take() {
                entered(Ok(id));
            }
            self.next()
        }) {
            let goes_on = match next {
                Next::TakeCache { job, trigger, taker, answer, asked_by } => {
                    crew.begin(job);
                    let taken = interpreter.take_cache(trigger, taker);
                    let mine = crew.take(job).is_some();
                    if mine {
                        let _gone = answer.send(taken);
                        asked_by.prepared();
                    }
                    mine
                }
                Next::Look => true,
                Next::DropCache { job, trigger } => {
                    crew.begin(job);
                    interpreter.drop_cache(trigger);
                    crew.take(job).is_some()
                }
                Next::DumpCaches { job, answer } => {
                    crew.begin(job);
                    let _late = answer.send(interpreter.dump_caches());
                    crew.take(job).is_some()
                }
                Next::Run { job, run: Run { request, cache, home }, code, prepared, refused } => {
                    let trigger = request.trigger.def.id;
                    if let CacheIn::Fresh(bytes) = cache {
                        interpreter.drop_cache(trigger);
                        if let Err(error) = interpreter.put_cache(trigger, &bytes) {
                            tell(crew.shared.host.as_ref(), &request, format!("the cache is lost: {}", error.message));
                        }
                    }
                    crew.begin(job);
                    let report = match refused {
                        Some(module) => not_run_here(*request, &code, &prepared, &module),
                        None => interpreter.run(&crew.shared.host, *request, &code, &prepared, Lane::Deferred),
                    };
                    interpreter.while_waiting(|| self.hand_in(job, report, home.as_ref()))
                }
            };
            if !goes_on {
                break;
            }
        }
        // The interpreter lives on, but this thread does not run in it: its GIL must not stay with a thread that ends.
        interpreter.abandon();
    }

    /// Reports a run, unless the guard has; whether this worker goes on.
    fn hand_in(&self, job: u64, mut report: RunReport, home: &dyn Completions) -> bool {
        let crew = &self.crew;
        if crew.take(job).is_none() {
            crew.left_behind.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
            tracing::warn!(
                run = report.request.run_id.0,
                "a run that was left behind has ended after all; what it wanted written is discarded"
            );
            return false;
        }
        let mut sound = true;
        if let Err(error) = &mut report.result
            && matches!(error.kind.as_str(), "PluginTimeout" | PluginError::CANCELLED)
            && !crew.shared.stopping.load(Ordering::SeqCst)
        {
            let (verdict, spoken) = channel::bounded(1);
            let suspicion = Suspicion { generation: self.generation, verdict };
            // If the guard has its hands full, it looks at this very interpreter.
            sound = crew.requests.try_send(Ask::Suspect(suspicion)).is_err() || spoken.recv().unwrap_or(true);
            if !sound && error.kind != PluginError::CANCELLED {
                PluginError::STUCK.clone_into(&mut error.kind);
                error.message.push_str("; and it has left its interpreter unusable");
            }
        }
        crew.report(report, home);
        sound
    }

    /// What to do next, a run with its newest code; `None` when this worker is not needed any more.
    fn next(&self) -> Option<Next> {
        let crew = &self.crew;
        crew.idle.fetch_add(1, Ordering::SeqCst);
        let taken = channel::select! {
            recv(crew.jobs) -> job => job.ok(),
            recv(self.stays) -> _gone => None,
        };
        crew.idle.fetch_sub(1, Ordering::SeqCst);
        let taken = taken?;
        let job = match &taken {
            Job::TakeCache(_, _, answer, asked_by) => {
                crew.enter(Taken::TakeCache { _answer: answer.clone(), asked_by: asked_by.clone() })
            }
            Job::DropCache(_) | Job::DumpCaches(_) => crew.enter(Taken::Caches),
            Job::Run(Run { request, home, .. }) => {
                crew.shared.running.fetch_add(1, Ordering::SeqCst);
                crew.enter(Taken::Run(request.clone(), home.clone()))
            }
        };
        // Entered first, asked then: either the guard finds it in the book, or this thread finds that it is too late.
        if !crew.is_current(self.generation) {
            self.give_back(job, taken);
            return None;
        }
        match taken {
            Job::TakeCache(trigger, taker, answer, asked_by) => {
                Some(Next::TakeCache { job, trigger, taker, answer, asked_by })
            }
            Job::DropCache(trigger) => Some(Next::DropCache { job, trigger }),
            Job::DumpCaches(answer) => Some(Next::DumpCaches { job, answer }),
            Job::Run(run) => {
                let request = &run.request;
                if crew.shared.stopping.load(Ordering::SeqCst) {
                    drop(crew.take(job));
                    crew.shared.running.fetch_sub(1, Ordering::SeqCst);
                    return None;
                }
                if request.stop.cause().is_some() {
                    let error = failure(PluginError::CANCELLED, effects::CANCELLED);
                    if crew.take(job).is_some() {
                        crew.report(RunReport::not_run(*run.request, error, time::now()), run.home.as_ref());
                    }
                    return Some(Next::Look);
                }
                let code = request.trigger.code.refresh();
                let prepared = crew.shared.preparer.prepare(&code, &request.trigger.def.plugin_filename);
                let def = &request.trigger.def;
                let may_move = def.isolation == Isolation::Auto && def.execution != Execution::Inline;
                let within = Duration::from_millis(IMPORT_TRIAL_RUN_WAIT_MS);
                let found = may_move.then(|| crew.shared.imports.wait(&code, within)).flatten();
                let refused = found.and_then(|found| found.refused.clone());
                Some(Next::Run { job, run, code, prepared, refused })
            }
        }
    }

    /// A job for an interpreter that was given up meanwhile.
    fn give_back(&self, job: u64, taken: Job) {
        let crew = &self.crew;
        if crew.take(job).is_none() {
            return;
        }
        if matches!(taken, Job::Run(..)) {
            crew.shared.running.fetch_sub(1, Ordering::SeqCst);
        }
        if let Err(TrySendError::Full(Job::Run(run)) | TrySendError::Disconnected(Job::Run(run))) =
            crew.back.try_send(taken)
        {
            let error = failure("Unwound", "the run is discarded");
            let unwound = Some(Unwound::InterpreterLost);
            run.home.completed(RunReport { unwound, ..RunReport::not_run(*run.request, error, time::now()) });
        }
    }
}
