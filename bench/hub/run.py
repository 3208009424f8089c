#!/usr/bin/env python3
"""A hub that follows 1,000 simulated agents of 50 processes at 1 Hz, and who watches it.

The agents are one process with a listener and a certificate for each; the hub is the agent's own, in a
process of its own; the monitor is `tanakoctl monitor` in a pseudo-terminal. CPU is CPU time (user and
system) per second of wall time, so that other work on the machine does not count.
"""

import argparse
import fcntl
import json
import os
import pty
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mb(pid, field="VmRSS:"):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return 0.0


def started(command, word):
    """Starts a process and waits until it says the word."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = child.stdout.readline()
    if line.strip() != word:
        child.kill()
        sys.exit(f"{' '.join(command)} did not start: {line!r}")
    return child


class Terminal:
    """`tanakoctl monitor` in a pseudo-terminal of 120x40."""

    def __init__(self, binaries, directory):
        state = os.path.join(directory, "state")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": directory,
            "XDG_CONFIG_HOME": os.path.join(directory, "config"),
            "XDG_STATE_HOME": state,
            "TERM": "xterm-256color",
        }
        self.began = time.monotonic()
        self.painted = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            socket = os.path.join(directory, "hub.sock")
            program = os.path.join(binaries, "tanakoctl")
            os.execve(program, [program, "--socket", socket, "monitor"], env)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.seen = b""

    def read(self, seconds):
        """Reads what is drawn, for that long; notes when the first process was on the screen."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self.fd], [], [], min(left, 0.5))
            if not ready:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                sys.exit(f"the monitor ended: {self.seen[-2000:]!r}")
            if self.painted is None:
                self.seen += data
                if b"tanako/" in self.seen:
                    self.painted = time.monotonic() - self.began

    def close(self):
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", required=True)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=30)
    args = parser.parse_args()
    binaries = os.path.abspath(args.binaries)
    load = os.path.join(binaries, "bench-hub-load")
    size = ["--hosts", str(args.hosts), "--processes", str(args.processes)]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    children = []
    with tempfile.TemporaryDirectory(prefix="tanako-hub-") as directory:
        try:
            hosts = started([load, "hosts", "--dir", directory, *size], "listening")
            children.append(hosts)
            hub = started([load, "hub", "--dir", directory, *size], "serving")
            children.append(hub)
            probe = [load, "probe", "--dir", directory, "--seconds"]

            def watch(seconds):
                out = subprocess.run([*probe, str(seconds)], stdout=subprocess.PIPE, check=True)
                return json.loads(out.stdout)

            # Nobody has asked yet: the hub connects to all hosts now.
            cold = watch(15)
            warm = watch(3)
            monitor = Terminal(binaries, directory)
            monitor.read(5)
            before = [cpu_s(pid) for pid in (hub.pid, monitor.pid, hosts.pid)]
            began = time.monotonic()
            monitor.read(args.seconds)
            wall = time.monotonic() - began
            used = [
                (now - then) / wall * 100
                for now, then in zip(
                    [cpu_s(pid) for pid in (hub.pid, monitor.pid, hosts.pid)], before
                )
            ]
            rss = [memory_mb(pid) for pid in (hub.pid, monitor.pid)]
            painted = monitor.painted
            monitor.close()
            lag = watch(args.seconds)
            rows = [
                ("processes", f"{lag['processes']:,}"),
                ("updates a second", f"{lag['updates_per_s']:,.0f}"),
                ("CPU of the hub, % of a core", f"{used[0]:.1f}"),
                ("CPU of the monitor, % of a core", f"{used[1]:.1f}"),
                ("(CPU of the simulated agents)", f"{used[2]:.1f}"),
                ("RSS of the hub, MB", f"{rss[0]:.0f}"),
                ("RSS of the monitor, MB", f"{rss[1]:.0f}"),
                ("first paint of the monitor, ms", f"{(painted or 0) * 1000:.0f}"),
                ("first part for a watcher, ms", f"{warm['first_ms']}"),
                ("everything for a watcher, ms", f"{warm['whole_ms']}"),
                ("first part, nobody asked before, ms", f"{cold['first_ms']}"),
                ("lag p50 / p99, ms", f"{lag['lag_p50_ms']} / {lag['lag_p99_ms']}"),
            ]
            print("| | |\n|---|---|")
            for name, value in rows:
                print(f"|{name}|{value}|")
        finally:
            for child in children:
                child.kill()
                child.wait()


if __name__ == "__main__":
    main()
