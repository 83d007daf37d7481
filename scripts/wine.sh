#!/bin/bash
# wine.sh runs the tests of conntrace, or any Windows program, as on Windows: under
# Wine 10, in a Debian 13 (trixie) of its own.
#
#   scripts/wine.sh test [ARGUMENT...]
#       go test ARGUMENT... for windows/amd64; ./... if no argument is given.
#
#   scripts/wine.sh run PROGRAM [ARGUMENT...]
#       runs PROGRAM, a Windows program for amd64. It sees the folder that it is in,
#       the current one, and this repository. It can be given to go test:
#       GOOS=windows go test -exec 'scripts/wine.sh run' ./pkg/fallback
#
#   scripts/wine.sh bench
#       compares the start of `conntrace list` with that of Wine alone.
#
#   scripts/wine.sh build
#       only makes the Debian, as the others do when they first need it: in a minute
#       or two and 2 GB.
#
# Environment:
#   CONNTRACE_WINE          where that Debian is kept; ~/.cache/conntrace/wine if not set
#   CONNTRACE_WINE_MIRROR   where its packages come from; this machine's own Debian
#                           mirror (its apt sources) if not set
#
# Needs root, mmdebstrap and util-linux (Debian packages) and Go. What runs sees a copy
# of the Debian that ends with it, together with its processes, so that runs neither
# leave anything behind nor meet each other.
set -euo pipefail

self=$(readlink -f "$0")
repository=$(dirname "$(dirname "$self")")
cache=${CONNTRACE_WINE:-${XDG_CACHE_HOME:-$HOME/.cache}/conntrace/wine}
debian=$cache/debian # whole and ready if it is there
view=$cache/view     # where what runs sees its copy

usage() {
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$self"
}

die() { # TEXT
	echo "wine.sh: $1" >&2
	exit 1
}

need() { # PROGRAM PACKAGE
	command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"
}

# mirror prints the address of the Debian archive that this machine uses.
mirror() {
	local addresses
	# shellcheck disable=SC2016 # apt-get expands it
	addresses=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u)
	[ -n "$addresses" ] ||
		die "this machine's apt has no Debian archive, or no lists yet: run apt-get update, or set CONNTRACE_WINE_MIRROR"
	echo "${addresses%%$'\n'*}"
}

build() {
	[ ! -d "$debian" ] || return 0
	need mmdebstrap mmdebstrap
	mkdir -p "$cache" "$view"
	exec 9>"$cache/lock"
	flock 9 # another one may be at it
	[ ! -d "$debian" ] || return 0

	local new=$cache/new address=${CONNTRACE_WINE_MIRROR:-}
	[ -n "$address" ] || address=$(mirror)
	echo "wine.sh: making $debian from $address; log in $cache/log" >&2
	rm -rf --one-file-system "$new"
	mmdebstrap --variant=minbase --include=wine,wine64 --dpkgopt=force-unsafe-io trixie "$new" "$address" >"$cache/log" 2>&1 ||
		die "mmdebstrap failed: $(grep '^E:' "$cache/log" || tail -n 1 "$cache/log")"
	# Wine's own files, C: and the registry, take long to make: they are part of the copy.
	isolated into "$new" wine wineboot --init >>"$cache/log" 2>&1 9>&- || die "wineboot failed: see $cache/log"
	mv "$new" "$debian"
	exec 9>&-
}

# isolated runs this script again, with mounts and process IDs of its own, which end
# with it.
isolated() {
	unshare --mount --propagation private --pid --fork --kill-child --mount-proc -- "$self" "_$1" "${@:2}"
}

# into runs a program in the Debian at root, and waits for Wine to end.
into() { # ROOT PROGRAM ARGUMENT...
	local root=$1
	mount -t proc proc "$root/proc"
	mount --bind /dev "$root/dev"
	in_debian "$root" / "${@:2}"
	in_debian "$root" / wineserver --wait
}

in_debian() { # ROOT FOLDER PROGRAM ARGUMENT...
	# shellcheck disable=SC2016 # the inner shell expands it
	env -u DISPLAY -u WAYLAND_DISPLAY -u TMPDIR \
		HOME=/root XDG_RUNTIME_DIR=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		WINEPREFIX=/root/wine WINEDEBUG="${WINEDEBUG:--all}" WINEDLLOVERRIDES='mscoree,mshtml=' \
		chroot "$1" sh -c 'cd "$1" && shift && exec "$@"' sh "${@:2}"
}

# copy mounts a copy of the Debian at view, which keeps changes in memory, with the
# folders in it.
copy() { # FOLDER...
	mount -t tmpfs -o mode=755 tmpfs "$view"
	mkdir "$view/upper" "$view/work" "$view/root"
	mount -t overlay -o "lowerdir=$debian,upperdir=$view/upper,workdir=$view/work" overlay "$view/root"
	mount -t proc proc "$view/root/proc"
	mount --bind /dev "$view/root/dev"
	local folder
	for folder; do
		mkdir -p "$view/root$folder"
		mount --bind "$folder" "$view/root$folder"
	done
	# Wine would start anew for each program, and what it starts then would hold on to
	# the output of the first one.
	in_debian "$view/root" / wineserver --persistent
	in_debian "$view/root" / wine cmd.exe /c exit </dev/null >/dev/null 2>&1
}

# run runs a program in the copy that copy has made.
run() { # PROGRAM ARGUMENT...
	in_debian "$view/root" "$PWD" wine "$@"
}

run_test() {
	GOTMPDIR=$(mktemp -d)
	export GOTMPDIR GOOS=windows GOARCH=amd64 CGO_ENABLED=0
	trap 'rm -rf "$GOTMPDIR"' EXIT
	copy "$repository" "$GOTMPDIR"
	[ $# -gt 0 ] || set -- ./...
	go test -exec "$self _exec" "$@"
}

run_program() {
	local program
	program=$(readlink -e "$1") || die "$1: no such file"
	copy "$repository" "$PWD" "$(dirname "$program")"
	run "$program" "${@:2}"
}

# run_bench times programs in turns, with Wine running already, and prints medians.
run_bench() {
	GOTMPDIR=$(mktemp -d)
	trap 'rm -rf "$GOTMPDIR"' EXIT
	cd "$repository"
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build -o "$GOTMPDIR/conntrace.exe" ./cmd/conntrace
	copy "$GOTMPDIR"
	cd "$GOTMPDIR"
	local round start
	for round in {0..10}; do
		for program in 'cmd.exe /c exit' 'conntrace.exe version' 'conntrace.exe list -q'; do
			start=${EPOCHREALTIME/./}
			# shellcheck disable=SC2086 # words of a command
			run $program >list
			[ "$round" = 0 ] || echo "$((${EPOCHREALTIME/./} - start)) $program" # the first one warms up
		done
	done | sort -k 2 -k 1n | awk '{ program = substr($0, length($1) + 2); t[program, ++n[program]] = $1 }
		END { for (p in n) printf "%-22s median of %d: %.0f ms\n", p, n[p], t[p, int((n[p] + 1) / 2)] / 1000 }' | sort -t: -k 2n
}

case ${1:-} in
test | run | bench | build)
	[ "$1" != run ] || [ $# -gt 1 ] || { echo "wine.sh: run what?" >&2; usage >&2; exit 2; }
	[ "$(id -u)" = 0 ] || die "needs root, to mount and to change root: sudo $0 $*"
	need unshare util-linux
	build
	[ "$1" = build ] || isolated "$@"
	;;
_into) into "${@:2}" ;;
_test) run_test "${@:2}" ;;
_run) run_program "${@:2}" ;;
_bench) run_bench ;;
_exec) run "${@:2}" ;;
-h | --help | help) usage ;;
*)
	echo "wine.sh: ${1:-no command}: use test, run, bench or build" >&2
	usage >&2
	exit 2
	;;
esac
