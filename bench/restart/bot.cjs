// A discord.js bot as its users would write it: one process of ShardingManager or of
// discord-hybrid-sharding. Answers /ping and writes down the id of every message it gets.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');

const load = createRequire(process.env.BENCH_MODULES);
const { Client, Events, GatewayIntentBits, Options } = load('discord.js');

const options = {
  intents: [GatewayIntentBits.Guilds, GatewayIntentBits.GuildMessages],
  rest: { api: `${process.env.BENCH_HTTP}/api` },
  // Messages are not needed after they were seen.
  makeCache: Options.cacheWithLimits({ ...Options.DefaultMakeCacheSettings, MessageManager: 0 }),
};
let client;
if (process.env.BENCH_KIND === 'hybrid') {
  const { ClusterClient, getInfo } = load('discord-hybrid-sharding');
  const { SHARD_LIST, TOTAL_SHARDS } = getInfo();
  client = new Client({ ...options, shards: SHARD_LIST, shardCount: TOTAL_SHARDS });
  client.cluster = new ClusterClient(client);
} else {
  client = new Client(options);
}

// One short write a message, at once: whatever ends this process loses none.
const seen = fs.openSync(path.join(process.env.BENCH_SEEN, `${process.pid}`), 'a');
client.on(Events.Raw, (packet) => {
  if (packet.t === 'MESSAGE_CREATE') fs.writeSync(seen, `${packet.d.id}\n`);
});
client.on(Events.ClientReady, async () => {
  client.cluster?.triggerReady();
  if (!client.ws.shards.has(0)) return;
  await client.application.commands.set([{ name: 'ping', description: 'Answers' }]);
});
client.on(Events.InteractionCreate, (interaction) => {
  interaction.reply('pong').catch(() => {});
});
client.on(Events.Error, () => {});
process.on('unhandledRejection', () => {});

client.login(fs.readFileSync(process.env.BENCH_TOKEN_FILE, 'utf8').trim());
