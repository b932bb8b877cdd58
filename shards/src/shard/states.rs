//! A trigger's durable state on its home: given to runs, committed with their rows ([`crate::states`]).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use saltus_core::ids::TriggerId;
use saltus_core::ports::StopCause;
use saltus_core::request::RequestError;
use saltus_core::state::{State, StateChange};

use super::Shard;
use super::requests;
use super::triggers::TriggerState;
use crate::states::{Commit, checkpoint_due};
use crate::wal::Record;

/// How long a shard waits for a state that another one still has.
const AGAIN: Duration = Duration::from_millis(2);

/// What a trigger has kept, on its home.
pub(crate) struct Memory {
    state: Arc<State>,
    /// Bytes of changes in this life's log since all of it was written; `None` before the first.
    logged: Option<usize>,
}

impl Shard {
    /// Has the state of a trigger here, before its first run; false if it comes later.
    pub fn fetch_state(self: &Rc<Self>, inner: &mut TriggerState) -> bool {
        if inner.durable.is_some() {
            return true;
        }
        match self.shared.shelf.take(inner.trigger.def.id) {
            Some(state) => {
                inner.durable = Some(Memory { state, logged: None });
                true
            }
            None => {
                let shard = self.clone();
                self.spawn(async move {
                    crate::io::net::sleep(AGAIN).await;
                    shard.triggers.borrow().ask_again();
                    shard.runnable.notify();
                });
                false
            }
        }
    }

    /// What a run is given.
    pub fn state_for_run(inner: &TriggerState) -> Arc<State> {
        inner.durable.as_ref().map(|memory| memory.state.clone()).unwrap_or_default()
    }

    /// Logs what a run has changed, in the frame of whatever was appended just now.
    pub fn commit_state(&self, inner: &mut TriggerState, changes: Vec<StateChange>) {
        let trigger = inner.trigger.def.id;
        let Some(memory) = inner.durable.as_mut().filter(|_| !changes.is_empty()) else { return };
        let state = Arc::make_mut(&mut memory.state);
        changes.iter().for_each(|change| state.apply(change));
        state.revision += 1;
        let whole = memory.logged.is_none_or(|logged| checkpoint_due(logged, state.bytes()));
        let changes = if whole { state.as_changes() } else { changes };
        let body = Commit { revision: state.revision, whole, changes }.encode();
        memory.logged = Some(if whole { 0 } else { memory.logged.unwrap_or(0) + body.len() });
        self.counters.state_commits.add(1);
        if let Err(error) = self.log.append(&Record::State { trigger, body: &body }) {
            // The rows of the run are refused by the same log.
            tracing::warn!(shard = self.id.0, %error, "the state of a trigger is not recorded: after a restart it is as it was before");
            memory.logged = None;
        }
    }

    /// A trigger that is not in force here any more gives its state away when it has no run left.
    pub fn let_go_of_state(&self, inner: &mut TriggerState) {
        if inner.leaving
            && inner.running == 0
            && inner.writing_back == 0
            && let Some(memory) = inner.durable.take()
        {
            self.shared.shelf.put(inner.trigger.def.id, memory.state);
        }
    }

    /// These triggers are not in force here any more. Their runs under way are to end, and nobody waits for that: what they come to counts
    /// for nothing.
    pub fn part_with(&self, gone: &[Rc<RefCell<TriggerState>>]) {
        let mut plugins = self.plugins.borrow_mut();
        for state in gone {
            let mut inner = state.borrow_mut();
            (inner.leaving, inner.stopped) = (true, true);
            inner.stop.set(StopCause::Gone);
            for event in inner.queue.drain(..) {
                let text = "the trigger that answers here was disabled or deleted just now".to_owned();
                requests::answer(&event, Err(RequestError::Unavailable(text)));
            }
            self.let_go_of_state(&mut inner);
            if let Some(plugins) = plugins.as_mut() {
                plugins.forget(inner.trigger.def.id);
            }
        }
        if let Some(plugins) = plugins.as_mut().filter(|_| !gone.is_empty()) {
            plugins.stop_runs();
        }
    }

    /// The states that are here.
    pub fn states(&self) -> Vec<(TriggerId, Arc<State>)> {
        let at_home = self.triggers.borrow().at_home(self.id);
        let states = at_home.iter().filter_map(|inner| {
            let inner = inner.borrow();
            Some((inner.trigger.def.id, inner.durable.as_ref()?.state.clone()))
        });
        states.collect()
    }

    /// A trigger was deleted: its state ends as soon as nobody has it, which is when its last run has. Nobody waits for that: of a
    /// trigger that does not exist, the next start forgets it.
    pub fn end_state(self: &Rc<Self>, trigger: TriggerId, reply: oneshot::Sender<()>) {
        let shard = self.clone();
        let _gone = reply.send(());
        self.spawn(async move {
            let existed = loop {
                match shard.shared.shelf.remove(trigger) {
                    Some(existed) => break existed,
                    None if shard.stopping() => break false,
                    None => crate::io::net::sleep(AGAIN).await,
                }
            };
            if existed && let Err(error) = shard.log.append(&Record::StateEnd { trigger }) {
                tracing::debug!(shard = shard.id.0, %error, "the state of a deleted trigger stays in the log");
            }
        });
    }
}
