//! The cores that shards are pinned to: who else runs there, how fast they are, what they share.

use std::collections::{BTreeMap, BTreeSet};

use super::host::{cpu_list, ranges};
use super::{Check, Finding, Subject};

const PLACEMENT: Check = Check {
    name: "placement",
    why: "a shard is a thread that is pinned to a core; queries, deferred plugins and the kernel need others, or they interrupt it.",
};
const GOVERNOR: Check = Check {
    name: "governor",
    why: "a core that clocks down between writes has to come up again at each wake of its shard.",
};
const ISOLATION: Check = Check {
    name: "isolation",
    why: "the scheduler's tick, kernel threads and other programs take time from a shard, which no other core makes up for.",
};
const SMT: Check = Check {
    name: "smt",
    why: "two hardware threads of one core share its units and its cache: two shards there get less than two cores, unevenly.",
};
const NUMA: Check =
    Check { name: "numa", why: "memory of another node is farther away, and batches travel between shards." };

/// Placement, governor, isolation, SMT, NUMA.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    vec![placement(subject), governor(subject), isolation(subject), smt(subject), numa(subject)]
}

/// The command that leaves a core to others, if there is one to leave.
pub(super) fn one_core_less(subject: &Subject) -> String {
    match subject.cpus.split_last() {
        Some((_, fewer)) if !fewer.is_empty() => format!("saltus serve --cpus {}", ranges(fewer.iter().copied())),
        _ => "use a machine with at least two cores".to_owned(),
    }
}

/// Cores that no shard has, of those that are online.
pub(super) fn others(subject: &Subject) -> Vec<usize> {
    let online = subject.host.online().unwrap_or_else(|| subject.allowed.clone());
    online.into_iter().filter(|cpu| !subject.cpus.contains(cpu)).collect()
}

fn placement(subject: &Subject) -> Finding {
    let Subject { cpus, shards, allowed, .. } = subject;
    if cpus.len() < *shards {
        return PLACEMENT.warn(
            format!(
                "{shards} shards, not pinned: this process may use {} cores ({})",
                allowed.len(),
                ranges(allowed.iter().copied())
            ),
            format!("saltus serve --shards {}", allowed.len().saturating_sub(1).max(1)),
        );
    }
    let found = format!("{shards} shards on CPUs {}", ranges(cpus.iter().copied()));
    let free: Vec<usize> = allowed.iter().copied().filter(|cpu| !cpus.contains(cpu)).collect();
    match (free.is_empty(), allowed.len()) {
        (false, _) => PLACEMENT.ok(format!("{found}; queries and deferred plugins have {}", ranges(free))),
        (true, 1) => PLACEMENT.warn(format!("{found}, the only one there is"), "use a machine with at least two cores"),
        (true, all) => PLACEMENT.warn(
            format!("{found}; none is left for queries and deferred plugins"),
            format!("saltus serve --shards {}", all - 1),
        ),
    }
}

fn governor(subject: &Subject) -> Finding {
    let of = |cpu: &usize| subject.host.sys(format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"));
    let governors: BTreeMap<usize, String> = subject.cpus.iter().filter_map(|cpu| Some((*cpu, of(cpu)?))).collect();
    if governors.is_empty() {
        return GOVERNOR.unseen("/sys/devices/system/cpu/cpu*/cpufreq; a virtual machine's host has it");
    }
    let slow: Vec<usize> = governors.iter().filter(|(_, name)| *name != "performance").map(|(cpu, _)| *cpu).collect();
    if slow.is_empty() {
        return GOVERNOR.ok("performance");
    }
    let names: BTreeSet<&str> = slow.iter().map(|cpu| governors[cpu].as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let slow = ranges(slow);
    GOVERNOR.warn(
        format!("{} on CPUs {slow}", names.join(", ")),
        format!("sudo cpupower -c {slow} frequency-set -g performance"),
    )
}

/// Isolated from other programs, from the tick, and from the kernel's callbacks.
fn isolation(subject: &Subject) -> Finding {
    let host = &subject.host;
    let isolated = host.cpu_list("devices/system/cpu/isolated");
    let tickless = host.cpu_list("devices/system/cpu/nohz_full");
    let Some(isolated) = isolated else { return ISOLATION.unseen("/sys/devices/system/cpu/isolated") };
    let command_line = host.proc("cmdline").unwrap_or_default();
    let callbacks = command_line.split_whitespace().find_map(|word| word.strip_prefix("rcu_nocbs="));
    // Since Linux 5.17 nohz_full implies it.
    let callbacks = callbacks.and_then(cpu_list).or_else(|| tickless.clone()).unwrap_or_default();
    let lists = [("isolcpus", isolated), ("nohz_full", tickless.unwrap_or_default()), ("rcu_nocbs", callbacks)];
    let lacking: Vec<String> = lists
        .iter()
        .filter_map(|(name, list)| {
            let missing: Vec<usize> = subject.cpus.iter().copied().filter(|cpu| !list.contains(cpu)).collect();
            (!missing.is_empty()).then(|| format!("CPUs {} not in {name}", ranges(missing)))
        })
        .collect();
    if subject.cpus.is_empty() {
        return ISOLATION.warn("the shards are not pinned", "saltus serve --cpus LIST");
    }
    let shards = ranges(subject.cpus.iter().copied());
    if lacking.is_empty() {
        return ISOLATION.ok(format!("CPUs {shards} are in isolcpus, nohz_full and rcu_nocbs"));
    }
    let found = lacking.join("; ");
    if others(subject).is_empty() {
        return ISOLATION.warn(found, format!("leave the kernel a core of its own first: {}", one_core_less(subject)));
    }
    ISOLATION.warn(
        found,
        format!(
            "add to GRUB_CMDLINE_LINUX in /etc/default/grub: isolcpus=domain,managed_irq,{shards} nohz_full={shards} \
             rcu_nocbs={shards}\nsudo update-grub && sudo reboot"
        ),
    )
}

fn smt(subject: &Subject) -> Finding {
    let of = |cpu: usize| subject.host.cpu_list(format!("devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    let siblings: BTreeMap<usize, Vec<usize>> = subject.cpus.iter().filter_map(|&cpu| Some((cpu, of(cpu)?))).collect();
    if siblings.is_empty() {
        return SMT.unseen("/sys/devices/system/cpu/cpu*/topology");
    }
    let mut cores: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
    for (cpu, list) in &siblings {
        cores.entry(list).or_default().push(*cpu);
    }
    let shared: Vec<String> =
        cores.values().filter(|cpus| cpus.len() > 1).map(|cpus| ranges(cpus.iter().copied())).collect();
    if !shared.is_empty() {
        let one_each = ranges(cores.values().filter_map(|cpus| cpus.first().copied()));
        return SMT.warn(
            format!("shards share a core: CPUs {}", shared.join(" and ")),
            format!("saltus serve --cpus {one_each}"),
        );
    }
    let idle: BTreeSet<usize> =
        siblings.values().flatten().copied().filter(|cpu| !subject.cpus.contains(cpu)).collect();
    if idle.is_empty() {
        return SMT.ok("each shard has a core of its own");
    }
    let idle = ranges(idle);
    SMT.ok(format!(
        "each shard has a core of its own; keep its other threads ({idle}) free of work, for instance in isolcpus"
    ))
}

fn numa(subject: &Subject) -> Finding {
    let mut nodes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &cpu in &subject.cpus {
        if let Some(node) = subject.host.node_of_cpu(cpu) {
            nodes.entry(node).or_default().push(cpu);
        }
    }
    let list = |node: &usize| ranges(nodes[node].iter().copied());
    match nodes.keys().collect::<Vec<_>>().as_slice() {
        [] => NUMA.unseen("/sys/devices/system/node"),
        [node] => NUMA.ok(format!("all shards are on node {node}")),
        several => {
            let parts: Vec<String> = several.iter().map(|node| format!("node {node}: CPUs {}", list(node))).collect();
            let most = several.iter().max_by_key(|node| nodes[node].len()).map_or(String::new(), |node| list(node));
            NUMA.warn(
                format!("shards are on {} nodes ({})", several.len(), parts.join("; ")),
                format!("saltus serve --cpus {most}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    fn topology(made: &Made) {
        made.put("sys/devices/system/cpu/online", "0-7\n");
        for cpu in 0..8 {
            made.put(
                &format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"),
                &format!("{},{}\n", cpu % 4, cpu % 4 + 4),
            );
        }
        made.put("sys/devices/system/node/node0/cpulist", "0-1,4-5\n");
        made.put("sys/devices/system/node/node1/cpulist", "2-3,6-7\n");
        made.put("sys/devices/system/node/possible", "0-1\n");
    }

    #[test]
    fn shards_on_two_threads_of_a_core_are_told_which_cores_to_take() {
        let made = Made::new(&[0, 1, 4], &[]);
        topology(&made);
        let found = made.one(examine, "smt");
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Warn, "shards share a core: CPUs 0,4"));
        assert_eq!(found.remedy.as_deref(), Some("saltus serve --cpus 0-1"));
        let made = Made::new(&[0, 1], &[]);
        topology(&made);
        let found = made.one(examine, "smt");
        assert!(found.outcome == Outcome::Ok && found.found.contains("(4-5)"), "{found:?}");
    }

    #[test]
    fn shards_on_two_nodes_are_told_a_node() {
        let made = Made::new(&[0, 1, 2], &[]);
        topology(&made);
        let found = made.one(examine, "numa");
        assert_eq!(found.found, "shards are on 2 nodes (node 0: CPUs 0-1; node 1: CPUs 2)");
        assert_eq!(found.remedy.as_deref(), Some("saltus serve --cpus 0-1"));
        let made = Made::new(&[2, 3], &[]);
        topology(&made);
        assert_eq!(made.one(examine, "numa").found, "all shards are on node 1");
    }

    #[test]
    fn a_governor_that_saves_power_is_named_with_its_cores() {
        let made = Made::new(
            &[0, 1],
            &[
                ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
                ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ],
        );
        let found = made.one(examine, "governor");
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Warn, "powersave on CPUs 1"));
        assert_eq!(found.remedy.as_deref(), Some("sudo cpupower -c 1 frequency-set -g performance"));
        made.put("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance");
        assert_eq!(made.one(examine, "governor").outcome, Outcome::Ok);
    }

    #[test]
    fn isolation_is_asked_of_all_three_lists() {
        let made = Made::new(
            &[2, 3],
            &[
                ("sys/devices/system/cpu/online", "0-3\n"),
                ("sys/devices/system/cpu/isolated", "2-3\n"),
                ("sys/devices/system/cpu/nohz_full", "(null)\n"),
                ("proc/cmdline", "quiet rcu_nocbs=3\n"),
            ],
        );
        let found = made.one(examine, "isolation");
        assert_eq!(found.found, "CPUs 2-3 not in nohz_full; CPUs 2 not in rcu_nocbs");
        assert!(found.remedy.unwrap().contains("isolcpus=domain,managed_irq,2-3 nohz_full=2-3 rcu_nocbs=2-3"));
        made.put("sys/devices/system/cpu/nohz_full", "2-3");
        made.put("proc/cmdline", "quiet");
        assert_eq!(made.one(examine, "isolation").outcome, Outcome::Ok);
        let all =
            Made::new(&[0, 1], &[("sys/devices/system/cpu/online", "0-1"), ("sys/devices/system/cpu/isolated", "")]);
        assert!(all.one(examine, "isolation").remedy.unwrap().ends_with("first: saltus serve --cpus 0"));
    }

    #[test]
    fn placement_leaves_cores_for_others() {
        let mut made = Made::new(&[0, 1], &[]);
        let found = made.one(examine, "placement");
        assert_eq!(found.found, "2 shards on CPUs 0-1; queries and deferred plugins have 2-7");
        made.subject.allowed = vec![0, 1];
        let found = made.one(examine, "placement");
        assert_eq!((found.outcome, found.remedy.as_deref()), (Outcome::Warn, Some("saltus serve --shards 1")));
        made.subject.shards = 3;
        assert!(made.one(examine, "placement").found.starts_with("3 shards, not pinned"));
    }
}
