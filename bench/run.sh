#!/usr/bin/env bash
# All benchmarks, side by side with what a user would pick instead; prints tables.
#   bench/run.sh [supervise|db|bot|restart|placement|hub|failover]…
# Installs what it compares with: runit and redis-server (Debian), supervisor (PyPI), pm2, discord.js and
# discord-hybrid-sharding (npm). failover needs root and etcd: its hosts are network namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
tools=$(cd "$target" && pwd)/bench-tools

if ! command -v runsvdir >/dev/null || ! command -v redis-server >/dev/null || ! command -v etcd >/dev/null || ! command -v nft >/dev/null; then
  # A policy that refuses keeps the packages from starting daemons.
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 0755 /usr/sbin/policy-rc.d; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends runit redis-server redis-tools etcd-server nftables iproute2 >/dev/null
fi
[ -x "$tools/python/bin/supervisord" ] || {
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" -q install supervisor
}
[ -x "$tools/node/node_modules/.bin/pm2" ] || npm install --silent --no-audit --no-fund --prefix "$tools/node" pm2 >/dev/null
[ -d "$tools/node/node_modules/discord-hybrid-sharding" ] ||
  npm install --silent --no-audit --no-fund --prefix "$tools/node" discord.js@14.28.1 discord-hybrid-sharding@3.0.1 >/dev/null
export PATH=$tools/python/bin:$tools/node/node_modules/.bin:$PATH

cargo build --release --locked --bins
binaries=$target/release
for part in "${@:-supervise db bot restart placement hub failover}"; do
  for name in $part; do
    printf '\n## %s\n\n' "$name"
    more=()
    [ "$name" != restart ] || more=(--modules "$tools/node")
    "bench/$name/run.py" --binaries "$binaries" "${more[@]}"
  done
done
