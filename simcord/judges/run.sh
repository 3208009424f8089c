#!/usr/bin/env bash
# Runs the independent clients against simcord. Needs python3 and node with npm; installs discord.py and
# discord.js once into a cache.
#
#   SIMCORD_BIN    the binary to judge            (default: built by cargo)
#   JUDGES_CACHE   where the clients are installed (default: judges/ in cargo's target directory)
#   JUDGES         which judges to hear            (default: "discord.py discord.py-zlib discord.js")
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
cache=${JUDGES_CACHE:-$target/judges}
judges=${JUDGES:-discord.py discord.py-zlib discord.js}

for tool in python3 node npm; do
    if ! command -v "$tool" >/dev/null; then
        echo "run.sh: $tool is not installed; the judges need python3 (with venv), node and npm" >&2
        exit 1
    fi
done

binary=${SIMCORD_BIN:-}
if [ -z "$binary" ]; then
    (cd "$root" && cargo build --quiet -p simcord)
    binary=$target/debug/simcord
fi
if [ ! -x "$binary" ]; then
    echo "run.sh: $binary is not there; set SIMCORD_BIN to a simcord binary" >&2
    exit 1
fi

# Installs into a fresh directory and renames it, so that an interrupted installation is not taken for a whole one.
# Its name carries what was asked for: a changed pin is installed anew.
install_python() {
    python_dir=$cache/python-$(cksum <"$here/requirements.txt" | tr ' ' '-')
    [ -e "$python_dir/.done" ] && return
    rm -rf "$python_dir"
    mkdir -p "$cache"
    # A virtual environment cannot be moved: it is marked as whole instead.
    python3 -m venv "$python_dir"
    "$python_dir/bin/pip" --quiet --disable-pip-version-check install -r "$here/requirements.txt"
    touch "$python_dir/.done"
}

install_node() {
    node_dir=$cache/node-$(cksum <"$here/package.json" | tr ' ' '-')
    [ -e "$node_dir/.done" ] && return
    rm -rf "$node_dir"
    mkdir -p "$node_dir"
    cp "$here/package.json" "$here/.npmrc" "$node_dir/"
    (cd "$node_dir" && npm install --silent --no-audit --no-fund)
    touch "$node_dir/.done"
}

# Hears one judge. Whoever ends this script ends the judge with it.
hear() {
    python3 "$here/judge.py" "$binary" "$@" &
    pid=$!
    wait "$pid" || failed=1
    pid=
}

failed=0
pid=
trap '[ -z "$pid" ] || kill "$pid"; exit 143' TERM INT
for judge in $judges; do
    case $judge in
    discord.py | discord.py-zlib)
        install_python
        compression=zstd
        [ "$judge" = discord.py ] || compression=zlib
        export JUDGE_COMPRESSION=$compression
        hear "$judge" "$python_dir/bin/python" "$here/discord_py_bot.py"
        unset JUDGE_COMPRESSION
        ;;
    discord.js)
        install_node
        export JUDGE_MODULES=$node_dir/package.json
        hear "$judge" node "$here/discord_js_bot.cjs"
        ;;
    *)
        echo "run.sh: no judge called $judge; there are discord.py, discord.py-zlib and discord.js" >&2
        exit 2
        ;;
    esac
done
exit "$failed"
