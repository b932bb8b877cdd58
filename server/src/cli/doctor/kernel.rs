//! The kernel and its limits: version, io_uring, locked memory, open files, the control group's quota, virtualisation.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use saltus_shards::executor::MEMLOCK_PER_SHARD;
use saltus_shards::probe;

use super::{Check, Finding, Subject};

const KERNEL: Check = Check {
    name: "kernel",
    why: "all I/O of a shard goes through its ring, which needs Linux 5.11; since 6.12 a shard may ask for short slices of a core it shares.",
};
const RING: Check =
    Check { name: "io_uring", why: "without a ring a shard cannot start: it has no other way to read and write." };
const MEMLOCK: Check = Check {
    name: "locked memory",
    why: "the buffers of the rings are locked in memory; a shard without them cannot start.",
};
const FILES: Check = Check {
    name: "open files",
    why: "each connection is an open file; at the limit new clients are turned away, although the shards have room.",
};
const QUOTA: Check = Check {
    name: "cpu quota",
    why: "a quota stops all threads for the rest of a period once it is used up, shards in the middle of a write as well.",
};
const VIRTUAL: Check = Check {
    name: "virtual machine",
    why: "a core that the host lends to others is gone for a while, and nothing inside the machine can help that.",
};

const OLDEST: (u32, u32) = (5, 11);
const SHORT_SLICES: (u32, u32) = (6, 12);
const FILES_MIN: u64 = 1024;
const FILES_GOOD: u64 = 65_536;
/// Of all CPU time since the start of the machine, in thousands.
const STEAL_PER_MILLE_MAX: f64 = 1.0;

/// Version, io_uring, virtualisation.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    vec![version(subject), ring(subject), virtualisation(subject)]
}

/// Limits of the process and of its control group.
pub(super) fn examine_limits(subject: &Subject) -> Vec<Finding> {
    let files = getrlimit(Resource::Nofile).current;
    vec![memlock(subject.shards, getrlimit(Resource::Memlock).current), open_files(files), quota(subject)]
}

fn version(subject: &Subject) -> Finding {
    let Some(release) = subject.host.proc("sys/kernel/osrelease") else {
        return KERNEL.unseen("/proc/sys/kernel/osrelease");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return KERNEL.unseen(format_args!("'{release}' is no version"));
    };
    match (major, minor) {
        version if version < OLDEST => KERNEL.fail(format!("Linux {release}"), "boot Linux 5.11 or newer"),
        version if version < SHORT_SLICES => KERNEL.warn(
            format!("Linux {release}: shards that share a core cannot ask for short slices"),
            "boot Linux 6.12 or newer, or pin each shard to a core of its own and isolate it",
        ),
        _ => KERNEL.ok(format!("Linux {release}")),
    }
}

fn ring(subject: &Subject) -> Finding {
    let switch = subject.host.proc("sys/kernel/io_uring_disabled");
    let said = switch.as_deref().map_or(String::new(), |value| format!("; kernel.io_uring_disabled = {value}"));
    match (probe::ring(), switch.as_deref()) {
        (Ok(()), None | Some("0")) => RING.ok(format!("a ring was set up{said}")),
        (Ok(()), Some(_)) => RING.warn(
            format!("a ring was set up, by this user{said}: others may not"),
            "sudo sysctl -w kernel.io_uring_disabled=0",
        ),
        (Err(error), None | Some("0")) => RING.fail(
            format!("no ring: {error}{said}"),
            "ulimit -l unlimited; in a container, use a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register",
        ),
        (Err(error), Some(_)) => {
            RING.fail(format!("no ring: {error}{said}"), "sudo sysctl -w kernel.io_uring_disabled=0")
        }
    }
}

fn memlock(shards: usize, limit: Option<u64>) -> Finding {
    let needed = MEMLOCK_PER_SHARD * shards as u64;
    match limit {
        None => MEMLOCK.ok("unlimited"),
        Some(limit) if limit >= needed => {
            MEMLOCK.ok(format!("{} KiB; {shards} shards need {} KiB", limit / 1024, needed / 1024))
        }
        Some(limit) => MEMLOCK.fail(
            format!("{} KiB; {shards} shards need {} KiB", limit / 1024, needed / 1024),
            "ulimit -l unlimited; in a systemd unit LimitMEMLOCK=infinity; in a container --ulimit memlock=-1",
        ),
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    let remedy = "ulimit -n 1048576; in a systemd unit LimitNOFILE=1048576";
    match limit {
        None => FILES.ok("unlimited"),
        Some(limit) if limit < FILES_MIN => FILES.fail(format!("{limit}"), remedy),
        Some(limit) if limit < FILES_GOOD => FILES.warn(format!("{limit}"), remedy),
        Some(limit) => FILES.ok(format!("{limit}")),
    }
}

/// Reads the quota of a control group: cores, `None` inside for no bound, `None` where it is not to be seen.
type ReadQuota = fn(&Subject, &Path) -> Option<Option<f64>>;

/// The tightest quota from the process's control group upwards, in cores.
fn quota(subject: &Subject) -> Finding {
    let Some(groups) = subject.host.proc("self/cgroup") else { return QUOTA.unseen("/proc/self/cgroup") };
    let mut tightest: Option<(f64, PathBuf)> = None;
    let mut seen = false;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, read): (&str, ReadQuota) = match controllers {
            "" => ("fs/cgroup", quota_v2),
            list if list.split(',').any(|name| name == "cpu") => ("fs/cgroup/cpu", quota_v1),
            _ => continue,
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = Path::new(root).join(folder);
            let Some(found) = read(subject, &folder) else { continue };
            seen = true;
            if let Some(cores) = found.filter(|cores| tightest.as_ref().is_none_or(|(least, _)| cores < least)) {
                tightest = Some((cores, folder));
            }
        }
    }
    // The root group of version 2 has no quota and no file for one.
    let root_only =
        groups.lines().all(|line| line == "0::/") && subject.host.sys("fs/cgroup/cgroup.controllers").is_some();
    match tightest {
        Some((cores, folder)) => {
            let stopped = subject
                .host
                .sys(folder.join("cpu.stat"))
                .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix("nr_throttled ").map(str::to_owned)));
            let stopped = stopped.map_or(String::new(), |times| format!("; stopped {times} times so far"));
            QUOTA.warn(
                format!("{cores:.2} cores, by /sys/{}{stopped}", folder.display()),
                "give whole cores instead of a quota: AllowedCPUs= without CPUQuota= in systemd, --cpuset-cpus without --cpus in Docker",
            )
        }
        None if seen || root_only => QUOTA.ok("none"),
        None => QUOTA.unseen("/sys/fs/cgroup"),
    }
}

/// `None`: no such file; `Some(None)`: no quota.
fn quota_v2(subject: &Subject, folder: &Path) -> Option<Option<f64>> {
    let text = subject.host.sys(folder.join("cpu.max"))?;
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok().zip(period.parse::<f64>().ok()).map(|(quota, period)| quota / period))
}

fn quota_v1(subject: &Subject, folder: &Path) -> Option<Option<f64>> {
    let number = |name: &str| subject.host.sys(folder.join(name))?.parse::<f64>().ok();
    let (quota, period) = (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?);
    Some((quota > 0.0).then_some(quota / period))
}

fn virtualisation(subject: &Subject) -> Finding {
    let Some(info) = subject.host.proc("cpuinfo") else { return VIRTUAL.unseen("/proc/cpuinfo") };
    let flags = info.lines().find(|line| line.starts_with("flags"));
    let Some(flags) = flags else { return VIRTUAL.unseen("flags in /proc/cpuinfo") };
    if !flags.split_whitespace().any(|flag| flag == "hypervisor") {
        return VIRTUAL.ok("none: the cores are the machine's own");
    }
    let part = |name: &str| subject.host.sys(format!("class/dmi/id/{name}"));
    let product: Vec<String> = ["sys_vendor", "product_name"].into_iter().filter_map(part).collect();
    let product = if product.is_empty() { String::new() } else { format!(" ({})", product.join(" ")) };
    let steal = subject.host.proc("stat").as_deref().and_then(steal_per_mille);
    let Some(steal) = steal else { return VIRTUAL.unseen("steal in /proc/stat") };
    let found = format!("yes{product}; {:.2}% of the time was lent to others since its start", steal / 10.0);
    if steal > STEAL_PER_MILLE_MAX {
        return VIRTUAL.warn(found, "use a dedicated host, or an instance whose cores are not shared");
    }
    VIRTUAL.ok(found)
}

/// From the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn steal_per_mille(stat: &str) -> Option<f64> {
    let numbers: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let all: f64 = numbers.iter().take(8).sum();
    (all > 0.0).then(|| numbers.get(7).map(|steal| steal / all * 1000.0)).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    #[test]
    fn old_kernels_are_refused_and_middle_aged_ones_told() {
        let outcome =
            |release: &str| Made::new(&[0], &[("proc/sys/kernel/osrelease", release)]).one(examine, "kernel").outcome;
        assert_eq!(outcome("5.10.0-28-amd64\n"), Outcome::Fail);
        assert_eq!(outcome("6.1.0"), Outcome::Warn);
        assert_eq!(outcome("6.12.3+"), Outcome::Ok);
        assert_eq!(outcome("none"), Outcome::Unseen);
    }

    #[test]
    fn limits_are_compared_with_what_shards_need() {
        assert_eq!(memlock(2, None).outcome, Outcome::Ok);
        let found = memlock(4, Some(64 * 1024));
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Fail, "64 KiB; 4 shards need 2048 KiB"));
        assert_eq!(open_files(Some(256)).outcome, Outcome::Fail);
        assert_eq!(open_files(Some(1024)).outcome, Outcome::Warn);
        assert_eq!(open_files(Some(1 << 20)).outcome, Outcome::Ok);
    }

    #[test]
    fn the_tightest_quota_on_the_way_up_counts() {
        let made = Made::new(
            &[0],
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
                ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/a/cpu.stat", "usage_usec 1\nnr_throttled 12\n"),
            ],
        );
        let found = made.one(examine_limits, "cpu quota");
        assert_eq!(found.found, "1.50 cores, by /sys/fs/cgroup/a; stopped 12 times so far");
        assert_eq!(found.outcome, Outcome::Warn);
        made.put("sys/fs/cgroup/a/cpu.max", "max 100000");
        assert_eq!(made.one(examine_limits, "cpu quota").outcome, Outcome::Ok);
        let old = Made::new(
            &[0],
            &[
                ("proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/x\n"),
                ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "50000"),
                ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000"),
            ],
        );
        assert!(old.one(examine_limits, "cpu quota").found.starts_with("0.50 cores, by /sys/fs/cgroup/cpu/x"));
    }

    #[test]
    fn a_virtual_machine_is_well_as_long_as_nothing_is_stolen() {
        let files = [("proc/cpuinfo", "flags\t\t: fpu hypervisor sse\n"), ("sys/class/dmi/id/sys_vendor", "ACME")];
        let made = Made::new(&[0], &files);
        made.put("proc/stat", "cpu  100 0 100 799 0 0 0 1 0 0\n");
        let found = made.one(examine, "virtual machine");
        assert_eq!(found.found, "yes (ACME); 0.10% of the time was lent to others since its start");
        assert_eq!(found.outcome, Outcome::Ok);
        made.put("proc/stat", "cpu  100 0 100 700 0 0 0 100 0 0\n");
        assert_eq!(made.one(examine, "virtual machine").outcome, Outcome::Warn);
    }
}
