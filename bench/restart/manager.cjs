// Runs bot.cjs under ShardingManager or discord-hybrid-sharding, restarts all of it by the library's own
// means when a line comes on stdin, and says on stdout how far it is.
//   manager.cjs djs|hybrid
// Lines on stdin: `restart` (respawnAll with the library's defaults), `switch` (re-clustering, hybrid only).
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const { createRequire } = require('node:module');

const load = createRequire(process.env.BENCH_MODULES);
const kind = process.argv[2];
process.env.BENCH_KIND = kind;

const tell = (event, more = {}) => process.stdout.write(`${JSON.stringify({ event, ...more })}\n`);
const token = fs.readFileSync(process.env.BENCH_TOKEN_FILE, 'utf8').trim();
const bot = path.join(__dirname, 'bot.cjs');
const totalShards = Number(process.env.BENCH_SHARDS);
const shardsPerClusters = Number(process.env.BENCH_PER_PROCESS);

let manager;
if (kind === 'hybrid') {
  const { ClusterManager, ReClusterManager } = load('discord-hybrid-sharding');
  manager = new ClusterManager(bot, { totalShards, shardsPerClusters, mode: 'process', token });
  manager.extend(new ReClusterManager());
} else {
  const { ShardingManager } = load('discord.js');
  manager = new ShardingManager(bot, { totalShards, token });
}

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
  try {
    if (line === 'restart') await manager.respawnAll();
    else await manager.recluster.start({ restartMode: 'gracefulSwitch', totalShards, shardsPerClusters });
    tell('restarted');
  } catch (error) {
    tell('error', { what: String(error) });
  }
});
process.on('unhandledRejection', (error) => tell('error', { what: String(error) }));
process.stdin.on('end', () => process.exit(0));

// The first start is not what is measured: as fast as the buckets of IDENTIFYs allow.
manager.spawn({ delay: Number(process.env.BENCH_SPAWN_DELAY_MS), timeout: 120_000 }).then(
  () => tell('started'),
  (error) => tell('error', { what: String(error) }),
);
