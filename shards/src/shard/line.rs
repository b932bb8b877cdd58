//! Which triggers have something to do, so that nobody looks at all of them: a shard may have ten thousand, of which few have events.

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;

use saltus_core::ids::TriggerId;

/// What the triggers at home on a shard say of themselves. A trigger says each once, until it was heard.
#[derive(Default)]
pub(crate) struct Line {
    /// Those with events, in turn. Some may have none any more.
    waiting: RefCell<VecDeque<TriggerId>>,
    /// Those whose progress has moved since cursors were written.
    moved: RefCell<Vec<TriggerId>>,
}

impl Line {
    /// The trigger has an event.
    pub fn wait(&self, trigger: TriggerId) {
        self.waiting.borrow_mut().push_back(trigger);
    }

    /// The first in line, which is not in it any more.
    pub fn next(&self) -> Option<TriggerId> {
        self.waiting.borrow_mut().pop_front()
    }

    /// How many are in line.
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// All of them, who stay in it. Nobody gets in line meanwhile.
    pub fn waiting(&self) -> Ref<'_, VecDeque<TriggerId>> {
        self.waiting.borrow()
    }

    /// The trigger's progress has moved.
    pub fn moved(&self, trigger: TriggerId) {
        self.moved.borrow_mut().push(trigger);
    }

    /// Those whose progress has moved.
    pub fn take_moved(&self) -> Vec<TriggerId> {
        std::mem::take(&mut self.moved.borrow_mut())
    }
}
