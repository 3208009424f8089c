#!/usr/bin/env bash
# Everything that must hold, from nothing: installs what it needs, then formats, lints, documents,
# licences, unit and whole-fleet tests, and the independent judges of simcord.
#
#   ./test.sh            all of it
#   ./test.sh quick      no judges, no whole-fleet tests
#
# The simulator runs two thousand seeds. TANAKO_SIM_SEEDS=100000 runs more, TANAKO_SIM_SEED=17 replays one:
#   TANAKO_SIM_SEEDS=100000 cargo test -p tanako-e2e --test simulator -- --nocapture
# Property tests draw the same cases each time, so that what was green stays green. To look for new ones:
#   PROPTEST_CASES=100000 PROPTEST_RNG_SEED=$RANDOM cargo test -p tanako-fleet
set -euo pipefail
cd "$(dirname "$0")"

mode=${1:-all}
case $mode in
  all | quick) ;;
  *)
    echo "test.sh: unknown argument '$mode'; use ./test.sh or ./test.sh quick" >&2
    exit 2
    ;;
esac

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} CARGO_INCREMENTAL=0 INSTA_UPDATE=no
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-20261121}
target=${CARGO_TARGET_DIR:-target}
tools=$target/tools
cargo_deny_version=0.20.2

started=$SECONDS
step() { printf '\n== %s (%d s)\n' "$1" "$((SECONDS - started))"; }

# Installs Debian packages whose command is missing: need COMMAND PACKAGE…
need() {
  command -v "$1" >/dev/null 2>&1 && return 0
  shift
  if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "test.sh: please install: $*" >&2
    exit 1
  fi
  [ -n "${apt_updated:-}" ] || apt-get update -qq
  apt_updated=1
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

step "what the tests need"
need cc build-essential
need make build-essential
need tmux tmux
need etcd etcd-server
need ip iproute2
need nft nftables
need openssl openssl
need promtool prometheus
need shellcheck shellcheck
need node nodejs npm
need npm npm
need python3 python3 python3-venv
if ! command -v cargo >/dev/null 2>&1; then
  echo "test.sh: no cargo; install Rust with rustup, then run this again (rust-toolchain.toml names the version)" >&2
  exit 1
fi

step "formats and scripts"
cargo fmt --all --check
mapfile -t scripts < <(git ls-files -co --exclude-standard | grep -E '(\.sh|^\.ci/run)$')
shellcheck "${scripts[@]}"

step "alerts"
promtool check rules dashboards/rules/tanako.yml
promtool test rules dashboards/rules/tests.yml

step "lints"
cargo clippy --workspace --all-targets --locked -- -D warnings

step "licences, bans, sources"
if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -q "$cargo_deny_version"; then
  cargo install cargo-deny --quiet --version "$cargo_deny_version" --locked --root "$tools"
fi
"$tools/bin/cargo-deny" check --hide-inclusion-graph bans licenses sources
if timeout 120 "$tools/bin/cargo-deny" fetch db >/dev/null 2>&1; then
  # Reported, not fatal: an advisory published today must not turn yesterday's commit red.
  "$tools/bin/cargo-deny" --offline check advisories || echo "advisories: findings above need a look"
else
  echo "advisories: not checked, the advisory database cannot be reached from here"
fi

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

step "build"
cargo build --workspace --bins --locked --quiet

# Hosts as network namespaces need root.
skip=()
if [ "$(id -u)" != 0 ]; then
  echo "test.sh: not root: the tests on several hosts are left out (run ./test.sh as root for them)" >&2
  skip=(--skip netns::)
fi

step "tests"
if [ "$mode" = quick ]; then
  cargo test --workspace --locked --exclude tanako-e2e
  step "simulator"
  cargo test --locked -p tanako-e2e --test simulator --test simulator_fleet
else
  cargo test --workspace --locked -- "${skip[@]}"
  step "judges of simcord: discord.py and discord.js"
  SIMCORD_BIN=$target/debug/simcord simcord/judges/run.sh
fi

step "all passed"
