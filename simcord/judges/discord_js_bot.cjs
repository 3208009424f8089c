// A discord.js bot that judges simcord: connects, answers /judge and /quick, resumes.
// Tells what it sees as one JSON object per line on stdout.
'use strict';

const fs = require('node:fs');
const { createRequire } = require('node:module');

// The packages are installed in a cache, not beside this file.
const {
  ApplicationCommandOptionType, Client, Events, GatewayIntentBits, PermissionFlagsBits,
} = createRequire(process.env.JUDGE_MODULES)('discord.js');

const tell = (event, fields = {}) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);

const client = new Client({
  intents: Object.values(GatewayIntentBits).filter((bit) => typeof bit === 'number'),
  shards: [0, 1],
  shardCount: 2,
  rest: { api: `${process.env.SIMCORD_HTTP}/api` },
});
const seen = new Set();
let duplicates = 0;

client.on(Events.ClientReady, async () => {
  const commands = await client.application.commands.set([
    {
      name: 'judge',
      description: 'Answers with what it was given',
      options: [
        { type: ApplicationCommandOptionType.User, name: 'who', description: 'whom', required: true },
        { type: ApplicationCommandOptionType.String, name: 'reason', description: 'why', required: true },
      ],
    },
    { name: 'quick', description: 'Answers at once' },
  ]);
  tell('registered', { commands: commands.map((command) => command.name).sort() });
  const right = client.guilds.cache.every((guild) => guild.available && guild.members.me);
  tell('ready', { guilds: client.guilds.cache.size, user: client.user.id, right });
});

client.on(Events.InteractionCreate, async (interaction) => {
  if (interaction.commandName === 'quick') {
    await interaction.reply('quick');
    const original = await interaction.fetchReply();
    tell('quick', { content: original.content });
    return;
  }
  await interaction.deferReply();
  const who = interaction.options.getMember('who');
  const reason = interaction.options.getString('reason');
  await interaction.editReply(`${who.id} ${reason} ${interaction.guildId}`);
  await interaction.followUp('and once more');
  tell('answered', {
    who: who.id,
    reason,
    guild: interaction.guildId,
    admin: interaction.memberPermissions.has(PermissionFlagsBits.Administrator),
  });
});

client.on(Events.MessageCreate, async (message) => {
  if (message.content === 'report') {
    tell('report', { messages: seen.size, duplicates });
  } else if (message.content === 'ask') {
    const owner = await message.guild.members.fetch({ user: message.guild.ownerId, force: true });
    const sent = await message.channel.send(`${owner.id} owns ${message.guild.name}`);
    await sent.edit('changed');
    tell('asked', { owner: owner.id, guild: message.guild.id });
  } else if (message.author.id !== client.user.id) {
    if (seen.has(message.id)) duplicates += 1;
    seen.add(message.id);
  }
});

client.on(Events.ShardResume, (shard, replayed) => tell('resumed', { shard, replayed }));
client.on(Events.Error, (error) => tell('error', { what: String(error) }));
process.on('unhandledRejection', (error) => tell('error', { what: String(error) }));
process.on('SIGTERM', () => process.exit(0));

client.login(fs.readFileSync(process.env.SIMCORD_TOKEN_FILE, 'utf8').trim());
