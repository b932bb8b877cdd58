//! Which of its deferred interpreters a shard runs a trigger in: one for triggers of which little is known, one for those whose runs are
//! short, and some for those whose runs take long ([`saltus_core::policy::seat`]).
//!
//! **Invariants.**
//! 1. A trigger runs in one interpreter at a time: it changes between two runs, and takes its cache along.
//! 2. There are as many interpreters for long runs as the process may have, over all shards, and each shard has one in any case. If a
//!    shard needs more, the heaviest of its triggers share one, and the others keep theirs.
//! 3. None is ever destroyed: an empty one waits for the next trigger.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use crossbeam::channel::{self, Receiver};
use parking_lot::Mutex;
use saltus_core::ids::{RoomId, ShardId, TriggerId};
use saltus_core::policy::seat::Seat;
use saltus_core::ports::{Completions, PluginError, Seated};

use crate::deferred::{Deferred, Job, Kind, Taker};
use crate::global_cache;
use crate::lanes::Shared;

/// All deferred interpreters of the process that runs can be given to.
#[derive(Default)]
pub struct Directory {
    by_id: Mutex<HashMap<RoomId, Weak<Deferred>>>,
}

impl Directory {
    fn enter(&self, room: &Arc<Deferred>) {
        let mut by_id = self.by_id.lock();
        by_id.retain(|_, room| room.strong_count() > 0);
        by_id.insert(room.id(), Arc::downgrade(room));
    }

    fn find(&self, id: RoomId) -> Option<Arc<Deferred>> {
        self.by_id.lock().get(&id)?.upgrade()
    }

    /// Bytes that the interpreters for long runs hold, with all that their triggers hold in them.
    pub fn own_bytes(&self) -> u64 {
        let rooms: Vec<_> = self.by_id.lock().values().filter_map(Weak::upgrade).collect();
        rooms.iter().filter(|room| room.kind() == Kind::Own).map(|room| room.bytes()).sum()
    }
}

/// Where a trigger is.
struct Place {
    room: Arc<Deferred>,
    /// The generation of the interpreter that it has run in there.
    ran: Option<u64>,
    /// Its cache is on the way to another one.
    moving: Option<Receiver<Result<Vec<u8>, String>>>,
    /// What its cache was in the one before, for its next run; empty if there was nothing.
    brought: Option<Vec<u8>>,
}

/// A shard's deferred interpreters.
pub struct Rooms {
    shared: Arc<Shared>,
    shard: ShardId,
    workers: usize,
    queue_max: usize,
    completions: Arc<dyn Completions>,
    new: Arc<Deferred>,
    short: Arc<Deferred>,
    own: Vec<Arc<Deferred>>,
    apart: Apart,
    places: HashMap<TriggerId, Place>,
}

impl Rooms {
    /// Makes those that every shard has; returns when they are ready.
    ///
    /// # Errors
    /// What Python or the system said.
    pub fn start(
        shared: Arc<Shared>,
        shard: ShardId,
        workers: usize,
        queue_max: usize,
        completions: Arc<dyn Completions>,
    ) -> Result<Self, PluginError> {
        let make = |kind| -> Result<Arc<Deferred>, PluginError> {
            let room =
                Arc::new(Deferred::start(shared.clone(), (shard, kind), workers, queue_max, completions.clone())?);
            shared.rooms.enter(&room);
            Ok(room)
        };
        let (short, new) = (make(Kind::Shared)?, make(Kind::New)?);
        let (own, apart, places) = Default::default();
        Ok(Rooms { shared, shard, workers, queue_max, completions, new, short, own, apart, places })
    }

    /// Whether a run of the trigger can be submitted that is to take `seat`, and what an event of it costs if it takes long; `alone`: no
    /// run of it is under way, so that it may change its interpreter.
    pub fn seat(&mut self, trigger: TriggerId, seat: Seat, cost_ns: u64, alone: bool) -> Seated {
        let (room, crowded) = self.room_for(trigger, seat, cost_ns);
        let Some(place) = self.places.get_mut(&trigger) else {
            self.places.insert(trigger, Place { room: room.clone(), ran: None, moving: None, brought: None });
            return ready(&room, crowded);
        };
        let stays = Arc::ptr_eq(&place.room, &room);
        if place.moving.is_none() && (stays || !alone) {
            return ready(&place.room, crowded);
        }
        let lost = place.ran.is_some_and(|ran| ran != place.room.generation());
        if !stays && (place.ran.is_none() || lost) {
            // Nothing of it is there.
            (place.room, place.ran, place.moving) = (room, None, None);
            return ready(&place.room, crowded);
        }
        if !stays && let Some(what) = global_cache::local().lives_with(trigger, place.room.id()) {
            let why = format!("it shares '{what}' of the global cache with others by reference");
            return Seated::Stays(seat_in(&place.room, self.shard), why.into());
        }
        let Some(moving) = &place.moving else {
            let (answer, answered) = channel::bounded(1);
            if place.room.send(Job::TakeCache(trigger, Taker::Deferred, answer, self.completions.clone())).is_ok() {
                place.moving = Some(answered);
            }
            return Seated::Wait;
        };
        match moving.try_recv() {
            Err(channel::TryRecvError::Empty) => return Seated::Wait,
            // The interpreter was given up: what was there is lost, and that is said with the next run there.
            Err(channel::TryRecvError::Disconnected) => {}
            Ok(Ok(bytes)) => (place.room, place.ran, place.brought) = (room, None, Some(bytes)),
            Ok(Err(why)) => {
                place.moving = None;
                return Seated::Stays(seat_in(&place.room, self.shard), why.into());
            }
        }
        place.moving = None;
        ready(&place.room, crowded)
    }

    /// The interpreter that a trigger is to have, and whether it shares one that it should have for itself.
    fn room_for(&mut self, trigger: TriggerId, seat: Seat, cost_ns: u64) -> (Arc<Deferred>, bool) {
        if seat != Seat::Own {
            self.apart.leave(trigger);
        }
        match seat {
            Seat::New => (self.new.clone(), false),
            Seat::Shared => (self.short.clone(), false),
            Seat::Beside(id) => (self.shared.rooms.find(id).unwrap_or_else(|| self.new.clone()), false),
            Seat::Own => {
                if self.apart.wants_another(trigger) {
                    self.make_own();
                }
                if self.own.is_empty() {
                    return (self.new.clone(), true);
                }
                let at = self.apart.sit(trigger, cost_ns);
                (self.own[at].clone(), self.apart.is_crowded(at))
            }
        }
    }

    /// Another interpreter for long runs, if there may be one.
    fn make_own(&mut self) {
        let (made, (most, bytes_max)) = (&self.shared.own_interpreters, self.shared.own_interpreters_max);
        // About what the new one needs.
        let bytes = self.shared.rooms.own_bytes() + self.short.bytes_at_first();
        let may = |n: usize| ((n < most && bytes <= bytes_max) || self.own.is_empty()).then_some(n + 1);
        if made.fetch_update(Ordering::SeqCst, Ordering::SeqCst, may).is_err() {
            return;
        }
        let what = (self.shard, Kind::Own);
        match Deferred::start(self.shared.clone(), what, self.workers, self.queue_max, self.completions.clone()) {
            Ok(room) => {
                let room = Arc::new(room);
                self.shared.rooms.enter(&room);
                self.own.push(room);
                self.apart.add();
            }
            Err(error) => {
                made.fetch_sub(1, Ordering::SeqCst);
                tracing::warn!(shard = self.shard.0, error = %error.message, "there is no interpreter for a trigger whose runs take long");
            }
        }
    }

    /// The interpreter in which a trigger is; that of new ones if it is in none.
    pub fn of(&self, trigger: TriggerId) -> Arc<Deferred> {
        self.places.get(&trigger).map_or(&self.new, |place| &place.room).clone()
    }

    /// Whether a trigger has run in the interpreter in which it is.
    pub fn has_run(&self, trigger: TriggerId) -> bool {
        self.places.get(&trigger).is_some_and(|place| place.ran.is_some())
    }

    /// What the cache of a trigger was in the interpreter before, if it has been moved since its last run.
    pub fn take_brought(&mut self, trigger: TriggerId) -> Option<Vec<u8>> {
        self.places.get_mut(&trigger)?.brought.take()
    }

    /// A run of the trigger is submitted: where, and whether what its cache held there is lost.
    pub fn enter(&mut self, trigger: TriggerId) -> (Arc<Deferred>, bool) {
        let new = &self.new;
        let place = self.places.entry(trigger).or_insert_with(|| Place {
            room: new.clone(),
            ran: None,
            moving: None,
            brought: None,
        });
        let generation = place.room.generation();
        let before = place.ran.replace(generation);
        (place.room.clone(), before.is_some_and(|before| before != generation))
    }

    /// The trigger is gone: its interpreter, if it has run in one.
    pub fn forget(&mut self, trigger: TriggerId) -> Option<Arc<Deferred>> {
        self.apart.leave(trigger);
        self.places.remove(&trigger).filter(|place| place.ran.is_some()).map(|place| place.room)
    }

    /// Those of this shard.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Deferred>> {
        [&self.new, &self.short].into_iter().chain(&self.own)
    }

    /// Triggers that have run in an interpreter of this shard, or of another one.
    pub fn ran(&self) -> impl Iterator<Item = (TriggerId, &Arc<Deferred>)> {
        self.places.iter().filter(|(_, place)| place.ran.is_some()).map(|(id, place)| (*id, &place.room))
    }
}

fn ready(room: &Deferred, crowded: bool) -> Seated {
    if room.is_full() { Seated::Wait } else { Seated::Ready { crowded } }
}

/// The seat that a trigger has which is there.
fn seat_in(room: &Deferred, shard: ShardId) -> Seat {
    match room.kind() {
        _ if room.shard() != shard => Seat::Beside(room.id()),
        Kind::New => Seat::New,
        Kind::Shared => Seat::Shared,
        Kind::Own => Seat::Own,
    }
}

/// Who has which of the interpreters for long runs.
#[derive(Debug, Default)]
struct Apart {
    /// By interpreter: triggers with what an event of them costs.
    rooms: Vec<Vec<(TriggerId, u64)>>,
}

impl Apart {
    /// There is another interpreter.
    fn add(&mut self) {
        self.rooms.push(Vec::new());
    }

    fn at(&self, trigger: TriggerId) -> Option<usize> {
        self.rooms.iter().position(|room| room.iter().any(|(id, _)| *id == trigger))
    }

    fn is_crowded(&self, at: usize) -> bool {
        self.rooms[at].len() > 1
    }

    /// Whether the trigger would have to share.
    fn wants_another(&self, trigger: TriggerId) -> bool {
        self.at(trigger).is_none_or(|at| self.is_crowded(at)) && self.rooms.iter().all(|room| !room.is_empty())
    }

    /// Where the trigger sits. The heaviest share one if there are too few; there is one.
    fn sit(&mut self, trigger: TriggerId, cost_ns: u64) -> usize {
        let free = self.rooms.iter().position(Vec::is_empty);
        match self.at(trigger) {
            Some(at) if free.is_none() || !self.is_crowded(at) => return at,
            // It has become free since.
            Some(_) => self.leave(trigger),
            None => {}
        }
        if let Some(free) = free {
            self.rooms[free].push((trigger, cost_ns));
            return free;
        }
        let weight = |at: &usize| (self.rooms[*at].len(), self.rooms[*at].iter().map(|(_, cost)| *cost).max());
        let common = (0..self.rooms.len()).max_by_key(weight).unwrap_or_default();
        let others = (0..self.rooms.len()).filter(|at| *at != common);
        let heaviest = others.max_by_key(weight).filter(|at| self.rooms[*at][0].1 > cost_ns);
        let at = match heaviest {
            Some(at) => {
                let heavier = std::mem::take(&mut self.rooms[at]);
                self.rooms[common].extend(heavier);
                at
            }
            None => common,
        };
        self.rooms[at].push((trigger, cost_ns));
        at
    }

    fn leave(&mut self, trigger: TriggerId) {
        self.rooms.iter_mut().for_each(|room| room.retain(|(id, _)| *id != trigger));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sits with whom after these have come, in an order of names.
    fn sit(rooms: usize, costs: &[u64]) -> Vec<Vec<u64>> {
        let mut apart = Apart::default();
        (0..rooms).for_each(|_| apart.add());
        for (n, &cost) in costs.iter().enumerate() {
            apart.sit(TriggerId(n as u64), cost);
        }
        let mut together: Vec<Vec<u64>> =
            apart.rooms.iter().map(|room| room.iter().map(|(id, _)| costs[id.0 as usize]).collect()).collect();
        together.iter_mut().for_each(|room| room.sort_unstable());
        together.sort();
        together
    }

    #[test]
    fn the_heaviest_share_one_if_there_are_too_few() {
        assert_eq!(sit(3, &[10, 20, 30]), [vec![10], vec![20], vec![30]]);
        assert_eq!(sit(3, &[10, 20, 30, 40]), [vec![10], vec![20], vec![30, 40]]);
        assert_eq!(sit(3, &[30, 20, 40, 10]), [vec![10], vec![20], vec![30, 40]]);
        assert_eq!(sit(3, &[50, 40, 30, 20, 10]), [vec![10], vec![20], vec![30, 40, 50]]);
        assert_eq!(sit(1, &[50, 10, 30]), [vec![10, 30, 50]]);
    }

    #[test]
    fn who_shares_has_the_next_one_that_is_free_and_everybody_else_stays() {
        let mut apart = Apart::default();
        (0..2).for_each(|_| apart.add());
        let ids = [1, 2, 3].map(TriggerId);
        let at = ids.map(|id| apart.sit(id, id.0 * 10));
        assert_eq!((at[0], apart.sit(ids[2], 30)), (apart.sit(ids[0], 10), at[2]), "asked again they stay");
        assert!(apart.is_crowded(at[2]) && apart.wants_another(ids[2]) && !apart.wants_another(ids[0]));
        apart.leave(ids[0]);
        let moved = apart.sit(ids[2], 30);
        assert_eq!(moved, at[0]);
        assert!(!apart.is_crowded(moved) && !apart.wants_another(ids[1]));
    }
}
