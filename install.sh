#!/usr/bin/env bash
# Installs Tanako on this machine, or shows it.
#
#   ./install.sh demo [ARGS]   build, start a local fleet against a simulated Discord, show it live;
#                              with --hosts 3 as three hosts on a real etcd, installed when it may be
#   ./install.sh               install binaries, systemd unit, user, directories, completions, man pages
#
# Options of the installation:
#   --prefix DIR     where binaries, completions and man pages go (default /usr/local)
#   --from DIR       take the binaries from DIR instead of building them
#   --join TOKEN     then make this host a member of a fleet; the token comes from
#                    tanakoctl join-token --host NAME (- reads it from standard input)
#   --dry-run        say what would be done and do nothing
#   --uninstall      remove what an installation put there; keeps configuration and data
#   --purge          with --uninstall: remove configuration, data and the user as well
#
# DESTDIR is honoured for packaging: files go below it, and no user is made, no unit started.
set -euo pipefail
cd "$(dirname "$0")"

binaries=(tanakoctl tanako-agent tanako-bot tanako-db simcord)
prefix=/usr/local
from=
dry_run=
uninstall=
purge=
join=

die() {
  echo "install.sh: $1" >&2
  [ -z "${2:-}" ] || echo "  hint: $2" >&2
  exit "${3:-1}"
}

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' install.sh; }

# Builds the release binaries; everything they need is Rust, a C compiler and make.
build() {
  command -v cargo >/dev/null 2>&1 ||
    die "cargo is not installed" "install Rust with rustup; rust-toolchain.toml names the version"
  if ! command -v cc >/dev/null 2>&1 || ! command -v make >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq build-essential >/dev/null
    else
      die "no C compiler (cc) or no make" "apt-get install build-essential"
    fi
  fi
  local profile=${TANAKO_PROFILE:-release} folder
  echo "building the $profile binaries (the first time takes some minutes)" >&2
  local packages=() name
  for name in "${binaries[@]}"; do packages+=(--bin "$name"); done
  cargo build --locked --profile "$profile" "${packages[@]}" >&2
  folder=$profile
  [ "$profile" != dev ] || folder=debug
  from=${CARGO_TARGET_DIR:-target}/$folder
}

# Installs etcd where a demo of several hosts wants it and it is missing. Where this user may not, the
# demo itself says what to do. Debian would start a server of its own, which nobody asked for.
etcd_for_hosts() {
  local hosts=1 previous='' argument policy=/usr/sbin/policy-rc.d made=''
  for argument in "$@"; do
    case $argument in
      --hosts=*) hosts=${argument#*=} ;;
    esac
    [ "$previous" != --hosts ] || hosts=$argument
    previous=$argument
  done
  [ "$hosts" != 1 ] || return 0
  ! command -v etcd >/dev/null 2>&1 || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 0
  echo "installing etcd-server, as a program only" >&2
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 0755 "$policy"
    made=1
  fi
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends etcd-server >/dev/null; } ||
    echo "install.sh: etcd-server could not be installed" >&2
  [ -z "$made" ] || rm -f "$policy"
}

if [ "${1:-}" = demo ]; then
  shift
  build
  etcd_for_hosts "$@"
  exec "$from/tanakoctl" demo up "$@"
fi

while [ $# -gt 0 ]; do
  case $1 in
    --prefix)
      prefix=${2:-}
      [ -n "$prefix" ] || die "--prefix needs a directory" "" 2
      shift
      ;;
    --prefix=*) prefix=${1#*=} ;;
    --from)
      from=${2:-}
      [ -n "$from" ] || die "--from needs a directory" "" 2
      shift
      ;;
    --from=*) from=${1#*=} ;;
    --join)
      join=${2:-}
      [ -n "$join" ] || die "--join needs a token" "tanakoctl join-token --host NAME prints one" 2
      shift
      ;;
    --join=*) join=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --uninstall) uninstall=1 ;;
    --purge) purge=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) die "unknown argument '$1'" "./install.sh --help" 2 ;;
  esac
  shift
done

case $prefix in
  /*) ;;
  *) die "--prefix must be an absolute path, not '$prefix'" "--prefix /usr/local" 2 ;;
esac
[ -z "$purge" ] || [ -n "$uninstall" ] || die "--purge goes with --uninstall" "" 2

[ -z "$join" ] || [ -z "$uninstall" ] || die "--join and --uninstall contradict each other" "" 2
[ -z "$join" ] || [ -z "${DESTDIR:-}" ] || die "--join is for this host, not for a package (DESTDIR)" "" 2

dest=${DESTDIR:-}
manifest=$dest$prefix/share/tanako/manifest
shipped=$dest$prefix/share/tanako/shipped.sha256
unit=$dest/etc/systemd/system/tanako-agent.service
config=$dest/etc/tanako/fleet.toml

run() {
  if [ -n "$dry_run" ]; then
    printf 'would run: %s\n' "$*"
  else
    "$@"
  fi
}

have_systemd() { [ -z "$dest" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

needs_root() {
  [ -n "$dry_run" ] || [ -n "$dest" ] || [ "$(id -u)" = 0 ] ||
    die "$1 needs root" "sudo ./install.sh, or --dry-run to see what it would do"
}

if [ -n "$uninstall" ]; then
  needs_root "removing"
  if [ ! -f "$manifest" ]; then
    [ -n "$dry_run" ] || die "nothing is installed under $prefix" "give the --prefix of the installation" 3
    echo "nothing is installed under $prefix"
    exit 0
  fi
  if have_systemd; then
    # The agent leaves its children running on purpose; an uninstallation must not.
    if systemctl --quiet is-active tanako-agent; then
      run "$prefix/bin/tanakoctl" stop all --yes --wait ||
        die "the fleet did not stop" "stop it with: tanakoctl stop all, then uninstall again"
    fi
    run systemctl --quiet disable --now tanako-agent || true
  fi
  while read -r file; do
    [ ! -e "$dest$file" ] || run rm -f "$dest$file"
  done <"$manifest"
  # The unit goes unless someone changed it.
  if [ -e "$unit" ]; then
    sum=$(sha256sum <"$unit")
    if grep -qsxF "${sum%% *} $unit" "$shipped" || [ -n "$purge" ]; then
      run rm -f "$unit" "$unit.new"
    else
      echo "kept: your changed $unit"
    fi
  fi
  run rm -f "$manifest" "$shipped"
  [ -n "$dry_run" ] || rmdir --ignore-fail-on-non-empty "$(dirname "$manifest")"
  if have_systemd; then run systemctl daemon-reload; fi
  if [ -n "$purge" ]; then
    run rm -rf "$dest/etc/tanako" "$dest/var/lib/tanako" "$dest/run/tanako"
    if [ -z "$dest" ] && id tanako >/dev/null 2>&1; then run userdel tanako; fi
  else
    echo "kept: /etc/tanako and /var/lib/tanako (--purge would have removed them)"
  fi
  exit 0
fi

needs_root "installing"
if [ -z "$from" ]; then
  if [ -n "$dry_run" ]; then
    echo "would build the release binaries"
    from=${CARGO_TARGET_DIR:-target}/release
  else
    build
  fi
fi
if [ -z "$dry_run" ]; then
  for name in "${binaries[@]}"; do
    [ -x "$from/$name" ] || die "there is no $name in $from" "build with cargo build --release, or leave --from out"
  done
fi

installed=()
# put MODE SOURCE PATH: a file that an upgrade may replace.
put() {
  run install -D -m "$1" "$2" "$dest$3"
  installed+=("$3")
}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

for name in "${binaries[@]}"; do put 0755 "$from/$name" "$prefix/bin/$name"; done

if [ -z "$dry_run" ]; then
  mkdir "$stage/man"
  "$from/tanakoctl" man "$stage/man"
  for shell in bash zsh fish; do "$from/tanakoctl" completions "$shell" >"$stage/$shell"; done
  sed "s|@BINDIR@|$prefix/bin|" deploy/systemd/tanako-agent.service >"$stage/unit"
  for page in "$stage"/man/*; do put 0644 "$page" "$prefix/share/man/man1/$(basename "$page")"; done
else
  echo "would install man pages to $prefix/share/man/man1"
fi
put 0644 "$stage/bash" "$prefix/share/bash-completion/completions/tanakoctl"
put 0644 "$stage/zsh" "$prefix/share/zsh/site-functions/_tanakoctl"
put 0644 "$stage/fish" "$prefix/share/fish/vendor_completions.d/tanakoctl.fish"

if [ -z "$dest" ] && ! id tanako >/dev/null 2>&1; then
  run useradd --system --home-dir /var/lib/tanako --no-create-home --shell /usr/sbin/nologin tanako
fi
owner=()
[ -n "$dest" ] || owner=(-o tanako -g tanako)
run install -d -m 0750 "${owner[@]}" "$dest/var/lib/tanako"
run install -d -m 0750 "${owner[@]}" "$dest/etc/tanako"

# A configuration that someone changed is never overwritten: the new one goes beside it. What was
# shipped last time is known by its checksum.
if [ -z "$dry_run" ]; then "$from/tanakoctl" init --dry-run /etc/tanako/fleet.toml >"$stage/fleet.toml"; fi
keep() { # keep MODE SOURCE PATH
  local sum
  if [ -n "$dry_run" ]; then
    echo "would install $3 unless it is there and changed"
    return
  fi
  if [ -e "$3" ] && ! cmp -s "$2" "$3"; then
    sum=$(sha256sum <"$3")
    if ! grep -qsxF "${sum%% *} $3" "$shipped"; then
      install -D -m "$1" "${owner[@]}" "$2" "$3.new"
      echo "kept your $3; this version's is beside it as $(basename "$3").new"
      return
    fi
  fi
  install -D -m "$1" "${owner[@]}" "$2" "$3"
  sum=$(sha256sum <"$2")
  mkdir -p "$(dirname "$shipped")"
  { grep -svF " $3" "$shipped" || true; echo "${sum%% *} $3"; } >"$stage/shipped"
  install -m 0644 "$stage/shipped" "$shipped"
}
keep 0640 "$stage/fleet.toml" "$config"
# The database's token is nobody's but this host's: made once, never printed.
db_token=$dest/etc/tanako/db.token
if [ ! -e "$db_token" ]; then
  if [ -n "$dry_run" ]; then
    echo "would make a token for the database in $db_token"
  else
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$stage/db.token")
    install -m 0600 "${owner[@]}" "$stage/db.token" "$db_token"
  fi
fi
owner=()
keep 0644 "$stage/unit" "$unit"

if [ -z "$dry_run" ]; then
  mkdir -p "$(dirname "$manifest")"
  # An older version may have installed files that this one no longer has.
  if [ -f "$manifest" ]; then
    while read -r file; do
      printf '%s\n' "${installed[@]}" | grep -qxF "$file" || rm -f "$dest$file"
    done <"$manifest"
  fi
  printf '%s\n' "${installed[@]}" >"$manifest"
fi

if have_systemd; then
  run systemctl daemon-reload
  # A running agent is replaced in place: its children keep their pids.
  if systemctl --quiet is-active tanako-agent; then run systemctl reload tanako-agent; fi
fi

if [ -n "$join" ]; then
  if [ -n "$dry_run" ]; then
    echo "would run: tanako-agent join --data-dir /var/lib/tanako"
  else
    # Through a pipe: a token in the arguments shows in the list of processes. As the agent's user: the
    # key is its own.
    joined=0
    { if [ "$join" = - ]; then cat; else printf '%s\n' "$join"; fi; } |
      setpriv --reuid tanako --regid tanako --init-groups \
        "$prefix/bin/tanako-agent" join --token-file - --data-dir /var/lib/tanako || joined=$?
    # 3: it is a member already.
    case $joined in
      0 | 3) ;;
      *) die "this host did not join; everything is installed" \
        "mend what is said above, then the same again with the same token, or a new one" ;;
    esac
  fi
fi

[ -n "$dry_run" ] && exit 0
cat <<EOF
installed under $prefix

next:
  1. put your bot's token into /etc/tanako/discord.token (owner tanako, mode 0600)
  2. edit /etc/tanako/fleet.toml
  3. systemctl enable --now tanako-agent
  4. tanakoctl plan /etc/tanako/fleet.toml; tanakoctl apply /etc/tanako/fleet.toml
  5. tanakoctl monitor
EOF
