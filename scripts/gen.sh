#!/bin/bash
# gen.sh compiles bpf/*.bpf.c and writes the Go bindings beside them.
#
#   scripts/gen.sh          regenerate the committed files in place
#   scripts/gen.sh -check   regenerate elsewhere; exit 1 if the committed files differ
#
# Needs Debian 12's clang-14, llvm-14 and libbpf-dev: other versions give other,
# equally good bytes, and -check would fail. See CONTRIBUTING.md.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1-} in
'' | -check) ;;
*)
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
	exit 2
	;;
esac
for tool in clang-14 llvm-strip-14; do
	command -v $tool >/dev/null || {
		echo "gen.sh: $tool not found: apt-get install clang-14 llvm-14 libbpf-dev" >&2
		exit 1
	}
done

out=$PWD/bpf
if [ "${1-}" = -check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi

# generate NAME SOURCE [BPF2GO-OPTION...]: SOURCE and what it includes, as Go type NAME
generate() {
	local name=$1 source=$2
	shift 2
	GOPACKAGE=bpf go tool bpf2go -go-package bpf -output-dir "$out" -cc clang-14 -strip llvm-strip-14 \
		-no-global-types -target bpfel,bpfeb "$@" "$name" "bpf/$source" -- \
		-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -Wno-sign-compare -ffile-prefix-map="$PWD"=.
}
generate Tracker tracker.bpf.c -type event_type -type role -type connect_tier -type header -type socket_event -type owned_event \
	-type close_event -type task_event -type account -type process
generate Snapshot iter.bpf.c -type inet_row -type holder_row

[ "${1-}" = -check ] || exit 0
status=0
for f in "$out"/*; do
	cmp -s "$f" "bpf/${f##*/}" || { echo "gen.sh: bpf/${f##*/} does not match its source: run scripts/gen.sh" >&2; status=1; }
done
for f in bpf/*_bpfe[lb].*; do
	[ -e "$out/${f##*/}" ] || { echo "gen.sh: $f has no source any more: remove it" >&2; status=1; }
done
exit $status
