#!/usr/bin/env python3
"""A whole fleet restarted under load, side by side: Tanako, discord.js's ShardingManager and
discord-hybrid-sharding, each in turn on the same simulated Discord.

    bench/restart/run.py [--guilds 50000] [--shards 64] [--per-process 4] [--events 2000] [--only tanako,djs,…] [--at-once]

Each restarts by its own means and defaults: `tanakoctl restart`, `respawnAll()`, and for
discord-hybrid-sharding also its re-clustering (`gracefulSwitch`). The simulated Discord is looked at every
20 ms: the gap of a shard is the time without a connected session of it. With --at-once the libraries
restart at the same time, each with a Discord of its own: they wait most of the time, and it saves a quarter
of an hour. The packages are found in --modules (bench/run.sh installs them).
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOOK_S = 0.02


def wait_for(what, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


class Discord:
    """The simulated Discord of one contender."""

    def __init__(self, root, a):
        self.token = root / "token"
        info = root / "simcord.json"
        self.process = subprocess.Popen(
            [a.binaries / "simcord", "--listen", "127.0.0.1:0", "--info-file", info, "--token-file", self.token,
             "--guilds", str(a.guilds), "--max-concurrency", str(a.max_concurrency), "--heartbeat-interval", "5s"],
            stderr=(root / "simcord.log").open("w"),
        )
        wait_for("simcord", info.exists)
        self.url = json.loads(info.read_text())["http"]

    def call(self, path, body=None):
        request = urllib.request.Request(f"{self.url}/_sim{path}", method="POST" if body is not None else "GET")
        request.add_header("content-type", "application/json")
        data = json.dumps(body).encode() if body is not None else None
        with urllib.request.urlopen(request, data, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def account(self):
        return self.call("/account")

    def end(self):
        self.process.terminate()
        self.process.wait()


class Looker(threading.Thread):
    """Looks which shards have a connected session, over and over."""

    def __init__(self, discord, shards):
        super().__init__(daemon=True)
        self.discord, self.stop = discord, threading.Event()
        self.since = {}  # uncovered since, by shard
        self.gaps = {shard: 0.0 for shard in range(shards)}

    def run(self):
        while not self.stop.wait(LOOK_S):
            sessions = self.discord.call("/sessions")
            now = time.monotonic()
            covered = {session["shard"][0] for session in sessions if session["connected"]}
            for shard in self.gaps:
                if shard in covered:
                    began = self.since.pop(shard, None)
                    if began is not None:
                        self.gaps[shard] = max(self.gaps[shard], now - began)
                else:
                    self.since.setdefault(shard, now)

    def end(self):
        self.stop.set()
        self.join()
        return sorted(1000 * gap for gap in self.gaps.values())


class Contender:
    name = ""

    def __init__(self, root, discord, a):
        self.root, self.discord, self.a, self.process = root, discord, a, None

    def start(self):
        raise NotImplementedError

    def restart(self):
        raise NotImplementedError

    def missed(self, account):
        raise NotImplementedError

    def more(self):
        return {}

    def end(self):
        pass


class Tanako(Contender):
    name = "tanako"
    title = "Tanako, `tanakoctl restart tanako`"
    unavailable = 1

    def start(self):
        spec = self.root / "fleet.toml"
        spec.write_text(
            f"""[fleet]
name = "bench"
[bots.tanako]
command = ["tanako-bot"]
token_file = "{self.discord.token}"
shards = {self.a.shards}
shards_per_process = {self.a.per_process}
api_url = "{self.discord.url}"
max_concurrency = {self.a.max_concurrency}
"""
        )
        self.process = subprocess.Popen(
            [self.a.binaries / "tanako-agent", "--data-dir", self.root / "data", "--run-dir", self.root / "run",
             "--http", "127.0.0.1:0", "--spec", spec],
            stderr=(self.root / "agent.log").open("w"),
        )

        def ready():
            done = self.ctl("status", "-o", "json")
            return done.returncode == 0 and json.loads(done.stdout)["healthy"]

        wait_for("Tanako's fleet", ready, 300)

    def ctl(self, *words):
        return subprocess.run(
            [self.a.binaries / "tanakoctl", "--socket", self.root / "run/agent.sock", *words],
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )

    def restart(self):
        done = self.ctl("restart", "tanako", "--max-unavailable", str(self.unavailable), "--yes", "--wait", "-o", "json")
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())
        self.receipt = json.loads(done.stdout)["receipt"]

    def missed(self, account):
        return account["events_lost"] + account["events_unrouted"], account["events_replayed_again"]

    def more(self):
        gaps = sorted(shard["gap_ms"] for shard in self.receipt)
        return {"receipt_gap_p50_ms": at(gaps, 0.5), "receipt_gap_p99_ms": at(gaps, 0.99)}

    def end(self):
        self.ctl("stop", "all", "--yes", "--wait")
        if self.process:
            self.process.terminate()
            self.process.wait()


class TanakoFour(Tanako):
    name = "tanako-4"
    title = "Tanako, `--max-unavailable 4`"
    unavailable = 4


class Manager(Contender):
    """ShardingManager or discord-hybrid-sharding, by manager.cjs."""

    kind, order, per_bucket = "", "restart", 1

    def start(self):
        self.seen = self.root / "seen"
        self.seen.mkdir()
        # Both wait so long a shard between processes; a bucket comes round after max_concurrency shards.
        delay = 5500 / self.a.max_concurrency
        env = dict(
            os.environ, BENCH_MODULES=str(self.a.modules / "package.json"), BENCH_HTTP=self.discord.url,
            BENCH_TOKEN_FILE=str(self.discord.token), BENCH_SEEN=str(self.seen), BENCH_SHARDS=str(self.a.shards),
            BENCH_PER_PROCESS=str(self.a.per_process), BENCH_SPAWN_DELAY_MS=str(int(delay)),
        )
        self.process = subprocess.Popen(
            ["node", HERE / "manager.cjs", self.kind], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(self.root / "manager.log").open("w"), text=True,
        )
        self.told("started")

    def told(self, event):
        for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == event:
                return
            if said["event"] == "error":
                raise RuntimeError(f"{self.name}: {said['what']}")
        raise RuntimeError(f"{self.name} ended: {(self.root / 'manager.log').read_text()[-2000:]}")

    def restart(self):
        self.process.stdin.write(f"{self.order}\n")
        self.process.stdin.flush()
        self.told("restarted")

    def missed(self, account):
        """Messages that no process has seen, and those that more than one has."""
        ids, unique = 0, set()
        for file in self.seen.iterdir():
            lines = file.read_text().split()
            ids += len(lines)
            unique.update(lines)
        return account["generated_by_type"].get("MESSAGE_CREATE", 0) - len(unique), ids - len(unique)

    def end(self):
        if self.process:
            # Those whose manager has died are nobody's children any more; their environment names this folder.
            mine = {*children(self.process.pid), *started_for(self.seen)}
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for pid in mine:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


class ShardingManager(Manager):
    name, kind = "djs", "djs"
    title = "discord.js ShardingManager, `respawnAll()`"


class Hybrid(Manager):
    name, kind = "hybrid", "hybrid"
    title = "discord-hybrid-sharding, `respawnAll()`"


class HybridSwitch(Hybrid):
    name, order = "hybrid-switch", "switch"
    title = "discord-hybrid-sharding, re-clustering `gracefulSwitch`"


def children(pid):
    """pids of all descendants."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def started_for(folder):
    """pids of the processes whose environment names a folder."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:
            pass
    return found


def at(values, share):
    return values[min(len(values) - 1, int(len(values) * share))]


def measure(kind, folder, a):
    root = folder / kind.name
    root.mkdir()
    discord = Discord(root, a)
    one = kind(root, discord, a)
    try:
        begun = time.monotonic()
        one.start()
        wait_for("all sessions", lambda: discord.account()["sessions_open"] == a.shards, 300)
        cold = time.monotonic() - begun
        time.sleep(5)
        discord.call("/account/reset", {})
        discord.call("/rates", {"events_per_second": a.events - a.interactions, "interactions_per_second": a.interactions})
        time.sleep(5)

        load = os.getloadavg()[0]
        looker = Looker(discord, a.shards)
        looker.start()
        begun = time.monotonic()
        one.restart()
        wait_for("all sessions again", lambda: discord.account()["sessions_open"] >= a.shards, 120)
        took = time.monotonic() - begun
        time.sleep(2)
        gaps = looker.end()
        discord.call("/rates", {"events_per_second": 0, "interactions_per_second": 0})
        # Commands become too old after 3 s; clients prove with a heartbeat every 5 s.
        time.sleep(12)
        account = discord.account()
        missed, twice = one.missed(account)
        interactions = account["interactions"]
        return {
            "cold_s": cold, "restart_s": took, "gap_p50_ms": at(gaps, 0.5), "gap_p99_ms": at(gaps, 0.99),
            "identifies": account["identifies"] + account["identifies_refused"],
            "identifies_refused": account["identifies_refused"], "events_missed": missed, "events_twice": twice,
            "commands": interactions["sent"] + interactions["unrouted"],
            "commands_unanswered": interactions["unanswered"] + interactions["late"] + interactions["unrouted"],
            "commands_twice": interactions["answered_twice"], "load": load, **one.more(),
        }
    finally:
        one.end()
        discord.end()


def versions(a):
    def said(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr.strip()

    packages = {
        name: json.loads((a.modules / "node_modules" / name / "package.json").read_text())["version"]
        for name in ("discord.js", "discord-hybrid-sharding")
        if (a.modules / "node_modules" / name).is_dir()
    }
    return (
        f"{said(a.binaries / 'tanakoctl', '--version')}; {packages}; node {said('node', '--version')}; "
        f"Linux {platform.release()}, {os.cpu_count()} cores"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guilds", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--per-process", type=int, default=4)
    parser.add_argument("--max-concurrency", type=int, default=16)
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--interactions", type=int, default=20)
    parser.add_argument("--only", default="tanako,tanako-4,djs,hybrid,hybrid-switch")
    parser.add_argument("--at-once", action="store_true")
    parser.add_argument("--binaries", type=Path, default=HERE.parent.parent / "target/release")
    parser.add_argument("--modules", type=Path, default=HERE.parent.parent / "target/bench-tools/node")
    a = parser.parse_args()
    a.binaries, a.modules = a.binaries.resolve(), a.modules.resolve()
    # Whoever ends this ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    kinds = [
        kind for kind in (Tanako, TanakoFour, ShardingManager, Hybrid, HybridSwitch) if kind.name in a.only.split(",")
    ]
    results = []
    with tempfile.TemporaryDirectory(prefix="tanako-bench-restart-") as folder:

        def measured(kind):
            try:
                found = measure(kind, Path(folder), a)
            except (RuntimeError, TimeoutError, OSError) as error:
                # What one of them could not do is said, and does not take the others' results away.
                print(f"{kind.name} failed: {error}", file=sys.stderr)
                return kind, None
            print(f"{kind.name}: {json.dumps(found)}", file=sys.stderr)
            return kind, found

        ours = [kind for kind in kinds if not issubclass(kind, Manager)]
        others = [kind for kind in kinds if issubclass(kind, Manager)]
        results += map(measured, ours)
        with ThreadPoolExecutor(len(others) if others and a.at_once else 1) as pool:
            results += pool.map(measured, others)

    print(
        f"{a.shards} shards, {a.guilds} guilds, max_concurrency {a.max_concurrency}, {a.events} events/s of which "
        f"{a.interactions} slash commands; Tanako and hybrid: {a.per_process} shards a process\n"
    )
    print(versions(a) + "\n")
    results = [(kind, found) for kind, found in results if found]
    ours = next((found for kind, found in results if kind is Tanako), None)
    print(
        "| | fleet restart, s | x Tanako | gap of a shard p50, ms | p99, ms | IDENTIFYs | messages missed "
        "| messages twice | commands unanswered | answered twice | load |"
    )
    print("|---|" + "---|" * 10)
    for kind, found in results:
        ratio = f"{found['restart_s'] / ours['restart_s']:.1f}" if ours else "-"
        cells = [
            f"{found['restart_s']:.1f}", ratio, f"{found['gap_p50_ms']:.0f}", f"{found['gap_p99_ms']:.0f}",
            found["identifies"], found["events_missed"], found["events_twice"],
            f"{found['commands_unanswered']} of {found['commands']}", found["commands_twice"], f"{found['load']:.1f}",
        ]
        print(f"|{kind.title}|" + "|".join(str(cell) for cell in cells) + "|")


if __name__ == "__main__":
    main()
