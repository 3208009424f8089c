#!/usr/bin/env python3
"""The guild database against what it replaces, in one run: durable single-row inserts and cached reads
over the WebSocket with 64 connections, on an empty table and on one of a million rows; a Redis GET and a
Redis SET with a sync per write by as many connections beside them.

    bench/db/run.py [--rows 1000000] [--seconds 5] [--rounds 3]

Needs redis-server (Debian) and the release binaries (cargo build --release).
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONNECTIONS = 64
ORIGINAL_INSERTS_PER_S = 430  # the original server on an empty table; 46/s at 2,400 rows


def wait_for(what, condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(pid):
    """Waits until the node has put the bulk load behind it: what is measured is the size of the table."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        before = cpu_s(pid)
        time.sleep(1)
        if cpu_s(pid) - before < 0.05:
            return
    raise TimeoutError("the node does not come to rest")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binaries", type=Path, default=HERE.parent.parent / "target/release")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tanako-bench-db-") as folder:
        root = Path(folder)
        token = root / "token"
        token.write_text("bench-token-of-the-database\n")
        token.chmod(0o600)
        info = root / "info.json"
        node = subprocess.Popen(
            [
                arguments.binaries / "tanako-db", "--name", "node1", "--data-dir", root / "data",
                "--listen", "127.0.0.1:0", "--token-file", token, "--backup-dir", root / "backups",
                "--info-file", info,
            ],
            stderr=(root / "db.log").open("w"),
        )
        port = free_port()
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--appendonly", "yes",
             "--appendfsync", "always", "--dir", root],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for("the node", info.exists)
            wait_for("redis", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            found = json.loads(info.read_text())
            url = found.get("url") or f"ws://{found['listen']}"

            def load(work, **more):
                options = [f"--{key}={value}" for key, value in more.items()]
                done = subprocess.run(
                    [arguments.binaries / "bench-db-load", "--url", url, "--token-file", token,
                     f"--connections={CONNECTIONS}", f"--seconds={arguments.seconds}", *options, work],
                    capture_output=True, text=True, check=False,
                )
                if done.returncode:
                    raise RuntimeError(done.stderr + (root / "db.log").read_text()[-2000:])
                print(work, done.stdout.strip(), file=sys.stderr)
                return json.loads(done.stdout)["per_s"]

            def redis_per_s(command):
                done = subprocess.run(
                    ["redis-benchmark", "-p", str(port), "-c", str(CONNECTIONS), "-n", "200000", "-d", "200",
                     "-r", "1000", "-t", command, "--csv"],
                    capture_output=True, text=True, check=True,
                )
                line = done.stdout.strip().splitlines()[-1]
                print("redis", line, file=sys.stderr)
                return float(re.findall(r'"([^"]*)"', line)[1])

            rows = {"insert, empty table": [], "find_one, cached": [], "redis GET": [], "redis SET, fsync always": []}
            for _ in range(arguments.rounds):
                rows["insert, empty table"].append(load("insert"))
                rows["redis SET, fsync always"].append(redis_per_s("set"))
                rows["find_one, cached"].append(load("read"))
                rows["redis GET"].append(redis_per_s("get"))
            filled = load("fill", rows=arguments.rows)
            settle(node.pid)
            full = f"insert, {arguments.rows:,} rows"
            rows[full] = [load("insert") for _ in range(arguments.rounds)]
            rss = next(
                line.split()[1] for line in Path(f"/proc/{node.pid}/status").read_text().splitlines()
                if line.startswith("VmRSS")
            )
        finally:
            for process in (node, redis):
                process.terminate()
                process.wait()
    medians = {name: statistics.median(values) for name, values in rows.items()}
    empty, cached = medians["insert, empty table"], medians["find_one, cached"]
    print(f"{CONNECTIONS} connections, one request in flight each; medians of {arguments.rounds}\n")
    print("| | per s | ratio |\n|---|---|---|")
    print(f"|insert, empty table|{empty:,.0f}|{empty / ORIGINAL_INSERTS_PER_S:.0f}x the original's {ORIGINAL_INSERTS_PER_S}|")
    print(f"|{full}|{medians[full]:,.0f}|{medians[full] / empty:.2f}x the empty table|")
    print(f"|insert_many of 500, one to {arguments.rows:,} rows|{filled:,.0f} rows||")
    print(f"|redis SET, fsync always|{medians['redis SET, fsync always']:,.0f}|{empty / medians['redis SET, fsync always']:.2f}x is our insert|")
    print(f"|find_one, cached|{cached:,.0f}|{medians['redis GET'] / cached:.2f}x slower than a Redis GET|")
    print(f"|redis GET|{medians['redis GET']:,.0f}||")
    print(f"\nRSS of the node after {arguments.rows:,} rows: {int(rss) / 1000:.0f} MB")


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    main()
