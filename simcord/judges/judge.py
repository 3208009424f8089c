"""Puts simcord before independent clients and holds both to account.

usage: judge.py SIMCORD NAME COMMAND...

Starts simcord and the bot that COMMAND runs, breaks the bot's connections in every resumable way while events
flow, and demands that nothing was missed, nothing came twice and nothing was identified again. Leaves nothing
running.
"""

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

GUILDS = 60
SHARDS = 2
DEADLINE_S = 90


class Failed(Exception):
    pass


def until(what, probe):
    """Waits for a probe to give something, and gives it."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.05)
    raise Failed(f"not within {DEADLINE_S} s: {what}")


def demand(what, got, wanted):
    if got != wanted:
        raise Failed(f"{what}: {got!r}, but must be {wanted!r}")
    print(f"  ok: {what}: {got!r}")


class Simcord:
    def __init__(self, binary, directory):
        info = directory / "info.json"
        self.token_file = directory / "token"
        self.process = subprocess.Popen(
            [binary, "--listen", "127.0.0.1:0", "--info-file", info, "--token-file", self.token_file,
             "--guilds", str(GUILDS), "--max-concurrency", "16", "--seed", "42",
             "--heartbeat-interval", "10s", "--answer-within", "60s"])
        try:
            until("simcord serves", lambda: info.exists() or self.exited())
            self.info = json.loads(info.read_text(encoding="utf-8"))
        except BaseException:
            self.process.kill()
            raise

    def exited(self):
        if self.process.poll() is not None:
            raise Failed(f"simcord exited with {self.process.returncode}")

    def get(self, path):
        with urllib.request.urlopen(self.info["http"] + "/_sim" + path, timeout=DEADLINE_S) as response:
            return json.load(response)

    def post(self, path, **body):
        request = urllib.request.Request(
            self.info["http"] + "/_sim" + path, json.dumps(body).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise Failed(f"{path}: {error.read().decode()}") from error
        return json.loads(text) if text else None

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise Failed(f"simcord did not stop within {DEADLINE_S} s of SIGTERM") from None
        return self.process.returncode


class Bot:
    """The bot and what it has told."""

    def __init__(self, command, simcord, log):
        environment = {
            **os.environ, "SIMCORD_HTTP": simcord.info["http"], "SIMCORD_GATEWAY": simcord.info["gateway"],
            "SIMCORD_TOKEN_FILE": str(simcord.token_file),
        }
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8")
        self.told = queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.told.put(json.loads(line))
        self.told.put({"event": "exit"})

    def wait(self, event):
        """The next thing told under this name; others are passed over."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                told = self.told.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"the bot did not tell `{event}` within {DEADLINE_S} s") from None
            if told["event"] == event:
                return told
            if told["event"] in ("error", "exit"):
                raise Failed(f"the bot told {told} while `{event}` was awaited")

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def message(guild, content):
    """A message of somebody, as an event's body."""
    return {
        "id": str(time.time_ns()), "channel_id": guild["channel"], "content": content, "type": 0, "flags": 0,
        "author": {"id": guild["owner"], "username": "owner", "discriminator": "0", "avatar": None,
                   "global_name": None},
        "timestamp": "2026-01-01T00:00:00.000000+00:00", "edited_timestamp": None, "tts": False,
        "mention_everyone": False, "mentions": [], "mention_roles": [], "attachments": [], "embeds": [],
        "pinned": False, "components": [],
    }


def rest(simcord, path):
    token = simcord.token_file.read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        simcord.info["http"] + "/api/v10" + path, headers={"Authorization": "Bot " + token})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        return json.load(response)


def let_events_flow(simcord):
    wanted = simcord.get("/account")["events_generated"] + 50
    until("events flow", lambda: simcord.get("/account")["events_generated"] >= wanted)


def judge(simcord, bot):
    demand("commands registered", bot.wait("registered")["commands"], ["judge", "quick"])
    wanted = os.environ.get("JUDGE_COMPRESSION")
    if wanted:
        demand("compression", bot.wait("connected")["compression"], wanted + "-stream")
    ready = bot.wait("ready")
    demand("guilds received", ready["guilds"], GUILDS)
    demand("guilds complete", ready["right"], True)
    demand("the bot knows itself", ready["user"], simcord.info["application_id"])

    guild_id = simcord.get("/guilds?limit=1")["guilds"][0]
    guild = rest(simcord, f"/guilds/{guild_id}")
    place = {"owner": guild["owner_id"], "channel": guild["system_channel_id"]}

    sent = simcord.post("/interactions", command="judge", guild_id=guild_id,
                        options={"who": guild["owner_id"], "reason": "because"})
    told = bot.wait("answered")
    demand("option values", (told["who"], told["reason"], told["guild"], told["admin"]),
           (guild["owner_id"], "because", guild_id, True))
    record = simcord.get("/interactions/" + sent["id"])
    demand("the answer's text", record["message"]["content"], f"{guild['owner_id']} because {guild_id}")
    demand("the answer was deferred", record["callback_type"], 5)
    simcord.post("/interactions", command="quick", guild_id=guild_id)
    demand("an answer at once", bot.wait("quick")["content"], "quick")
    simcord.post("/events", type="MESSAGE_CREATE", guild_id=guild_id, data=message(place, "ask"))
    demand("REST for members and messages", bot.wait("asked")["owner"], guild["owner_id"])

    # From here on events flow; what the bot counts must be what was generated.
    simcord.post("/rates", events_per_second=100)
    for number, (name, path, body) in enumerate([
        ("opcode 7", "/faults/reconnect", {}),
        ("close 4000", "/faults/close", {"code": 4000}),
        ("a dropped connection", "/faults/drop", {}),
    ], 1):
        let_events_flow(simcord)
        if path == "/faults/drop":
            # What comes while nothing is sent any more must come by the replay.
            simcord.post("/faults/silence", all=True)
            let_events_flow(simcord)
        demand(f"connections hit by {name}", simcord.post(path, all=True, **body)["affected"], SHARDS)
        resumed = sorted(bot.wait("resumed")["shard"] for _ in range(SHARDS))
        demand(f"shards resumed after {name}", resumed, list(range(SHARDS)))
        until("all are connected", lambda: simcord.get("/account")["sessions_open"] == SHARDS)
        demand("resumes so far", simcord.get("/account")["resumes"], number * SHARDS)
    simcord.post("/rates", events_per_second=0)
    generated = simcord.get("/account")["generated_by_type"]["MESSAGE_CREATE"]
    # Otherwise the other shard's last messages may come after the report.
    until("everything is proven", lambda: simcord.get("/account")["events_unproven"] == 0)
    simcord.post("/events", type="MESSAGE_CREATE", guild_id=guild_id, data=message(place, "report"))
    told = bot.wait("report")
    demand("messages received", told["messages"], generated)
    demand("messages received twice", told["duplicates"], 0)

    until("the report is proven", lambda: simcord.get("/account")["events_unproven"] == 0)
    account = simcord.get("/account")
    for name, wanted in [("identifies", SHARDS), ("identifies_refused", 0), ("resumes_refused", 0),
                         ("sessions_voided", 0), ("events_lost", 0), ("events_evicted", 0)]:
        demand(name, account[name], wanted)
    interactions = account["interactions"]
    demand("interactions", [interactions[name] for name in ("sent", "answered", "answered_twice", "late")],
           [2, 2, 0, 0])
    demand("invalid requests", account["rest"]["invalid_requests"], 0)

    demand("events were replayed", account["events_replayed"] > 0, True)

    # A session ends for good: only then a new IDENTIFY is right.
    simcord.post("/faults/invalid-session", shard=1)
    until("the voided session was replaced", lambda: simcord.get("/account")["identifies"] == SHARDS + 1)
    until("it is open", lambda: simcord.get("/account")["sessions_open"] == SHARDS)
    times = [entry["at_ms"] for entry in simcord.get("/identifies") if entry["bucket"] == 1]
    demand("IDENTIFYs of one bucket are 5 s apart",
           all(later - earlier >= 5000 for earlier, later in zip(times, times[1:])), True)


def main():
    binary, name, *command = sys.argv[1:]
    # Whoever ends this ends the bot and simcord with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{name}:")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        log_path = directory / "bot.log"
        simcord = Simcord(binary, directory)
        bot = None
        try:
            with open(log_path, "w", encoding="utf-8") as log:
                bot = Bot(command, simcord, log)
            judge(simcord, bot)
        except (Failed, OSError) as error:
            print(f"  FAILED: {error}", file=sys.stderr)
            print(log_path.read_text(encoding="utf-8")[-4000:], file=sys.stderr)
            print(json.dumps(simcord.get("/account"), indent=1) if simcord.process.poll() is None else "",
                  file=sys.stderr)
            return 1
        finally:
            if bot:
                bot.stop()
            code = simcord.stop()
    demand("simcord's exit code after SIGTERM", code, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
