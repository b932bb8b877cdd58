//! The disk of the log: file system, O_DIRECT, the time of a sync, the drive's cache, its NUMA node.
//!
//! What is measured is measured in the data directory, or in the nearest folder above that exists, through the door that the log
//! itself uses; the files are removed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{major, minor};
use saltus_shards::io::WriteMode;
use saltus_shards::probe;

use super::devices::compare_nodes;
use super::{Check, Finding, Subject};

const FILE_SYSTEM: Check = Check {
    name: "file system",
    why: "the log is only as durable as what it is written to, and a copy-on-write file system writes each round twice.",
};
const DIRECT: Check = Check {
    name: "o_direct",
    why: "past the page cache a round of the log is one write of its own pages; through it, it is a copy and a flush of the file.",
};
const SYNC: Check = Check {
    name: "durable write",
    why: "a durable write is acknowledged after one of these, so it is the floor of every durable latency.",
};
const CACHE: Check = Check {
    name: "write cache",
    why: "a drive with a volatile cache has to empty it at each sync; one with power-loss protection answers at once.",
};
const NODE: Check = Check {
    name: "numa of disk",
    why: "the drive's interrupts and buffers are on its node; shards on another one pay for each round.",
};

/// Rounds of write and sync that are measured.
const ROUNDS: usize = 64;
const SYNC_P99_MAX: Duration = Duration::from_millis(10);
/// Faster than any medium that keeps what it is given without being a memory.
const SYNC_P50_MIN: Duration = Duration::from_micros(5);

/// All of it.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    let place = existing(&subject.data_dir);
    let mut findings = vec![file_system(subject, &place)];
    findings.extend(measured(&place));
    let device = device(subject, &place);
    findings.push(device.as_deref().map_or_else(|| CACHE.unseen("the drive below the file system"), cache));
    findings.push(match &device {
        Some(device) => compare_nodes(NODE, subject, "the drive", device),
        None => NODE.unseen("the drive below the file system"),
    });
    findings
}

/// The folder itself, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let found = absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    found.canonicalize().unwrap_or_else(|_| found.to_owned())
}

/// A line of `mountinfo`.
struct Mount {
    point: PathBuf,
    device: String,
    kind: String,
    source: String,
}

fn mount(subject: &Subject, place: &Path) -> Option<Mount> {
    let text = subject.host.proc("self/mountinfo")?;
    let read = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (device, point) = (left.next()?, left.nth(1)?);
        let mut right = right.split(' ');
        Some(Mount {
            point: PathBuf::from(point.replace("\\040", " ")),
            device: device.to_owned(),
            kind: right.next()?.to_owned(),
            source: right.next()?.to_owned(),
        })
    };
    // Of two on one point the later one is seen.
    text.lines()
        .filter_map(read)
        .filter(|mount| place.starts_with(&mount.point))
        .max_by_key(|m| m.point.components().count())
}

fn file_system(subject: &Subject, place: &Path) -> Finding {
    let Some(mount) = mount(subject, place) else { return FILE_SYSTEM.unseen("/proc/self/mountinfo") };
    let found = format!("{} at {}, for {}", mount.kind, mount.point.display(), place.display());
    let other = "put --data-dir on ext4 or xfs";
    match mount.kind.as_str() {
        "ext4" | "xfs" | "ext3" | "f2fs" => FILE_SYSTEM.ok(found),
        "tmpfs" | "ramfs" => FILE_SYSTEM.warn(format!("{found}: memory, gone with the machine's power"), other),
        "overlay" | "overlayfs" => FILE_SYSTEM
            .warn(format!("{found}: a container's layer, gone with the container"), "mount a volume for --data-dir"),
        "btrfs" | "zfs" | "bcachefs" => FILE_SYSTEM.warn(format!("{found}: it copies on write"), other),
        kind if kind.starts_with("nfs")
            || ["cifs", "smb3", "9p", "ceph"].contains(&kind)
            || kind.starts_with("fuse") =>
        {
            FILE_SYSTEM.warn(format!("{found}: each sync goes over a network or through another program"), other)
        }
        _ => FILE_SYSTEM.ok(found),
    }
}

/// Tries O_DIRECT and measures syncs, in a folder of its own.
fn measured(place: &Path) -> Vec<Finding> {
    let folder = place.join(format!(".saltus-doctor-{}", std::process::id()));
    let result = match std::fs::create_dir(&folder) {
        Ok(()) => probe::disk(&folder, ROUNDS),
        Err(error) => Err(format!("{}: {error}", place.display())),
    };
    let _absent = std::fs::remove_dir_all(&folder);
    match result {
        Ok(probe) => vec![direct(probe.mode), sync(probe.rounds_ns)],
        Err(error) => {
            let remedy =
                format!("sudo chown $USER {}; or start this as the user that the server runs as", place.display());
            vec![DIRECT.fail(error.clone(), remedy), SYNC.unseen(error)]
        }
    }
}

fn direct(mode: WriteMode) -> Finding {
    match mode {
        WriteMode::Direct => DIRECT.ok("a file was opened and written with it"),
        WriteMode::Buffered => DIRECT
            .warn("refused here: the log goes through the page cache", "put --data-dir on ext4 or xfs, on a drive"),
    }
}

fn sync(mut rounds_ns: Vec<u64>) -> Finding {
    rounds_ns.sort_unstable();
    let at = |share: f64| rounds_ns.get((rounds_ns.len() as f64 * share).ceil() as usize - 1).copied();
    let (Some(p50), Some(p99)) = (at(0.5), at(0.99)) else { return SYNC.unseen("no round was measured") };
    let (p50, p99) = (Duration::from_nanos(p50), Duration::from_nanos(p99));
    let found = format!("a durable write of 4 KiB, {} times: p50 {p50:.1?}, p99 {p99:.1?}", rounds_ns.len());
    if p99 > SYNC_P99_MAX {
        return SYNC.warn(
            found,
            "use a drive with power-loss protection, and nothing else on it: --data-dir on a device of its own",
        );
    }
    if p50 < SYNC_P50_MIN {
        return SYNC.warn(
            format!("{found}: too fast for a medium that keeps it"),
            "make sure that --data-dir is not in memory and that the drive (or the virtual machine's host) does not ignore syncs",
        );
    }
    SYNC.ok(found)
}

/// The block device below a folder, in sysfs.
fn device(subject: &Subject, place: &Path) -> Option<PathBuf> {
    let mount = mount(subject, place);
    let source = mount.as_ref().and_then(|mount| std::fs::metadata(&mount.source).ok()).filter(is_block);
    let number = match (source, mount) {
        (Some(source), _) => format!("{}:{}", major(source.rdev()), minor(source.rdev())),
        (None, Some(mount)) => mount.device,
        (None, None) => return None,
    };
    let device = subject.host.sys.join("dev/block").join(number);
    device.canonicalize().ok()
}

fn is_block(metadata: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_block_device()
}

/// A partition's queue is that of the drive it is on.
fn cache(device: &Path) -> Finding {
    let queues = [device.join("queue"), device.join("../queue")];
    let Some(queue) = queues.iter().find(|queue| queue.is_dir()) else { return CACHE.unseen("queue of the drive") };
    let read = |name: &str| super::host::text(&queue.join(name));
    let Some(kind) = read("write_cache") else { return CACHE.unseen("write_cache of the drive") };
    let rotates = read("rotational").as_deref() == Some("1");
    let scheduler = read("scheduler").and_then(|text| Some(text.split('[').nth(1)?.split(']').next()?.to_owned()));
    let found = format!(
        "{kind}{}{}",
        if rotates { ", rotating" } else { "" },
        scheduler.map_or(String::new(), |name| format!(", scheduler {name}"))
    );
    // A virtual drive says that it rotates whatever is below it.
    let is_virtual =
        device.iter().any(|part| ["vd", "xvd"].iter().any(|prefix| part.to_string_lossy().starts_with(prefix)));
    if is_virtual {
        return CACHE.ok(format!("{kind}, a virtual drive: what is below it is the host's"));
    }
    if rotates {
        return CACHE.warn(found, "put --data-dir on an SSD with power-loss protection");
    }
    CACHE.ok(match kind.as_str() {
        "write back" => {
            format!("{found}: the kernel flushes it at each sync; the durable write above says what that costs")
        }
        _ => format!("{found}: nothing to flush"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    fn mounted(kind: &str) -> Made {
        let made = Made::new(&[0], &[]);
        let root = existing(&made.subject.data_dir);
        let line = format!("30 1 8:2 / {} rw,noatime shared:1 - {kind} /dev/nothing rw\n", root.display());
        made.put("proc/self/mountinfo", &format!("29 1 0:20 / / rw - ext4 /dev/other rw\n{line}"));
        made
    }

    #[test]
    fn the_nearest_mount_counts_and_memory_is_told() {
        assert_eq!(mounted("xfs").one(examine, "file system").outcome, Outcome::Ok);
        let found = mounted("tmpfs").one(examine, "file system");
        assert!(found.outcome == Outcome::Warn && found.found.contains("gone with the machine's power"), "{found:?}");
        assert!(mounted("overlay").one(examine, "file system").remedy.unwrap().contains("mount a volume"));
        assert!(mounted("nfs4").one(examine, "file system").found.contains("over a network"));
    }

    #[test]
    fn the_drive_is_found_below_the_partition() {
        let mut made = mounted("ext4");
        made.put("sys/devices/pci0/nvme0/queue/write_cache", "write back\n");
        made.put("sys/devices/pci0/nvme0/queue/rotational", "0\n");
        made.put("sys/devices/pci0/nvme0/queue/scheduler", "[none] mq-deadline\n");
        made.put("sys/devices/pci0/nvme0/p2/partition", "2");
        made.put("sys/devices/pci0/numa_node", "1");
        made.put("sys/devices/system/node/node0/cpulist", "0-1");
        made.put("sys/devices/system/node/node1/cpulist", "2-3");
        let sys = made.subject.host.sys.clone();
        std::fs::create_dir_all(sys.join("dev/block")).unwrap();
        std::os::unix::fs::symlink(sys.join("devices/pci0/nvme0/p2"), sys.join("dev/block/8:2")).unwrap();
        let found = made.one(examine, "write cache");
        assert!(found.found.starts_with("write back, scheduler none: the kernel flushes"), "{found:?}");
        let found = made.one(examine, "numa of disk");
        assert_eq!(found.found, "the drive is on node 1, shards on CPUs 0 are not");
        made.subject.cpus = vec![3];
        assert_eq!(made.one(examine, "numa of disk").outcome, Outcome::Ok);
        made.put("sys/devices/pci0/nvme0/queue/rotational", "1\n");
        assert_eq!(made.one(examine, "write cache").outcome, Outcome::Warn);
    }

    #[test]
    fn syncs_are_judged_by_their_quantiles() {
        let us = |us: &[u64]| sync(us.iter().map(|us| us * 1000).collect());
        let found = us(&[300, 100, 200]);
        assert_eq!(found.outcome, Outcome::Ok);
        assert_eq!(found.found, "a durable write of 4 KiB, 3 times: p50 200.0\u{b5}s, p99 300.0\u{b5}s");
        assert_eq!(us(&[100, 20_000]).outcome, Outcome::Warn);
        assert!(us(&[1, 2, 3]).found.contains("too fast"));
        assert_eq!(us(&[]).outcome, Outcome::Unseen);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_a_failure() {
        let findings = measured(Path::new("/proc"));
        assert_eq!(findings[0].outcome, Outcome::Fail, "{findings:?}");
    }
}
