//! Other processes on this machine, as `/proc` shows them: what they have used, who belongs to whom, and where they run.

use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One line of `/proc/PID/stat`, as far as it matters here.
struct Stat {
    name: String,
    parent: u32,
    /// User and system time, of itself and of children that have ended and were waited for.
    own: Duration,
    ended_children: Duration,
}

impl Stat {
    fn of(process: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name of the program is in parentheses and may have anything in it.
        let (head, tail) = text.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            name: head.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            own: time_of(ticks(11)? + ticks(12)?),
            ended_children: time_of(ticks(13)? + ticks(14)?),
        })
    }
}

fn time_of(ticks: u64) -> Duration {
    /// What the kernel shows to programs is in hundredths of a second on every architecture that we build for.
    const TICKS_PER_S: f64 = 100.0;
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_S)
}

/// User and system time of a process.
pub fn time(process: u32) -> Option<Duration> {
    Some(Stat::of(process)?.own)
}

/// The same of a process and all its children, those that have ended included.
pub fn family_time(process: u32) -> Option<Duration> {
    let stat = Stat::of(process)?;
    let children = children(process).into_iter().filter_map(time);
    Some(stat.own + stat.ended_children + children.sum())
}

/// The process that started this one, if both are of a program of this name.
pub fn parent(process: u32, name: &str) -> Option<u32> {
    let stat = Stat::of(process).filter(|stat| stat.name == name)?;
    Stat::of(stat.parent).is_some_and(|parent| parent.name == name).then_some(stat.parent)
}

fn children(process: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| Stat::of(*number).is_some_and(|stat| stat.parent == process)).collect()
}

/// Keeps a process and its children, present and future, on the first processors; on all that this thread has, if no number is given.
/// False where that is not allowed.
pub fn place_family(process: u32, first: Option<usize>) -> bool {
    let Ok(mut set) = sched_getaffinity(None) else { return false };
    if let Some(first) = first {
        (first..CpuSet::MAX_CPU).for_each(|cpu| set.unset(cpu));
    }
    let place = |process: u32| {
        let process = i32::try_from(process).ok().and_then(Pid::from_raw);
        process.is_some_and(|process| sched_setaffinity(Some(process), &set).is_ok())
    };
    place(process) && children(process).into_iter().all(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn this_process_has_used_its_processor() {
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        assert!(time(std::process::id()).unwrap() > Duration::ZERO);
    }

    #[test]
    fn children_are_found_placed_and_counted() {
        let me = std::process::id();
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let used = || Ok(time(child.id()).filter(|used| !used.is_zero()));
        let used = crate::open_loop::until("the child has used its processor", Duration::from_secs(30), used).unwrap();
        assert!(children(me).contains(&child.id()));
        assert!(family_time(me).unwrap() >= used);
        assert!(place_family(child.id(), Some(1)));
        let set = sched_getaffinity(Pid::from_raw(child.id() as i32)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((set.count(), set.is_set(0)), (1, true));
        assert_eq!(parent(me, "no such program"), None);
    }
}
