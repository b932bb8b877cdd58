"""Where a single-row write spends its time between the socket and the socket: a profile that hardly disturbs.

A shard of its own is sent rows at a fixed rate, twice: at RATES[0], where each write finds the processor as others left it, and at
RATES[1], where the write before it has left everything in the caches. perf notes four system calls of each write, which cut its
time into stages, and the processor's clock takes a sample HERTZ times a second: less than one per write, so that the samples do not
stretch what they measure. The first table says so: the stages with and without samples. The second lists what the samples in the
stage `work` met, as shares of its median without samples, in microseconds, at both rates: the same instructions, so a function that
takes longer at the lower rate waits for memory.

Needs perf and the right to trace (root). usage: profile_write [--busy-poll]
"""

import bisect
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

RATES = (500, 5000)
SECONDS = 40
HERTZ = 1999
PORT = 28181
TRIGGER = (
    '{"db":"loadtest","trigger_name":"p","plugin_filename":"p.py","trigger_specification":"table:probe",'
    '"trigger_settings":{"run_async":false,"error_behavior":"log","execution":"inline"},"disabled":false}'
)
PLUGIN = "def process_writes(influxdb3_local, table_batches, args=None):\n    pass\n"
STAGES = (
    ("delivery", "client's send to the shard's receive"),
    ("work", "receive to the shard's send, the plugin in between"),
    ("answer", "the shard's send to the client's receive"),
)
LINE = re.compile(r"\s*(?P<comm>.+?)\s+(?P<tid>\d+)\s+\[\d+\]\s+(?P<at>\d+\.\d+):\s+(?:\d+\s+)?(?P<event>[\w:-]+):\s*(?P<rest>.*)")
SHOWN = 28


def main():
    """Measures and prints."""
    polling = sys.argv[1:] == ["--busy-poll"]
    if sys.argv[1:] and not polling:
        sys.exit("usage: profile_write [--busy-poll]")
    ready()
    target_folder = target()
    with tempfile.TemporaryDirectory() as folder:
        server = start(target_folder + "saltus", folder, polling)
        try:
            tid = shard_thread(server.pid)
            measured = [measure(target_folder + "saltus-loadtest", folder, tid, rate) for rate in RATES]
        finally:
            server.terminate()
            server.wait()
    show(measured, polling)


def ready():
    """Ends the program if it cannot measure here."""
    if shutil.which("perf") is None:
        sys.exit("profile: perf is missing; on Debian: apt install linux-perf")
    if os.geteuid() != 0:
        sys.exit("profile: tracing needs root")
    if (os.cpu_count() or 1) < 2:
        sys.exit("profile: the shard and the client need a processor each")


def target():
    """Where the release build is."""
    return os.environ.get("CARGO_TARGET_DIR", "target") + "/release/"


def client(loadtest, folder, rate, seconds):
    """Rows without sync, for longer than `seconds`."""
    command = [loadtest, "probe", "--target", f"http://127.0.0.1:{PORT}", "--no-sync", "--cpu", "1", "--rate", str(rate)]
    command += ["--duration", str(seconds + 2), "--warmup", "1", "--output", folder + "/probe.json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(program, folder, polling):
    """A server on the first processor, with an inline trigger."""
    os.mkdir(folder + "/plugins")
    with open(folder + "/plugins/p.py", "w", encoding="utf-8") as file:
        file.write(PLUGIN)
    command = [program, "serve", "--without-auth", "--shards", "1", "--cpus", "0", "--data-dir", folder + "/data"]
    command += ["--plugin-dir", folder + "/plugins", "--http-bind", f"127.0.0.1:{PORT}"]
    command += ["--busy-poll", "all"] if polling else []
    with open(folder + "/log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        server.kill()
        sys.exit("profile: the server did not get ready")
    for path, body in (("database", '{"db":"loadtest"}'), ("processing_engine_trigger", TRIGGER)):
        url = f"http://127.0.0.1:{PORT}/api/v3/configure/{path}"
        request = urllib.request.Request(url, body.encode(), {"content-type": "application/json"})
        urllib.request.urlopen(request).close()
    return server


def shard_thread(pid):
    """The thread that serves: of those named after the shard, the one that has used the processor most."""
    used = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/comm", encoding="utf-8") as file:
            name = file.read().strip()
        if name.startswith("saltus-shard-0"):
            with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="utf-8") as file:
                used[tid] = int(file.read().split()[0])
    return max(used, key=used.get)


def measure(loadtest, folder, tid, rate):
    """Stages without samples, stages with them, and the samples by function."""
    quiet, _ = record(loadtest, folder, tid, rate, SECONDS // 4, [])
    stages, samples = record(loadtest, folder, tid, rate, SECONDS, ["-e", "cpu-clock", "-F", str(HERTZ)])
    return {"rate": rate, "quiet": quiet, "stages": stages, "samples": samples}


def record(loadtest, folder, tid, rate, seconds, more):
    """Traces rows at `rate` for some seconds."""
    sender = client(loadtest, folder, rate, seconds)
    time.sleep(2)
    data = folder + "/perf.data"
    calls = ["syscalls:sys_enter_sendto", "syscalls:sys_exit_sendto", "syscalls:sys_exit_recvfrom"]
    events = [word for call in calls for word in ("-e", call)]
    subprocess.run(
        ["perf", "record", "-q", "-o", data, *events, *more, "-a", "--", "sleep", str(seconds)], check=True, stderr=subprocess.DEVNULL
    )
    if sender.wait() != 0:
        sys.exit("profile: the client failed")
    script = ["perf", "script", "-i", data, "--no-inline", "-F", "comm,tid,cpu,time,event,ip,sym,dso,trace"]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as perf:
        return cut(perf.stdout, tid)


def cut(lines, tid):
    """Stages of each write, in seconds, and what was sampled in `work` by function, in samples per write."""
    stages = {name: [] for name, _ in STAGES}
    windows, samples = [], []
    sent = received = answered = None
    for line in lines:
        found = LINE.match(line)
        if not found:
            continue
        at, event, rest = float(found["at"]), found["event"], found["rest"]
        ours = found["tid"] == tid
        if event == "cpu-clock" or event.startswith("cpu-clock:"):
            if ours:
                samples.append((at, function(rest)))
            continue
        arrived = event.endswith("sys_exit_recvfrom") and not rest.strip().startswith("0xffff") and rest.strip() != "0x0"
        if ours and arrived:
            received = at
        elif ours and event.endswith("sys_enter_sendto"):
            answered = at
            if sent is not None and received is not None and sent < received:
                stages["delivery"].append(received - sent)
                stages["work"].append(answered - received)
                windows.append((received, answered))
            received = None
        elif not ours and event.endswith("sys_enter_sendto") and found["comm"] != "perf":
            sent = at
        elif not ours and arrived and answered is not None:
            stages["answer"].append(at - answered)
            sent = answered = None
    functions = collections.Counter()
    begins = [begin for begin, _ in windows]
    for at, name in samples:
        where = bisect.bisect(begins, at) - 1
        if where >= 0 and at <= windows[where][1]:
            functions[name] += 1
    return stages, functions


def function(rest):
    """Name and library of a sample."""
    words = re.match(r"\s*[0-9a-f]+\s+(.*?)\s+\((.*?)\)\s*$", rest)
    if not words:
        return "?"
    name, library = words[1], os.path.basename(words[2])
    name = re.sub(r"::h[0-9a-f]{16}$", "", re.sub(r"\+0x[0-9a-f]+$", "", name))
    library = "kernel" if "kernel" in library else library
    return f"{name[:78]} ({library})"


def at_share(values, share):
    """A percentile in microseconds."""
    return sorted(values)[int(len(values) * share)] * 1e6 if values else float("nan")


def show(measured, polling):
    """Both tables."""
    print(f"one row per request, no_sync, the shard {'polls' if polling else 'sleeps'}; microseconds\n")
    print("| rows/s | stage    | what                                               | p50 | p50 with samples | p99 with samples |")
    print("|-------:|----------|----------------------------------------------------|----:|-----------------:|-----------------:|")
    for each in measured:
        for name, what in STAGES:
            quiet, with_samples = each["quiet"][name], each["stages"][name]
            print(
                f"| {each['rate']:>6} | {name:<8} | {what:<50} | {at_share(quiet, 0.5):>3.0f} | {at_share(with_samples, 0.5):>16.0f} "
                f"| {at_share(with_samples, 0.99):>16.0f} |"
            )
    cold, warm = measured
    per_write = []
    for each in measured:
        # perf's own work, in the kernel, is what the samples have added.
        samples = {name: count for name, count in each["samples"].items() if not name.endswith("(kernel)")}
        total, median = sum(samples.values()), at_share(each["quiet"]["work"], 0.5)
        print(f"\n{each['rate']} rows/s: {len(each['stages']['work'])} writes, {total} samples in `work` outside of the kernel")
        per_write.append({name: count / max(total, 1) * median for name, count in samples.items()})
    print(f"\n| us per write at {cold['rate']}/s | at {warm['rate']}/s | times | function |")
    print("|----------------------:|---------:|------:|----------|")
    for name in sorted(per_write[0], key=per_write[0].get, reverse=True)[:SHOWN]:
        first, second = per_write[0][name], per_write[1].get(name, 0.0)
        times = f"{first / second:.1f}" if second else "-"
        print(f"| {first:>21.2f} | {second:>8.2f} | {times:>5} | `{name}` |")
    libraries = [collections.Counter(), collections.Counter()]
    for of, functions in zip(libraries, per_write):
        for name, us in functions.items():
            of[name.rsplit("(", 1)[-1].rstrip(")")] += us
    print("\n| us per write | warm | times | of |")
    print("|-------------:|-----:|------:|----|")
    for name, us in libraries[0].most_common(8):
        second = libraries[1][name]
        print(f"| {us:>12.1f} | {second:>4.1f} | {us / second if second else float('nan'):>5.1f} | {name} |")


if __name__ == "__main__":
    main()
