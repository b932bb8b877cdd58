//! A letter through a mailbox: room reserved, put in, taken out, room given back. What the hop to another core costs is in the
//! bench `mailbox`.

use std::sync::Arc;

use saltus_shards::mailbox::{Held, Mailbox};

use super::{Measured, Size, warm};

/// Letters of a run.
pub(super) const LETTERS: usize = 1000;
/// Bytes accounted per letter, as for a small batch.
const BYTES: usize = 1024;

struct Letter {
    number: u64,
    _held: Held<Letter>,
}

struct Inbox {
    mailbox: Arc<Mailbox<Letter>>,
    letters: usize,
}

impl Measured for Inbox {
    fn reset(&mut self) {}

    fn run(&mut self) -> u64 {
        let mut sum = 0;
        for number in 0..self.letters as u64 {
            let room = self.mailbox.reserve(BYTES).expect("it is empty");
            room.put(|held| Letter { number, _held: held });
            sum += self.mailbox.pop().map_or(0, |letter| letter.number);
        }
        sum
    }
}

/// One letter after the other.
pub(super) fn push_and_pop(size: Size) -> Box<dyn Measured> {
    warm(Inbox { mailbox: Mailbox::new(16, 16 * BYTES), letters: size.of(LETTERS) }, 2)
}
