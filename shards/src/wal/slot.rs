//! Where the segment that is made ahead waits for its use.
//!
//! **Contract.** At most one preparation is under way. A commit that needs the segment meanwhile waits for it; if the preparation
//! fails or is dropped, it finds the slot empty and makes the segment itself.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Where the next segment waits for its use.
pub(super) struct Slot<T> {
    state: RefCell<SlotState<T>>,
    /// The commit that waits for the preparation.
    waiter: RefCell<Option<Waker>>,
}

enum SlotState<T> {
    Empty,
    Preparing,
    Ready(T),
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Slot { state: RefCell::new(SlotState::Empty), waiter: RefCell::new(None) }
    }
}

impl<T> Slot<T> {
    /// Puts it there, to be taken by the next [`Slot::wait`].
    pub(super) fn put(&self, segment: T) {
        *self.state.borrow_mut() = SlotState::Ready(segment);
    }

    /// The prepared segment, awaited if it is under way; `None` if it is not or has failed.
    pub(super) async fn wait(slot: &Rc<Self>) -> Option<T> {
        poll_fn(|context| {
            let mut state = slot.state.borrow_mut();
            if matches!(*state, SlotState::Preparing) {
                *slot.waiter.borrow_mut() = Some(context.waker().clone());
                return Poll::Pending;
            }
            match std::mem::replace(&mut *state, SlotState::Empty) {
                SlotState::Ready(segment) => Poll::Ready(Some(segment)),
                _ => Poll::Ready(None),
            }
        })
        .await
    }
}

/// The right and duty to fill a slot. Dropped without having filled it, it leaves the slot empty.
pub(super) struct Claim<T> {
    slot: Rc<Slot<T>>,
}

impl<T> Claim<T> {
    /// The right to fill an empty slot.
    pub(super) fn take(slot: &Rc<Slot<T>>) -> Option<Self> {
        let mut state = slot.state.borrow_mut();
        if !matches!(*state, SlotState::Empty) {
            return None;
        }
        *state = SlotState::Preparing;
        Some(Claim { slot: slot.clone() })
    }

    /// Fills it; whoever waits goes on.
    pub(super) fn fill(self, segment: T) {
        self.slot.put(segment);
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        let mut state = self.slot.state.borrow_mut();
        if matches!(*state, SlotState::Preparing) {
            *state = SlotState::Empty;
        }
        if let Some(waiter) = self.slot.waiter.borrow_mut().take() {
            waiter.wake();
        }
    }
}
