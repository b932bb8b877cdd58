//! One hop through a mailbox, there and back: to a thread that polls (what a busy shard does) and to a shard that sleeps in
//! its executor (what an idle one does; the wake through the kernel is the cost). Half the round trip is one hop only where
//! both sides poll; the sleeping round trip is a wake plus a polled answer.

use std::future::poll_fn;
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use saltus_shards::executor::{self, Idle};
use saltus_shards::mailbox::{Held, Mailbox};

/// Bytes accounted per letter, as for a small batch.
const BYTES: usize = 1024;

struct Letter {
    last: bool,
    _held: Held<Letter>,
}

type Inbox = Arc<Mailbox<Letter>>;

fn send(to: &Inbox, last: bool) {
    to.reserve(BYTES).expect("one letter is under way at a time").put(|held| Letter { last, _held: held });
}

fn receive(from: &Inbox) -> Letter {
    loop {
        match from.pop() {
            Some(letter) => return letter,
            None => spin_loop(),
        }
    }
}

/// Round trips until `count` are done; before each, `pause` lets the other side fall asleep.
fn round_trips(there: &Inbox, back: &Inbox, count: u64, pause: Duration) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..count {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let start = Instant::now();
        send(there, false);
        black_box(receive(back));
        total += start.elapsed();
    }
    total
}

fn inboxes() -> (Inbox, Inbox) {
    (Mailbox::new(16, 16 * BYTES), Mailbox::new(16, 16 * BYTES))
}

fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");

    group.bench_function("round trip, both poll", |bencher| {
        let (there, back) = inboxes();
        let stop = Arc::new(AtomicBool::new(false));
        let (inbox, outbox, asked) = (there.clone(), back.clone(), stop.clone());
        let other = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                match inbox.pop() {
                    Some(_) => send(&outbox, false),
                    None => spin_loop(),
                }
            }
        });
        bencher.iter_custom(|count| round_trips(&there, &back, count, Duration::ZERO));
        stop.store(true, Ordering::Relaxed);
        other.join().expect("the other side does not panic");
    });

    for (what, idle) in [("sleeps", Idle::Sleep), ("polls", Idle::Poll)] {
        group.bench_function(format!("round trip, the shard {what}"), |bencher| {
            let (there, back) = inboxes();
            let (inbox, outbox) = (there.clone(), back.clone());
            let shard = executor::start("bench", None, idle, move |_| async move {
                while !poll_fn(|cx| inbox.poll_pop(cx)).await.last {
                    send(&outbox, false);
                }
            })
            .expect("io_uring and locked memory are there");
            bencher.iter_custom(|count| round_trips(&there, &back, count, Duration::from_micros(200)));
            send(&there, true);
            shard.join().expect("the shard does not panic");
        });
    }
    group.finish();
}

criterion_group!(benches, mailbox);
criterion_main!(benches);
