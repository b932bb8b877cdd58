//! The network's side: on which node its cards are, and which cores take their interrupts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::cpus::{one_core_less, others};
use super::host::{cpu_list, names, ranges, text};
use super::{Check, Finding, Subject};

const NIC_NODE: Check = Check {
    name: "numa of nic",
    why: "packets are put into the memory of the card's node, and shards on another node fetch every byte from there.",
};
const IRQ: Check = Check {
    name: "irq affinity",
    why: "a core that takes a card's interrupts also does the packets' work in the kernel, before its shard comes to run.",
};
const IRQ_COMMANDS_MAX: usize = 64;

/// NUMA nodes and interrupts of network cards.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    let cards = cards(subject);
    if cards.is_empty() {
        let what = "/sys/class/net/*/device; containers and loopback have none";
        return vec![NIC_NODE.unseen(what), IRQ.unseen(what)];
    }
    let mut findings: Vec<Finding> = cards.iter().map(|card| node(subject, card)).collect();
    findings.extend(cards.iter().map(|card| interrupts(subject, card)));
    findings
}

struct Card {
    name: String,
    device: PathBuf,
}

fn cards(subject: &Subject) -> Vec<Card> {
    let folder = subject.host.sys.join("class/net");
    let wanted = |name: &String| subject.interfaces.is_empty() || subject.interfaces.contains(name);
    names(&folder)
        .into_iter()
        .filter(wanted)
        .map(|name| Card { device: folder.join(&name).join("device"), name })
        .filter(|card| card.device.is_dir())
        .collect()
}

/// The node of a device or of what it is plugged into; the kernel says -1 where there is one node only.
pub(super) fn node_of_device(device: &Path) -> Option<i64> {
    let device = device.canonicalize().ok()?;
    device.ancestors().take(8).find_map(|folder| text(&folder.join("numa_node"))?.parse().ok())
}

/// Compares a device's node with those of the shards.
pub(super) fn compare_nodes(check: Check, subject: &Subject, what: &str, device: &Path) -> Finding {
    let Some(node) = node_of_device(device) else { return check.unseen(format_args!("numa_node of {what}")) };
    let Ok(node) = usize::try_from(node) else { return check.ok(format!("{what}: this machine has one node")) };
    let far: Vec<usize> =
        subject.cpus.iter().copied().filter(|&cpu| subject.host.node_of_cpu(cpu).is_some_and(|n| n != node)).collect();
    if far.is_empty() {
        return check.ok(format!("{what} is on node {node}, as the shards"));
    }
    let near = subject.host.cpu_list(format!("devices/system/node/node{node}/cpulist")).unwrap_or_default();
    check.warn(
        format!("{what} is on node {node}, shards on CPUs {} are not", ranges(far)),
        format!("saltus serve --cpus {}", ranges(near.into_iter().take(subject.shards.max(1)))),
    )
}

fn node(subject: &Subject, card: &Card) -> Finding {
    compare_nodes(NIC_NODE, subject, &card.name, &card.device)
}

fn interrupts(subject: &Subject, card: &Card) -> Finding {
    // A virtio device has its interrupts one level up, at the card on the bus.
    let folders = [card.device.join("msi_irqs"), card.device.join("../msi_irqs")];
    let numbers: BTreeSet<u32> =
        folders.iter().flat_map(|folder| names(folder)).filter_map(|name| name.parse().ok()).collect();
    let affinity = |irq: u32| {
        let file = |name: &str| subject.host.proc(format!("irq/{irq}/{name}")).and_then(|text| cpu_list(&text));
        file("effective_affinity_list").filter(|list| !list.is_empty()).or_else(|| file("smp_affinity_list"))
    };
    let seen: Vec<(u32, Vec<usize>)> = numbers.iter().filter_map(|&irq| Some((irq, affinity(irq)?))).collect();
    if seen.is_empty() {
        return IRQ.unseen(format_args!("interrupts of {}", card.name));
    }
    let disturbing: Vec<u32> = seen
        .iter()
        .filter(|(_, cpus)| cpus.iter().any(|cpu| subject.cpus.contains(cpu)))
        .map(|(irq, _)| *irq)
        .collect();
    if disturbing.is_empty() {
        return IRQ.ok(format!("the {} interrupts of {} are on CPUs without shards", seen.len(), card.name));
    }
    let hit: BTreeSet<usize> =
        seen.iter().flat_map(|(_, cpus)| cpus).copied().filter(|cpu| subject.cpus.contains(cpu)).collect();
    let found = format!(
        "{} of {} interrupts of {} are on shards' CPUs {}",
        disturbing.len(),
        seen.len(),
        card.name,
        ranges(hit)
    );
    let free = others(subject);
    if free.is_empty() {
        return IRQ.warn(found, format!("leave the card a core of its own: {}", one_core_less(subject)));
    }
    let list: Vec<String> = disturbing.iter().take(IRQ_COMMANDS_MAX).map(u32::to_string).collect();
    IRQ.warn(
        found,
        format!(
            "sudo systemctl disable --now irqbalance\nfor irq in {}; do echo {} | sudo tee /proc/irq/$irq/smp_affinity_list; done",
            list.join(" "),
            ranges(free)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    fn made(cpus: &[usize]) -> Made {
        Made::new(
            cpus,
            &[
                ("sys/devices/system/cpu/online", "0-7"),
                ("sys/devices/system/node/node0/cpulist", "0-3"),
                ("sys/devices/system/node/node1/cpulist", "4-7"),
                ("sys/class/net/eth0/device/numa_node", "1"),
                ("sys/class/net/eth0/device/msi_irqs/40", "msix"),
                ("sys/class/net/eth0/device/msi_irqs/41", "msix"),
                ("sys/class/net/lo/mtu", "65536"),
                ("proc/irq/40/smp_affinity_list", "0-7"),
                ("proc/irq/40/effective_affinity_list", "2"),
                ("proc/irq/41/smp_affinity_list", "6"),
            ],
        )
    }

    #[test]
    fn a_card_on_another_node_is_told_with_the_cores_beside_it() {
        let found = made(&[2, 3]).one(examine, "numa of nic");
        assert_eq!(found.found, "eth0 is on node 1, shards on CPUs 2-3 are not");
        assert_eq!(found.remedy.as_deref(), Some("saltus serve --cpus 4-5"));
        assert_eq!(made(&[4, 5]).one(examine, "numa of nic").outcome, Outcome::Ok);
    }

    #[test]
    fn interrupts_on_a_shards_core_are_told_with_the_command_that_moves_them() {
        let found = made(&[2, 3]).one(examine, "irq affinity");
        assert_eq!(found.found, "1 of 2 interrupts of eth0 are on shards' CPUs 2");
        let remedy = found.remedy.unwrap();
        assert!(
            remedy.ends_with("for irq in 40; do echo 0-1,4-7 | sudo tee /proc/irq/$irq/smp_affinity_list; done"),
            "{remedy}"
        );
        assert_eq!(made(&[0, 1]).one(examine, "irq affinity").outcome, Outcome::Ok);
    }

    #[test]
    fn only_interfaces_that_were_named_are_looked_at() {
        let mut made = made(&[2]);
        made.subject.interfaces = vec!["eth7".into()];
        assert_eq!(made.one(examine, "irq affinity").outcome, Outcome::Unseen);
    }
}
