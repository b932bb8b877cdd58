//! Memory: transparent huge pages and swap.

use super::{Check, Finding, Subject};

const HUGE_PAGES: Check = Check {
    name: "huge pages",
    why: "with 'always' the kernel may stop a shard at any page fault to find or make 2 MiB of memory in one piece.",
};
const SWAP: Check = Check {
    name: "swap",
    why: "a page that was swapped out is read from the disk by the shard that touches it, which does nothing else meanwhile.",
};
/// Above it the kernel swaps out programs before it runs out of file pages.
const SWAPPINESS_MAX: u32 = 10;

/// Huge pages and swap.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    vec![huge_pages(subject), swap(subject)]
}

fn huge_pages(subject: &Subject) -> Finding {
    const FOLDER: &str = "kernel/mm/transparent_hugepage";
    let chosen = |name: &str| {
        let text = subject.host.sys(format!("{FOLDER}/{name}"))?;
        Some(text.split('[').nth(1)?.split(']').next()?.to_owned())
    };
    let Some(enabled) = chosen("enabled") else { return HUGE_PAGES.unseen(format_args!("/sys/{FOLDER}")) };
    let defrag = chosen("defrag").map_or(String::new(), |defrag| format!(", defrag {defrag}"));
    let found = format!("{enabled}{defrag}");
    if enabled == "always" {
        return HUGE_PAGES.warn(
            found,
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled (for good: transparent_hugepage=madvise on the kernel's command line)",
        );
    }
    HUGE_PAGES.ok(found)
}

fn swap(subject: &Subject) -> Finding {
    let Some(swaps) = subject.host.proc("swaps") else { return SWAP.unseen("/proc/swaps") };
    let areas: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return SWAP.ok("none");
    }
    let swappiness: Option<u32> = subject.host.proc("sys/vm/swappiness").and_then(|text| text.parse().ok());
    let found = format!(
        "{}; vm.swappiness = {}",
        areas.join(", "),
        swappiness.map_or_else(|| "not visible".to_owned(), |value| value.to_string())
    );
    match swappiness {
        Some(value) if value <= SWAPPINESS_MAX => SWAP.ok(found),
        _ => SWAP
            .warn(found, "sudo swapoff -a; or sudo sysctl -w vm.swappiness=1; or MemorySwapMax=0 in the systemd unit"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    #[test]
    fn huge_pages_for_everybody_are_told() {
        let made = Made::new(
            &[0],
            &[
                ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
                ("sys/kernel/mm/transparent_hugepage/defrag", "always defer [madvise] never\n"),
            ],
        );
        let found = made.one(examine, "huge pages");
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Warn, "always, defrag madvise"));
        made.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        assert_eq!(made.one(examine, "huge pages").outcome, Outcome::Ok);
    }

    #[test]
    fn swap_is_well_if_there_is_none_or_it_is_hardly_used() {
        let made = Made::new(&[0], &[("proc/swaps", "Filename Type Size Used Priority\n")]);
        assert_eq!(made.one(examine, "swap").found, "none");
        made.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
        made.put("proc/sys/vm/swappiness", "60\n");
        let found = made.one(examine, "swap");
        assert_eq!((found.outcome, found.found.as_str()), (Outcome::Warn, "/dev/sda2; vm.swappiness = 60"));
        made.put("proc/sys/vm/swappiness", "1");
        assert_eq!(made.one(examine, "swap").outcome, Outcome::Ok);
    }
}
