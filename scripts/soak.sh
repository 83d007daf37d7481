#!/bin/bash
# soak.sh lets a tracker run under a moderate load, and holds it to two things: its
# table stays that of the kernel, and its memory does not grow.
#
#   scripts/soak.sh [MINUTES]
#       opens and closes connections in bursts for MINUTES (10) while `conntrace
#       verify` runs, and samples the memory of the latter. Prints verify's result,
#       and its resident memory after one minute and at the end. Fails if there is a
#       mismatch, an account that does not add up, or a growth of more than SOAK_MARGIN
#       KiB (16384).
#
# SOAK_PAUSE is the time between two bursts of a second, in seconds (3): the machine
# may have other work. SOAK_ARGS are more arguments for verify, such as --owners.
#
# Needs root, Go, util-linux and iproute2. The load is in a network namespace of its
# own, over loopback, and ends with the script.
set -euo pipefail
cd "$(dirname "$0")/.."

wrong() { # TEXT
	echo "soak.sh: $1" >&2
	exit 2
}

case ${1-} in
-h | --help)
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
	exit 0
	;;
esac
[ $# -le 1 ] || wrong "takes one number"
minutes=${1-10} margin=${SOAK_MARGIN-16384} pause=${SOAK_PAUSE-3}
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || wrong "MINUTES must be from 1 to 9999, not \"$minutes\""
[[ $margin =~ ^[0-9]+$ ]] || wrong "SOAK_MARGIN must be a number of KiB, not \"$margin\""
[[ $pause =~ ^[0-9]+$ ]] || wrong "SOAK_PAUSE must be a number of seconds, not \"$pause\""
[ "$(id -u)" -eq 0 ] || wrong "must run as root: it makes a namespace and loads BPF programs"
for tool in go unshare ip; do
	command -v "$tool" >/dev/null || wrong "$tool not found"
done

dir=$(mktemp -d)
load='' verify=''
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
	# unshare takes no notice of SIGTERM, and takes its child along if it is killed.
	[ -z "$load" ] || kill -KILL "$load" 2>/dev/null || true
	[ -z "$verify" ] || kill "$verify" 2>/dev/null || true
	wait 2>/dev/null || true
	rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "soak.sh: building" >&2
export CGO_ENABLED=0
go build -o "$dir/" ./cmd/conntrace
(cd scripts/bench && go build -o "$dir/" ./churn)

# Bursts, each of another way to close a connection.
# shellcheck disable=SC2016 # for the inner shell
unshare --net --kill-child bash -c '
	ip link set lo up
	while :; do
		for load in request fin bare; do
			"$0" 1s 1 "$load" || exit 1
			sleep "$1"
		done
	done
' "$dir/churn" "$pause" >"$dir/load" &
load=$!

# shellcheck disable=SC2086 # words
"$dir/conntrace" verify --duration "${minutes}m" --interval 1s ${SOAK_ARGS-} >"$dir/verify" &
verify=$!

resident() { # prints the resident memory of verify in KiB, nothing if it has ended
	sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$verify/status" 2>/dev/null || true
}

# In a run of a minute, the first sample is of half a minute.
first='' last='' highest=0 begin=$SECONDS
after=$((minutes > 1 ? 60 : 30))
while kill -0 "$verify" 2>/dev/null; do
	sleep 2
	kill -0 "$load" 2>/dev/null || wrong "the load has ended: $(cat "$dir/load")"
	now=$(resident)
	[ -n "$now" ] || break
	last=$now
	[ "$now" -le "$highest" ] || highest=$now
	[ -n "$first" ] || [ $((SECONDS - begin)) -lt "$after" ] || first=$now
done
status=0
wait "$verify" || status=$?
verify=
cat "$dir/verify"
awk -F '[:,]' '{ for (i = 1; i < NF; i++) if ($i ~ /connects/) n += $(i + 1) } END { printf "load: %d connections\n", n }' "$dir/load"
[ -n "$first" ] || wrong "verify has ended after $((SECONDS - begin)) s"
echo "memory: $first KiB after $after s, $last KiB at the end, $highest KiB at most; may grow by $margin KiB"
[ "$status" -eq 0 ] || {
	echo "soak.sh: verify has failed with status $status" >&2
	exit 1
}
[ "$last" -le $((first + margin)) ] || {
	echo "soak.sh: memory has grown by $((last - first)) KiB" >&2
	exit 1
}
echo "soak: ok, $minutes min"
