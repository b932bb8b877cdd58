//! A shard's bounded lock-free inbox: the only way in from another thread.
//!
//! **Invariants.** (1) Bytes and items are reserved before anything is put in, so putting never fails and never waits.
//! (2) A write reserves at *all* its owners before it sends to any. (3) Replies travel by one-shot slots that the request
//! brought along and need no room here: two full mailboxes cannot wait for each other. (4) A reservation that is dropped
//! gives its room back.
//!
//! It is not fair between senders and has no order between two senders; from one sender order is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crossbeam::queue::ArrayQueue;
use futures_util::task::AtomicWaker;

/// An inbox of `T`.
pub struct Mailbox<T> {
    queue: ArrayQueue<T>,
    items: AtomicUsize,
    bytes: AtomicUsize,
    bytes_max: usize,
    waker: AtomicWaker,
}

impl<T> Mailbox<T> {
    /// An empty mailbox with room for `items_max` items and `bytes_max` bytes.
    pub fn new(items_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Mailbox {
            queue: ArrayQueue::new(items_max),
            items: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            bytes_max,
            waker: AtomicWaker::new(),
        })
    }

    /// Sets room aside for one item and `bytes` bytes. An empty mailbox takes an item of any size, so that nothing is too
    /// large for ever. `None` when there is no room.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Room<T>> {
        let items = self.items.fetch_add(1, Ordering::AcqRel);
        if items >= self.queue.capacity() {
            self.items.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if before != 0 && before.saturating_add(bytes) > self.bytes_max {
            self.bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.items.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Room { item: true, held: Held { mailbox: self.clone(), bytes } })
    }

    /// Bytes reserved or under way.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Items reserved or waiting.
    pub fn items(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    /// The next item, if one waits.
    pub fn pop(&self) -> Option<T> {
        let item = self.queue.pop();
        if item.is_some() {
            self.items.fetch_sub(1, Ordering::AcqRel);
        }
        item
    }

    /// Ready when an item waits; else the owner's task is woken by the next one. One task only may call this.
    pub fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(item) = self.pop() {
            return Poll::Ready(item);
        }
        self.waker.register(cx.waker());
        // An item may have come between the look and the registration.
        match self.pop() {
            Some(item) => Poll::Ready(item),
            None => Poll::Pending,
        }
    }
}

/// Room for one item in a mailbox.
pub struct Room<T> {
    item: bool,
    held: Held<T>,
}

impl<T> Room<T> {
    /// Puts the item in and wakes the owner. The bytes stay accounted until the returned guard is dropped: send it along,
    /// inside the item.
    pub fn put(mut self, make: impl FnOnce(Held<T>) -> T) {
        self.item = false;
        let mailbox = self.held.mailbox.clone();
        let held = Held { mailbox: mailbox.clone(), bytes: std::mem::take(&mut self.held.bytes) };
        let refused = mailbox.queue.push(make(held));
        debug_assert!(refused.is_ok(), "items are reserved before they are put in");
        mailbox.waker.wake();
    }

    /// Gives the item's place back and keeps the bytes: for work that the owner does without a message.
    pub fn keep_bytes(mut self) -> Held<T> {
        self.item = false;
        self.held.mailbox.items.fetch_sub(1, Ordering::AcqRel);
        Held { mailbox: self.held.mailbox.clone(), bytes: std::mem::take(&mut self.held.bytes) }
    }
}

impl<T> Drop for Room<T> {
    fn drop(&mut self) {
        if self.item {
            self.held.mailbox.items.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Accounted bytes; dropping it gives them back.
pub struct Held<T> {
    mailbox: Arc<Mailbox<T>>,
    bytes: usize,
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if self.bytes != 0 {
            self.mailbox.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Letter {
        number: u32,
        _held: Held<Letter>,
    }

    #[test]
    fn room_is_bounded_in_items_and_bytes_and_comes_back() {
        let mailbox = Mailbox::<Letter>::new(2, 100);
        let first = mailbox.reserve(60).unwrap();
        assert!(mailbox.reserve(41).is_none(), "bytes are bounded");
        let second = mailbox.reserve(40).unwrap();
        assert!(mailbox.reserve(0).is_none(), "items are bounded");
        drop(second);
        first.put(|held| Letter { number: 7, _held: held });
        assert_eq!((mailbox.items(), mailbox.bytes()), (1, 60));
        let letter = mailbox.pop().unwrap();
        assert_eq!((letter.number, mailbox.items(), mailbox.bytes()), (7, 0, 60));
        drop(letter);
        assert_eq!(mailbox.bytes(), 0);
    }

    #[test]
    fn an_empty_mailbox_takes_an_item_of_any_size() {
        let mailbox = Mailbox::<Letter>::new(2, 100);
        let huge = mailbox.reserve(1000).unwrap();
        assert!(mailbox.reserve(1).is_none());
        drop(huge);
        assert!(mailbox.reserve(1).is_some());
    }

    #[test]
    fn many_threads_never_pass_the_bounds() {
        let mailbox = Mailbox::<Letter>::new(8, 1000);
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..4)
                .map(|_| {
                    let mailbox = mailbox.clone();
                    scope.spawn(move || {
                        let mut sent = 0u32;
                        while sent < 2000 {
                            if let Some(room) = mailbox.reserve(100) {
                                room.put(|held| Letter { number: sent, _held: held });
                                sent += 1;
                            } else {
                                std::thread::yield_now();
                            }
                        }
                    })
                })
                .collect();
            let mut seen = 0;
            while seen < 8000 {
                assert!(
                    mailbox.bytes() <= 1000 + 4 * 100,
                    "a refused reservation is visible only while it is taken back"
                );
                seen += usize::from(mailbox.pop().is_some());
            }
            senders.into_iter().for_each(|s| s.join().unwrap());
        });
        assert_eq!((mailbox.items(), mailbox.bytes()), (0, 0));
    }
}
