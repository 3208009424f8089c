#!/usr/bin/env python3
"""Supervisors side by side on N children that print a line a second.

    bench/supervise/run.py [--children 1000] [--rounds 3] [--only floor,tanako,…]

Each round runs every supervisor once, one after the other, so that all see the same machine; the table
shows medians, and ratios to the floor of the same run. Needs cc; runit, supervisor (PyPI) and pm2 (npm)
are measured when they are installed (bench/run.sh installs them).
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def wait_for(what, condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.002)
    return found


class Round:
    """One supervisor, one set of children, one directory."""

    name = ""

    def __init__(self, root, child, count):
        self.root, self.child, self.count = root, child, count
        self.events = root / "events"
        self.events.touch()
        self.env = dict(os.environ, BENCH_EVENTS=str(self.events), HOME=str(root))
        self.process = None

    # To be said by each supervisor.
    def prepare(self):
        pass

    def start(self):
        raise NotImplementedError

    def status(self):
        return None

    def stop(self):
        self.process.terminate()

    def clean(self):
        pass

    # The same for all.
    def spawn(self, *command, **more):
        self.process = subprocess.Popen(
            command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more
        )

    def records(self):
        return [tuple(map(int, line.split())) for line in self.events.read_text().splitlines()]

    def begun(self):
        return self.events.stat().st_size and self.events.read_bytes().count(b"\n")

    def children(self):
        return {pid for pid, _ in self.records() if alive(pid)}

    def supervisors(self):
        """Everything that was started for this round and is not a child."""
        mine, children = [], self.children()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in children or int(entry.name) == os.getpid():
                continue
            try:
                if str(self.root).encode() in (entry / "environ").read_bytes():
                    mine.append(int(entry.name))
            except OSError:
                pass
        return mine

    def measure(self):
        result = {}
        self.prepare()
        begin = time.monotonic_ns()
        self.start()
        wait_for("all children", lambda: self.begun() >= self.count)
        result["start_s"] = (max(at for _, at in self.records()) - begin) / 1e9
        time.sleep(3)

        supervisors = self.supervisors()
        before, at = sum(map(cpu_ticks, supervisors)), time.monotonic()
        time.sleep(10)
        ticks = sum(map(cpu_ticks, supervisors)) - before
        result["cpu_percent"] = 100 * ticks / os.sysconf("SC_CLK_TCK") / (time.monotonic() - at)
        result["pss_mb"] = sum(map(pss_bytes, supervisors)) / 1e6

        gaps = []
        for pid in sorted(self.children())[:: max(1, self.count // 40)][:40]:
            known = self.begun()
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            wait_for("a successor", lambda: self.begun() > known, 30)
            gaps.append((self.records()[-1][1] - killed) / 1e6)
            time.sleep(0.01)
        result["restart_p50_ms"] = statistics.median(gaps)
        result["restart_max_ms"] = max(gaps)

        times = []
        for _ in range(7):
            begin = time.monotonic()
            if self.status() is None:
                break
            times.append((time.monotonic() - begin) * 1e3)
        if times:
            result["status_ms"] = statistics.median(times)

        begin = time.monotonic()
        self.stop()
        wait_for("the end of all children", lambda: not self.children(), 300)
        result["stop_s"] = time.monotonic() - begin
        return result

    def end(self):
        try:
            self.clean()
        finally:
            for pid in self.supervisors() + sorted(self.children()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if self.process:
                self.process.wait()

    def output(self, *command):
        done = subprocess.run(command, env=self.env, capture_output=True, check=False)
        if done.returncode not in (0, 3, 10):
            raise RuntimeError(f"{command[0]}: {done.stderr.decode()}{done.stdout.decode()[-500:]}")
        return done.stdout


class Floor(Round):
    name = "floor"

    def prepare(self):
        subprocess.run(["cc", "-O2", "-o", self.root / "floor", HERE / "floor.c"], check=True)
        (self.root / "logs").mkdir()

    def start(self):
        self.spawn(self.root / "floor", str(self.count), self.root / "logs", self.child)


class Tanako(Round):
    name = "tanako"
    binaries = None

    def prepare(self):
        self.env["MALLOC_ARENA_MAX"] = "2"  # as its systemd unit says
        self.spec = self.root / "fleet.toml"
        self.spec.write_text(
            f"""[fleet]
name = "bench"
[bots.b]
command = ["{self.child}"]
shards = {self.count}
worker = false
identifies = false
ready = {{ kind = "started", after = "0s" }}
restart = {{ crash_loop_starts = 1000 }}
env = {{ BENCH_EVENTS = "{self.events}" }}
"""
        )

    def ctl(self, *words):
        return self.output(self.binaries / "tanakoctl", "--socket", self.root / "run/agent.sock", *words)

    def start(self):
        self.spawn(
            self.binaries / "tanako-agent", "--data-dir", self.root / "data", "--run-dir", self.root / "run",
            "--http", "127.0.0.1:0", "--spec", self.spec,
        )

    def status(self):
        return self.ctl("status")

    def stop(self):
        self.ctl("stop", "all", "--yes")


class Runit(Round):
    name = "runit"

    def prepare(self):
        for number in range(self.count):
            service = self.root / "sv" / str(number)
            (service / "log").mkdir(parents=True)
            for path, line in [
                (service / "run", f"exec {self.child}"),
                (service / "log/run", f"exec svlogd {service}/log"),
            ]:
                path.write_text(f"#!/bin/sh\n{line}\n")
                path.chmod(0o755)

    def start(self):
        self.spawn("runsvdir", self.root / "sv")

    def status(self):
        return self.output("sv", "status", *sorted((self.root / "sv").iterdir()))

    def stop(self):
        self.process.send_signal(signal.SIGHUP)

    def clean(self):
        self.process.send_signal(signal.SIGHUP)


class Supervisord(Round):
    name = "supervisord"

    def prepare(self):
        self.config = self.root / "supervisord.conf"
        programs = "".join(
            f"[program:c{n}]\ncommand={self.child}\nstartsecs=0\nautorestart=true\n"
            f"stdout_logfile={self.root}/{n}.log\nredirect_stderr=true\n"
            for n in range(self.count)
        )
        self.config.write_text(
            f"""[supervisord]
nodaemon=true
minfds=8192
logfile={self.root}/supervisord.log
pidfile={self.root}/supervisord.pid
[unix_http_server]
file={self.root}/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{self.root}/s.sock
{programs}"""
        )

    def start(self):
        self.spawn("supervisord", "-c", self.config)

    def status(self):
        return self.output("supervisorctl", "-c", self.config, "status")


class Pm2(Round):
    name = "pm2"

    def prepare(self):
        self.env["PM2_HOME"] = str(self.root / "pm2")
        self.config = self.root / "eco.json"
        apps = [
            {"name": f"c{n}", "script": str(self.child), "interpreter": "none", "exec_mode": "fork"}
            for n in range(self.count)
        ]
        self.config.write_text(json.dumps({"apps": apps}))

    def start(self):
        self.spawn("pm2", "start", self.config)

    def status(self):
        return self.output("pm2", "jlist")

    def stop(self):
        subprocess.run(["pm2", "kill"], env=self.env, capture_output=True, check=False)

    clean = stop


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_ticks(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except OSError:
        return 0


def pss_bytes(pid):
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


COLUMNS = [
    ("start_s", "start all, s", True),
    ("restart_p50_ms", "kill -9 to new main(), p50 ms", True),
    ("restart_max_ms", "max ms", False),
    ("pss_mb", "PSS, MB", False),
    ("cpu_percent", "CPU, % of a core", False),
    ("status_ms", "status, ms", False),
    ("stop_s", "stop all, s", True),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="floor,tanako,runit,supervisord,pm2")
    parser.add_argument("--binaries", type=Path, default=HERE.parent.parent / "target/release")
    arguments = parser.parse_args()
    Tanako.binaries = arguments.binaries.resolve()
    needed = {"runit": "runsvdir", "supervisord": "supervisord", "pm2": "pm2"}
    kinds = []
    for kind in (Floor, Tanako, Runit, Supervisord, Pm2):
        if kind.name not in arguments.only.split(","):
            continue
        if kind.name in needed and not shutil.which(needed[kind.name]):
            print(f"{kind.name}: not installed, left out", file=sys.stderr)
            continue
        kinds.append(kind)

    results = {kind.name: [] for kind in kinds}
    # All directories go at the end: ext4 is slow to make files for some seconds after many were deleted,
    # and whoever came next would pay for the one before.
    with tempfile.TemporaryDirectory(prefix="tanako-bench-") as folder:
        for number in range(arguments.rounds):
            for kind in kinds:
                root = Path(folder) / f"{number}{kind.name[0]}"
                root.mkdir()
                child = root / "bench-child"
                subprocess.run(["cc", "-O2", "-o", child, HERE / "child.c"], check=True)
                one = kind(root, child, arguments.children)
                try:
                    found = one.measure()
                finally:
                    one.end()
                print(f"round {number + 1} {kind.name}: {json.dumps(found)}", file=sys.stderr)
                results[kind.name].append(found)

    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    print(f"{arguments.children} children, {arguments.rounds} rounds, medians; in brackets: x floor\n")
    print("| |" + "|".join(kind.name for kind in kinds) + "|")
    print("|---|" + "---|" * len(kinds))
    for key, title, ratio in COLUMNS:
        cells = []
        for kind in kinds:
            value = medians[kind.name].get(key)
            if value is None:
                cells.append("-")
                continue
            text = f"{value:.3g}"
            floor = medians.get("floor", {}).get(key)
            if ratio and floor and kind.name != "floor":
                text += f" ({value / floor:.2f})"
            cells.append(text)
        print(f"|{title}|" + "|".join(cells) + "|")


if __name__ == "__main__":
    main()
