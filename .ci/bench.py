"""Counts the instructions of the benchmarks' cases, and compares them with a committed baseline.

The counts come from the benches `counts` and `server_counts` of `saltus-benches`, which run each case once under callgrind.
They do not depend on what else the machine does, but on what is compiled and on a few facts of the machine: FACTS.
Where a fact differs from the baseline's, the comparison is printed, and nobody is blamed for it.

A case fails if it takes more instructions than the baseline says plus a tolerance: `tolerance_percent` of the case, if it
has one in the file, else of the file.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys

BASELINE = "benches/baseline.json"
# What `all` has measured goes between these lines of the page, as far as both instructions and times are there.
PAGE = "docs/benchmarks.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
TOLERANCE_PERCENT = 3.0
RENEW = "make bench-baseline"
# What a processor can that valgrind passes on; libraries choose their code by it.
CPU_FLAGS = ("sse3", "pni", "ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "abm", "avx", "f16c", "rdrand", "bmi1", "avx2", "bmi2")
# Cases that depend on the Python that is embedded.
PYTHON_CASES = "plugin_"


def main():
    """Does what the first argument says."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in ("check", "baseline", "all"):
        sys.exit("usage: bench check | baseline | all")
    missing = [tool for tool in ("valgrind", "gungraun-runner") if shutil.which(tool) is None]
    if missing:
        print(f"bench: instructions are not counted: {' and '.join(missing)} missing; `make setup` installs it or says why not")
        if command == "baseline":
            sys.exit(1)
    times = measure_times() if command == "all" else {}
    counts = {} if missing else count_all()
    if command == "baseline":
        write_baseline(counts)
    elif command == "check" and counts:
        sys.exit(0 if check(counts) else 1)
    elif command == "all":
        print_table(counts, times)


def run(command, **options):
    """Standard output of a command that has to succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        print(done.stdout)
        sys.exit(f"bench: failed: {' '.join(command)}")
    return done.stdout


def target_dir():
    """Where cargo keeps results."""
    return os.environ.get("CARGO_TARGET_DIR") or "target"


def count_all():
    """Instructions, units and unit of every case, by name."""
    return {**count("counts", {}), **count("server_counts", {"SALTUS_SURFACE_BENCH": surface()})}


def surface():
    """The path of the server's bench, which is built if it has to be."""
    build = ["cargo", "bench", "--quiet", "-p", "saltus", "--bench", "surface", "--no-run", "--message-format=json"]
    messages = (json.loads(line) for line in run(build).splitlines())
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == "surface" and m["executable"])


def count(bench, environment):
    """The cases of one bench of `saltus-benches`."""
    cargo = ["cargo", "bench", "--quiet", "-p", "saltus-benches", "--bench", bench, "--"]
    # No caches are simulated: only instructions are compared, and it takes half the time.
    options = ["--output-format=json", "--callgrind-args=--cache-sim=no", "--parallel=2", f"--home={os.path.abspath(target_dir())}/gungraun"]
    output = run(cargo + options, env={**os.environ, **environment})
    summaries = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {summary["id"]: instructions(summary) for summary in summaries}


def instructions(summary):
    """How many instructions callgrind has counted."""
    callgrind = next(profile for profile in summary["profiles"] if profile["tool"] == "Callgrind")
    return callgrind["data"]["total"]["metrics"]["Ir"]["values"]["new"]


def units():
    """Name to number of units and unit, as the benches themselves say."""
    listed = run(["cargo", "bench", "--quiet", "-p", "saltus-benches", "--bench", "counts", "--", "--units"])
    listed += run([surface(), "--units"])
    return {name: (int(number), unit) for name, number, unit in (line.split() for line in listed.splitlines())}


def facts():
    """What counts depend on besides the sources."""
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        flags = re.search(r"^flags\s*:(.*)$", info.read(), re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else "unknown"
    return {
        "cpu": " ".join([platform.machine(), *(flag for flag in CPU_FLAGS if flag in known)]),
        "libc": libc,
        "python": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
        "rustc": run(["rustc", "--version"]).strip(),
        "valgrind": run(["valgrind", "--version"]).strip(),
    }


def read_baseline():
    """The committed file."""
    if not os.path.exists(BASELINE):
        sys.exit(f"bench: {BASELINE} is missing; `{RENEW}` writes it")
    with open(BASELINE, encoding="utf-8") as file:
        return json.load(file)


def write_baseline(counts):
    """Writes the file anew; tolerances stay."""
    old = read_baseline() if os.path.exists(BASELINE) else {"cases": {}}
    cases = {}
    for name, number in counts.items():
        cases[name] = {**old["cases"].get(name, {}), "instructions": number}
    file_tolerance = old.get("tolerance_percent", TOLERANCE_PERCENT)
    with open(BASELINE, "w", encoding="utf-8") as file:
        json.dump({"facts": facts(), "tolerance_percent": file_tolerance, "cases": cases}, file, indent=2)
        file.write("\n")
    print_comparison(counts, old["cases"])
    print(f"bench: {BASELINE} has {len(cases)} cases; commit it, and say in the commit why counts have changed")


def percent(now, before):
    """How much more `now` is than `before`."""
    return (now - before) / before * 100


def print_comparison(counts, baseline):
    """One line for each case."""
    print(f"{'case':<32}{'instructions':>14}{'baseline':>14}{'change':>10}")
    for name, now in counts.items():
        before = baseline.get(name, {}).get("instructions")
        change = f"{percent(now, before):+9.2f}%" if before else "new".rjust(10)
        print(f"{name:<32}{now:>14,}{before or 0:>14,}{change}")


def check(counts):
    """Compares with the baseline; whether all is well."""
    baseline = read_baseline()
    print_comparison(counts, baseline["cases"])
    here = facts()
    differ = {name: (baseline["facts"].get(name), value) for name, value in here.items() if baseline["facts"].get(name) != value}
    unjudged = [name for name in counts if set(differ) - ({"python"} if not name.startswith(PYTHON_CASES) else set())]
    for fact, (before, now) in differ.items():
        print(f"bench: {fact} is {now!r} here, the baseline was made with {before!r}")
    if unjudged:
        print(f"bench: not judged for that reason: {', '.join(unjudged)}")
    judged = {name: now for name, now in counts.items() if name not in unjudged}
    problems = [text for name, now in judged.items() if (text := problem(name, now, baseline))]
    problems += [f"{name} is in {BASELINE} and was not counted" for name in baseline["cases"] if name not in counts]
    for text in problems:
        print(f"bench: {text}", file=sys.stderr)
    if problems:
        print(f"bench: if that is meant to be: `{RENEW}`, and commit {BASELINE} with the reason", file=sys.stderr)
    else:
        print(f"bench: {len(judged)} of {len(counts)} cases judged, all within their tolerance")
    return not problems


def problem(name, now, baseline):
    """What is wrong with a case, if something is."""
    known = baseline["cases"].get(name)
    if known is None:
        return f"{name} is not in {BASELINE}: it takes {now:,} instructions"
    change = percent(now, known["instructions"])
    tolerance = known.get("tolerance_percent", baseline["tolerance_percent"])
    if change > tolerance:
        return (
            f"{name} takes {now:,} instructions, the baseline says {known['instructions']:,}: "
            f"{change:+.2f}%, and {tolerance}% are tolerated"
        )
    if change < -tolerance:
        print(f"bench: {name} has become better by {-change:.2f}%: `{RENEW}` keeps it so")
    return None


def measure_times():
    """Runs all benches that have a clock, with their own output; nanoseconds of a run by case."""
    clocked = ["wall", "table", "mailbox", "bridge"]
    light = ["cargo", "bench", "-p", "saltus-benches", *(word for bench in clocked for word in ("--bench", bench))]
    if subprocess.run(light, check=False).returncode != 0:
        sys.exit(f"bench: failed: {' '.join(light)}")
    times = {name: float(time) for name, time in map(str.split, run([surface(), "--bench"]).splitlines())}
    estimates = f"{target_dir()}/criterion/wall"
    for name in os.listdir(estimates):
        path = f"{estimates}/{name}/new/estimates.json"
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                times[name] = json.load(file)["median"]["point_estimate"]
    return times


def print_table(counts, times):
    """All cases: instructions and time for each unit."""
    print(f"\n{'case':<32}{'unit':<12}{'instructions':>14}{'nanoseconds':>14}   for each unit")
    lines = ["| case | for each | instructions | nanoseconds |", "|---|---|--:|--:|"]
    for name, (number, unit) in units().items():
        each = [f"{figures[name] / number:,.1f}" if name in figures else "-" for figures in (counts, times)]
        print(f"{name:<32}{unit:<12}{each[0]:>14}{each[1]:>14}")
        lines.append(f"| `{name}` | {unit} | {each[0]} | {each[1]} |")
    if counts and times:
        publish("\n".join(lines))


def publish(table):
    """Puts the table, and what it depends on, into the page."""
    with open(PAGE, encoding="utf-8") as file:
        text = file.read()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"bench: {PAGE} needs the lines {BEGIN} and {END}, for the table to go between")
    commit = run(["git", "describe", "--always", "--dirty", "--abbrev=12"]).strip()
    known = facts()
    machine = f"- Commit {commit}; {known['rustc']}; {known['python']}; {known['libc']}; {known['valgrind']}."
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n{machine}\n\n{table}\n\n{END}{after}")
    print(f"bench: the table is in {PAGE}")


if __name__ == "__main__":
    main()
