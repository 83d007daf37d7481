#!/bin/bash
# bench.sh measures conntrace side by side with its peers, and prints Markdown.
#
#   scripts/bench.sh [--only TEXT] snapshot [SIZE...]
#       opens SIZE TCP sockets (1000, 20000 and 100000; an even number each) and
#       times in turns: the library by each source, `conntrace list -t`, psutil,
#       gopsutil, ss -tanp and lsof. All must give the same number of rows. 2 min.
#
#   scripts/bench.sh [--only TEXT] stream [--load LOAD] [SECONDS]
#       opens and closes connections as fast as 2 cores can, for SECONDS (2) a run,
#       without and with each observer in turns: the library, `conntrace -o json`,
#       programs that do nothing at the same hooks, tcplife and tcpstates. Tells what
#       each costs and loses. 3 min. LOAD is what happens to a connection:
#         request   a request and a reply of 64 bytes, then a reset (the default)
#         fin       the same, closed in the ordinary way
#         bare      nothing is sent; a reset
#
#   scripts/bench.sh [--only TEXT] tiers [--load LOAD] [--kernel KERNEL] [SECONDS]
#       the same for each way to see that --hooks can force: what it costs a
#       connection. KERNEL is run in a virtual machine (scripts/vmtest.sh), for hooks
#       that this machine refuses; emulated, only the ratios mean something. 3 min.
#
#   scripts/bench.sh [--only TEXT] poll [SIZE [SECONDS]]
#       opens SIZE TCP sockets (20000) and tells what share of a core
#       `conntrace watch` takes for SECONDS (20) where it has to poll: with each
#       source, and with 0, 1 and 20 new connections a second. 3 min.
#
# --only measures only those with TEXT in their name, such as conntrace.
#
# Needs root, Go and util-linux; peers that are not installed are named as missing
# (Debian: python3-psutil iproute2 lsof libbpf-tools). All of it happens in network
# and mount namespaces of its own, over loopback, and ends with the script. Medians
# of paired rounds; other work on the machine still shows, so leave it alone.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

die() { # STATUS TEXT
	echo "bench.sh: $2" >&2
	exit "$1"
}

wrong() { # TEXT
	echo "bench.sh: $1" >&2
	usage >&2
	exit 2
}

command='' load='' only='' kernel='' numbers=()
while [ $# -gt 0 ]; do
	case $1 in
	-h | --help)
		usage
		exit 0
		;;
	--load | --only | --kernel)
		[ $# -ge 2 ] || wrong "$1 needs a value"
		printf -v "${1#--}" %s "$2"
		shift
		;;
	--load=*) load=${1#*=} ;;
	--only=*) only=${1#*=} ;;
	--kernel=*) kernel=${1#*=} ;;
	snapshot | stream | tiers | poll)
		[ -z "$command" ] || wrong "one command at a time"
		command=$1
		;;
	*)
		[[ $1 =~ ^[1-9][0-9]{0,6}$ ]] || wrong "unknown command, option or number \"$1\""
		numbers+=("$1")
		;;
	esac
	shift
done
[ -z "$kernel" ] || [ "$command" = tiers ] || wrong "--kernel is for tiers"
case $command in
snapshot)
	[ -z "$load" ] || wrong "--load is for stream and tiers"
	[ ${#numbers[@]} -gt 0 ] || numbers=(1000 20000 100000)
	for size in "${numbers[@]}"; do
		((size % 2 == 0 && size >= 8 && size <= 1000000)) ||
			wrong "SIZE must be an even number from 8 to 1000000, not $size"
	done
	args=("${numbers[@]}")
	;;
stream | tiers)
	[ ${#numbers[@]} -le 1 ] || wrong "$command takes one number"
	seconds=${numbers[0]-2} load=${load:-request}
	[ "$seconds" -le 60 ] || wrong "SECONDS must be from 1 to 60, not $seconds"
	case $load in
	request | fin | bare) ;;
	*) wrong "LOAD must be request, fin or bare, not \"$load\"" ;;
	esac
	args=("$seconds" "$load")
	;;
poll)
	[ -z "$load" ] || wrong "--load is for stream"
	[ ${#numbers[@]} -le 2 ] || wrong "poll takes two numbers"
	size=${numbers[0]-20000} seconds=${numbers[1]-20}
	((size % 2 == 0 && size >= 8 && size <= 1000000)) ||
		wrong "SIZE must be an even number from 8 to 1000000, not $size"
	[ "$seconds" -le 600 ] || wrong "SECONDS must be from 1 to 600, not $seconds"
	args=("$size" "$seconds")
	;;
*) wrong "what shall be measured, snapshot, stream, tiers or poll?" ;;
esac

[ "$(id -u)" -eq 0 ] || die 2 "must run as root: it makes namespaces, loads BPF programs and looks into every process"
for tool in go unshare; do
	command -v "$tool" >/dev/null || die 2 "$tool not found"
done
PATH=$PATH:/usr/sbin:/sbin

dir=$(mktemp -d)
bench=
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
	if [ -n "$bench" ]; then
		kill "$bench" 2>/dev/null || true # it ends all that it has started
		wait "$bench" || true
	fi
	rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "bench.sh: building" >&2
export CGO_ENABLED=0
go build -o "$dir/" ./cmd/conntrace
(cd scripts/bench && go build -o "$dir/" ./...)
cp scripts/bench/time_psutil.py "$dir/"

BENCH_COMMIT=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
export BENCH_COMMIT BENCH_ONLY=$only

# In the background, so that a signal does not wait for its end.
if [ -n "$kernel" ]; then
	beside=/bin/101 # where the guest has its command
	scripts/vmtest.sh -M 2048 -e "BENCH_COMMIT=$BENCH_COMMIT" -e "BENCH_ONLY=$only" -f "$dir/ours:$beside/ours" -f "$dir/churn:$beside/churn" \
		"$kernel" -- "$dir/bench" "$command" "${args[@]}" &
else
	unshare --net --mount "$dir/bench" "$command" "${args[@]}" &
fi
bench=$!
status=0
wait "$bench" || status=$?
bench=
exit "$status"
