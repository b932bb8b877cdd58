//! The clock that latencies are measured with.

use std::time::Instant;

use super::{Check, Finding, Subject};

const CLOCK: Check = Check {
    name: "clock source",
    why: "every turn of a shard, every run and every request reads the clock twice; with tsc that takes a few instructions, otherwise a system call.",
};
const READINGS: u32 = 100_000;
const NS_PER_READING_MAX: u32 = 150;

/// The clock source and what a reading costs.
pub(super) fn examine(subject: &Subject) -> Vec<Finding> {
    const FOLDER: &str = "devices/system/clocksource/clocksource0";
    let Some(source) = subject.host.sys(format!("{FOLDER}/current_clocksource")) else {
        return vec![CLOCK.unseen(format_args!("/sys/{FOLDER}"))];
    };
    let cost_ns = reading_ns();
    let found = format!("{source}; one reading takes {cost_ns} ns");
    let available = subject.host.sys(format!("{FOLDER}/available_clocksource")).unwrap_or_default();
    let has_tsc = available.split_whitespace().any(|name| name == "tsc");
    let direct = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"].contains(&source.as_str());
    vec![match (direct, has_tsc) {
        (true, _) if cost_ns <= NS_PER_READING_MAX => CLOCK.ok(found),
        (true, false) => CLOCK.warn(found, "use a machine (or a host) whose clock is read without a system call"),
        (_, true) => CLOCK.warn(
            found,
            "echo tsc | sudo tee /sys/devices/system/clocksource/clocksource0/current_clocksource (for good: clocksource=tsc tsc=reliable on the kernel's command line)",
        ),
        (false, false) => CLOCK.warn(found, "sudo dmesg | grep -i tsc says why the kernel does not trust it; on a virtual machine ask for an invariant TSC"),
    }]
}

fn reading_ns() -> u32 {
    let began = Instant::now();
    let mut last = began;
    for _ in 0..READINGS {
        last = Instant::now();
    }
    u32::try_from((last - began).as_nanos() / u128::from(READINGS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::Made;
    use super::*;

    #[test]
    fn a_slow_source_is_told_and_the_better_one_named() {
        let made = Made::new(
            &[0],
            &[
                ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n"),
                ("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet acpi_pm tsc\n"),
            ],
        );
        let found = made.one(examine, "clock source");
        assert!(found.outcome == Outcome::Warn && found.found.starts_with("hpet; one reading takes "), "{found:?}");
        assert!(found.remedy.unwrap().starts_with("echo tsc | sudo tee"));
        made.put("sys/devices/system/clocksource/clocksource0/available_clocksource", "hpet");
        assert!(made.one(examine, "clock source").remedy.unwrap().contains("dmesg"));
    }
}
