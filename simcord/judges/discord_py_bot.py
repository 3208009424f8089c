"""A discord.py bot that judges simcord: connects, answers /judge and /quick, resumes.

Tells what it sees as one JSON object per line on stdout.
"""

import json
import os
import sys

# discord.py takes zstd-stream where it can; without the module it takes zlib-stream.
if os.environ.get("JUDGE_COMPRESSION") == "zlib":
    sys.modules["zstandard"] = None

import discord
from discord import app_commands
from discord.gateway import DiscordWebSocket
from yarl import URL

discord.http.Route.BASE = os.environ["SIMCORD_HTTP"] + "/api/v10"
DiscordWebSocket.DEFAULT_GATEWAY = URL(os.environ["SIMCORD_GATEWAY"])


def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


class Judge(discord.AutoShardedClient):
    def __init__(self):
        super().__init__(intents=discord.Intents.all(), shard_count=2, chunk_guilds_at_startup=False)
        self.tree = app_commands.CommandTree(self)
        self.seen = set()
        self.duplicates = 0

    async def setup_hook(self):
        @self.tree.command(name="judge", description="Answers with what it was given")
        async def judge(interaction: discord.Interaction, who: discord.Member, reason: str):
            await interaction.response.defer()
            await interaction.edit_original_response(content=f"{who.id} {reason} {interaction.guild_id}")
            await interaction.followup.send("and once more")
            tell("answered", who=str(who.id), reason=reason, guild=str(interaction.guild_id),
                 admin=interaction.permissions.administrator)

        @self.tree.command(name="quick", description="Answers at once")
        async def quick(interaction: discord.Interaction):
            await interaction.response.send_message("quick")
            original = await interaction.original_response()
            tell("quick", content=original.content)

        commands = await self.tree.sync()
        tell("registered", commands=sorted(command.name for command in commands))

    async def on_ready(self):
        right = all(not guild.unavailable and guild.me is not None for guild in self.guilds)
        tell("connected", compression=discord.utils._ActiveDecompressionContext.COMPRESSION_TYPE)
        tell("ready", guilds=len(self.guilds), user=str(self.user.id), right=right)

    async def on_shard_resumed(self, shard_id):
        tell("resumed", shard=shard_id)

    async def on_message(self, message):
        if message.content == "report":
            tell("report", messages=len(self.seen), duplicates=self.duplicates)
        elif message.content == "ask":
            owner = await message.guild.fetch_member(message.guild.owner_id)
            sent = await message.channel.send(f"{owner.id} owns {message.guild.name}")
            await sent.edit(content="changed")
            tell("asked", owner=str(owner.id), guild=str(message.guild.id))
        elif message.author.id != self.user.id:
            self.duplicates += message.id in self.seen
            self.seen.add(message.id)

    async def on_error(self, event_method, /, *args, **kwargs):
        tell("error", where=event_method, what=repr(sys.exc_info()[1]))


def main():
    with open(os.environ["SIMCORD_TOKEN_FILE"], encoding="utf-8") as file:
        token = file.read().strip()
    Judge().run(token)


if __name__ == "__main__":
    main()
