//! An executor that is preempted before it has run anything goes on, and does not fall asleep on top of its own work.
//!
//! Each wake comes from another thread a little later than the one before, so that some come when the executor is awake and
//! about to sleep. It takes their wakers from a queue; the event descriptor that is written after that makes it preempted
//! before it runs the woken task. With glommio 0.9.0 as published it then sleeps for good: see `docs/adr/006-glommio-patched.md`.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_channel::oneshot;
use saltus_shards::executor;

/// Wakes from the other thread.
const WAKES: usize = 200_000;
/// The delays of wakes, in turns of a spin loop: none to some microseconds, over and over.
const DELAYS: usize = 400;
/// A hang is for good; a slow machine needs seconds.
const HUNG: Duration = Duration::from_secs(60);

#[test]
fn an_executor_never_sleeps_on_top_of_its_own_work() {
    let (slots, wakes) = mpsc::channel::<oneshot::Sender<()>>();
    let (done, is_done) = mpsc::channel();
    let shard = executor::start("preempted", None, executor::Idle::Sleep, move |_| async move {
        for _ in 0..WAKES {
            let (slot, woken) = oneshot::channel();
            slots.send(slot).unwrap();
            woken.await.unwrap();
        }
        done.send(()).unwrap();
    })
    .unwrap();
    let waking = thread::spawn(move || {
        for wake in 0..WAKES {
            // Not blocking: a thread that sleeps here comes when the executor sleeps.
            let slot = loop {
                match wakes.try_recv() {
                    Ok(slot) => break slot,
                    Err(mpsc::TryRecvError::Empty) => thread::yield_now(),
                    Err(gone @ mpsc::TryRecvError::Disconnected) => panic!("{gone} after {wake} wakes"),
                }
            };
            (0..wake % DELAYS).for_each(|_| std::hint::spin_loop());
            slot.send(()).unwrap();
        }
    });
    is_done.recv_timeout(HUNG).expect("the executor sleeps although its task was woken");
    waking.join().unwrap();
    shard.join().unwrap();
}
