#!/usr/bin/env python3
"""The bot by itself: memory when idle, and how much of a core 10,000 events a second through one process
take, as counted by the simulated Discord it is connected to.

    bench/bot/run.py [--events 10000] [--seconds 10] [--guilds 1000]
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent


def wait_for(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
    return found


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--guilds", type=int, default=1_000)
    parser.add_argument("--binaries", type=Path, default=HERE.parent.parent / "target/release")
    arguments = parser.parse_args()

    def measure(root, guilds, events):
        info = root / "simcord.json"
        token = root / "token"
        discord = subprocess.Popen(
            [arguments.binaries / "simcord", "--listen", "127.0.0.1:0", "--info-file", info, "--guilds", str(guilds),
             "--token-file", token, "--events-per-second", "0", "--interactions-per-second", "0"],
            stderr=(root / "simcord.log").open("w"),
        )
        bot = None
        try:
            wait_for("simcord", info.exists)
            found = json.loads(info.read_text())

            def call(path, body=None):
                request = urllib.request.Request(found["http"] + path, method="POST" if body else "GET")
                request.add_header("content-type", "application/json")
                data = json.dumps(body).encode() if body else None
                with urllib.request.urlopen(request, data, timeout=10) as answer:
                    return json.loads(answer.read() or b"null")

            env = {key: value for key, value in os.environ.items() if not key.startswith("TANAKO_")}
            env |= {
                "TANAKO_TOKEN_FILE": str(token), "TANAKO_API_URL": found["http"],
                "TANAKO_GATEWAY_URL": found["gateway"], "SHARD_IDS": "0", "SHARD_COUNT": "1",
            }
            bot = subprocess.Popen([arguments.binaries / "tanako-bot"], env=env, stderr=(root / "bot.log").open("w"))
            wait_for("the session", lambda: call("/_sim/account")["sessions_open"] == 1)
            time.sleep(5)
            idle = rss_mb(bot.pid)
            result = {"idle_rss_mb": idle}
            if events:
                # Not every event is one that the bot's intents ask for: find the rate that delivers as many.
                asked = events
                for _ in range(2):
                    call("/_sim/rates", {"events_per_second": asked})
                    time.sleep(2)
                    before, at = call("/_sim/account")["events_sent"], time.monotonic()
                    time.sleep(2)
                    delivered = (call("/_sim/account")["events_sent"] - before) / (time.monotonic() - at)
                    asked = round(asked * events / max(delivered, 1))
                call("/_sim/rates", {"events_per_second": asked})
                time.sleep(2)
                sent, cpu, other, at = call("/_sim/account")["events_sent"], cpu_s(bot.pid), cpu_s(discord.pid), time.monotonic()
                time.sleep(arguments.seconds)
                took = time.monotonic() - at
                result["events_per_s"] = (call("/_sim/account")["events_sent"] - sent) / took
                result["bot_cpu_percent"] = 100 * (cpu_s(bot.pid) - cpu) / took
                result["simcord_cpu_percent"] = 100 * (cpu_s(discord.pid) - other) / took
                result["busy_rss_mb"] = rss_mb(bot.pid)
                call("/_sim/rates", {"events_per_second": 1})
                time.sleep(2)
                result["events_lost"] = call("/_sim/account").get("events_lost")
            return result
        finally:
            for process in (bot, discord):
                if process:
                    process.terminate()
                    process.wait()

    results = []
    for guilds, events in [(0, 0), (arguments.guilds, arguments.events)]:
        with tempfile.TemporaryDirectory(prefix="tanako-bench-bot-") as folder:
            results.append(measure(Path(folder), guilds, events))
    empty, busy = results
    print("| | |\n|---|---|")
    print(f"|RSS, connected, no guilds|{empty['idle_rss_mb']:.1f} MB|")
    print(f"|RSS, connected, {arguments.guilds} guilds|{busy['idle_rss_mb']:.1f} MB|")
    print(f"|events through one process|{busy['events_per_s']:,.0f}/s|")
    print(f"|CPU of the bot|{busy['bot_cpu_percent']:.0f} % of a core (simcord: {busy['simcord_cpu_percent']:.0f} %)|")
    print(f"|RSS at that rate|{busy['busy_rss_mb']:.1f} MB|")
    print(f"|events lost|{busy['events_lost']}|")


if __name__ == "__main__":
    main()
