#!/bin/bash
# vmtest.sh runs programs as root on a real Debian kernel, in a virtual machine.
#
#   vmtest.sh [options] KERNEL [--] COMMAND [ARG...] [-- COMMAND [ARG...]]...
#   vmtest.sh [options] matrix [KERNEL...]
#   vmtest.sh kernels
#
# KERNEL   a series (5.10, 6.1, 6.12, 7.2 ...), whose newest package is taken;
#          newest, of all series; a package (linux-image-6.1.0-56-cloud-amd64); or
#          the path of a vmlinuz.
# COMMAND  a static program, such as a test binary of CGO_ENABLED=0 go test -c. A test
#          binary runs in its package's folder below /src, where all of the
#          repository's testdata folders are too; others run in /src.
# matrix   builds the tests and runs them on each kernel, two at a time. The tests,
#          the packages and the kernels are listed below, at "The matrix".
# kernels  prints which package each kernel of the matrix is here.
#
#   -k "ARG ..."  more kernel command line, such as lockdown=confidentiality
#   -m "MOD ..."  kernel modules to load, instead of tcp_diag udp_diag unix_diag
#                 mptcp_diag veth vxlan; "" loads none
#   -e NAME=VALUE environment of the commands; may be repeated
#   -f FILE:PATH  puts a file at PATH in the guest; may be repeated
#   -o DIR        receives 1.txt, 2.txt ..., what each command wrote, and dmesg.txt;
#                 of matrix, in a folder for each kernel
#   -s FILE       of matrix: appends which tests were skipped, and why
#   -A ARCH       amd64 or arm64; default: this machine's
#   -t SECONDS    time limit for a VM (900);  -c N  CPUs (2);  -M MIB  memory (1024)
#   -v            shows the kernel's messages too
#
#   CGO_ENABLED=0 go test -c -o tracker.test ./pkg/tracker
#   scripts/vmtest.sh 6.12 -- tracker.test -test.v -test.run TestLifecycle
#   CGO_ENABLED=0 go test -exec "$PWD/scripts/vmtest.sh 6.1" ./...
#   scripts/vmtest.sh matrix
#
# Exit status: that of the first command that fails; 124 time-out; 125 the guest
# died, or no VM could be made: a kernel that cannot be had is a failure.
#
# Needs the packages qemu-system-x86 (or qemu-system-arm), kmod and xz-utils. Kernels
# come from the mirrors that this machine's apt uses, and are kept in $VMTEST_CACHE
# (~/.cache/vmtest); nothing is installed. KVM is used where it can run a stock kernel;
# else the CPU is emulated, which is some ten times slower.
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
cache=${VMTEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vmtest}
host=$(dpkg --print-architecture)
arch=$host cpus=2 memory=1024 limit=900 append='' outdir='' verbose=''
modules='tcp_diag udp_diag unix_diag mptcp_diag veth vxlan' must_have=''
environment=() files=() skipped=/dev/null

trap 'exit 130' INT # and so the traps on EXIT are run
trap 'exit 143' TERM

say() { echo "vmtest: $*" >&2; }
die() { say "$*" && exit 125; }

# ---- kernels ---------------------------------------------------------------------

# apt's package lists of the suites with kernels, apart from the machine's own.
set_up_apt() {
	local dir=$cache/apt-$arch uris main security
	aptopt=(-qq -o Dir::Etc::sourcelist="$dir/vmtest.sources" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::State::lists="$dir/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$dir/cache"
		-o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3)
	[ -z "$(find "$dir/updated" -mmin -1440 2>/dev/null)" ] || return 0
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	# shellcheck disable=SC2016 # apt's own variable
	uris=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u)
	main=$(grep -m1 -E '/debian/?$' <<<"$uris") || die "this machine's apt has no source that ends in /debian"
	security=$(grep -m1 -E '/debian-security/?$' <<<"$uris") || die "this machine's apt has no source that ends in /debian-security"
	# bullseye has 5.10, bookworm 6.1 and 6.12, trixie-backports what is newer.
	cat >"$dir/vmtest.sources" <<-END
		Types: deb
		URIs: $security
		Suites: bullseye-security bookworm-security
		Components: main
		Targets: Packages
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

		Types: deb
		URIs: $main
		Suites: trixie-backports
		Components: main
		Targets: Packages
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	END
	if apt-get "${aptopt[@]}" update >&2; then
		touch "$dir/updated"
	elif [ -e "$dir/updated" ]; then
		say "apt-get update failed: going on with older package lists"
	else
		die "apt-get update failed"
	fi
}

# kernel_package prints the package that a kernel's name means.
kernel_package() {
	local series=${1//./\\.} package
	case $1 in
	linux-image-*) echo "$1" && return ;;
	newest) series='[0-9]+\.[0-9]+' ;;
	*[!0-9.]* | '') die "no such kernel: '$1'" ;;
	esac
	package=$(apt-cache "${aptopt[@]}" pkgnames linux-image- |
		grep -E "^linux-image-$series\.[0-9][^ ]*-cloud-$arch\$" | sort -V | tail -n 1) ||
		die "apt has no kernel $1 for $arch"
	echo "$package"
}

# download unpacks a package into $kernel.
download() {
	local dir
	dir=$(mktemp -d "$cache/download.XXXXXX")
	say "fetching $1"
	(cd "$dir" && apt-get "${aptopt[@]}" download "$1") >&2 || { rm -rf "$dir" && die "cannot fetch $1"; }
	dpkg -x "$dir"/*.deb "$kernel"
	rm -rf "$dir"
}

# fetch_kernel sets $vmlinuz, and $kernel and $release if it is a package's.
fetch_kernel() {
	local package
	if [ -f "$1" ]; then
		vmlinuz=$1
		return
	fi
	mkdir -p "$cache/kernels"
	exec 9>"$cache/lock"
	flock 9 # others wait until it is there
	set_up_apt
	package=$(kernel_package "$1")
	kernel=$cache/kernels/$package release=${package#linux-image-}
	if [ ! -e "$kernel/complete" ]; then
		rm -rf "$kernel"
		download "$package"
		# Since 6.19 the image's package is empty and depends on these.
		[ -n "$(find "$kernel" -name 'vmlinuz*' -type f)" ] || download "linux-binary-$release"
		[ -e "$kernel/lib" ] || ln -s usr/lib "$kernel/lib"
		[ -d "$kernel/lib/modules/$release/kernel" ] || download "linux-modules-$release"
		[ -e "$kernel/lib/modules/$release/modules.builtin" ] || download "linux-base-$release"
		depmod -b "$kernel" "$release"
		touch "$kernel/complete"
	fi
	exec 9>&-
	vmlinuz=$(find "$kernel/" -name 'vmlinuz*' -type f | head -n 1)
	[ -n "$vmlinuz" ] || die "$package has no vmlinuz"
}

# add_modules puts the modules, and those that they need, into the guest.
add_modules() {
	local name action path n=100
	[ -n "$modules" ] || return 0
	if [ -z "${kernel-}" ]; then
		[ -z "$must_have" ] || die "-m needs a kernel from a package"
		return 0
	fi
	mkdir -p "$root/vmtest/modules"
	for name in $modules; do
		if ! modprobe -d "$kernel" -S "$release" --show-depends "$name" 2>/dev/null; then
			[ -z "$must_have" ] || die "$release has no module $name"
		fi
	done | awk '!seen[$2]++' >"$work/modules"
	while read -r action path _; do
		[ "$action" = insmod ] || continue # builtin
		n=$((n + 1))
		case $path in
		*.xz) xz -dc "$path" >"$root/vmtest/modules/$n-$(basename "$path" .xz)" ;;
		*) cp "$path" "$root/vmtest/modules/$n-$(basename "$path")" ;;
		esac
	done <"$work/modules"
}

# ---- one VM ----------------------------------------------------------------------

# add_commands puts the commands into the guest.
add_commands() {
	local n=100 command=() word program folder
	for word in "$@" --; do
		# go test -exec names a file of the host here.
		[[ $word != -test.testlogfile=* ]] || continue
		[ "$word" = -- ] || { command+=("$word") && continue; }
		[ ${#command[@]} -gt 0 ] || continue
		n=$((n + 1)) program=${command[0]} folder=/src
		[ -f "$program" ] || die "no such program: $program"
		! ldd "$program" >/dev/null 2>&1 || die "$program is not static: build it with CGO_ENABLED=0"
		mkdir -p "$root/bin/$n"
		cp "$program" "$root/bin/$n/"
		command[0]=/bin/$n/$(basename "$program")
		if [[ $program == *.test ]]; then # a package's path says where it lies
			word=$(go version -m "$program" | awk '$1 == "path" { print $2 }')
			[[ $word != "$module"/* ]] || folder=/src${word#"$module"} folder=${folder%.test}
		fi
		printf '%s\0' "$folder" "${command[@]}" >"$root/vmtest/commands/$n"
		command=()
	done
	[ $n -gt 100 ] || die "no command; see $0 -h"
}

# guest KERNEL COMMAND... runs a VM.
guest() {
	local module file status=0 accelerator qemu cmdline cpu machine started=$SECONDS
	work=$(mktemp -d) root=$work/root
	trap '[ -z "${vm-}" ] || kill "$vm" 2>/dev/null || true; rm -rf "$work"' EXIT
	mkdir -p "$root/vmtest/commands" "$root/src"
	fetch_kernel "$1"
	shift
	add_modules
	module=$(cd "$repo" && go list -m)
	add_commands "$@"
	(cd "$repo" && find . -type d -name testdata -print0 | xargs -0 cp -r --parents -t "$root/src")
	[ ${#environment[@]} -eq 0 ] || printf '%s\0' "${environment[@]}" >"$root/vmtest/env"
	for file in "${files[@]}"; do
		[[ $file == *:/* ]] || die "-f wants FILE:/PATH, not $file"
		mkdir -p "$root$(dirname "${file#*:}")"
		cp -rL "${file%%:*}" "$root${file#*:}"
	done
	build "$arch" "$root/init" ./scripts/vmtest
	if [ "$arch" = "$host" ]; then cp "$root/init" "$work/vmtest"; else build "$host" "$work/vmtest" ./scripts/vmtest; fi
	"$work/vmtest" pack "$root" >"$work/initramfs"

	case $arch in
	amd64)
		# -M pc: microvm has no clock that TSC calibration can trust under emulation.
		qemu=(qemu-system-x86_64 -M pc -serial stdio -serial "file:$work/result")
		cmdline='console=ttyS0 vmtest.result=/dev/ttyS1' machine=x86_64 cpu=max
		;;
	arm64)
		qemu=(qemu-system-aarch64 -M virt -serial stdio
			-chardev "file,id=result,path=$work/result" -device "pci-serial,chardev=result")
		cmdline='console=ttyAMA0 vmtest.result=/dev/ttyS0' machine=aarch64
		cpu=max,pauth-impdef=on # true pointer authentication takes half of the time
		;;
	*) die "no such architecture: $arch" ;;
	esac
	type "${qemu[0]}" >/dev/null 2>&1 || die "${qemu[0]} is missing: apt-get install qemu-system-$([ "$arch" = amd64 ] && echo x86 || echo arm)"
	# One thread emulates all CPUs in turn: of two that run at once, one meets half of what the kernel
	# patches in its own code, now and then (an int3 of text_poke_bp() that is gone: an oops, or a hang).
	accelerator=(-accel "tcg,thread=single" -cpu "$cpu")
	# Without vmx or svm, /dev/kvm may open and still not run a stock kernel (PVM).
	if [ "$(uname -m)" = "$machine" ] && [ -w /dev/kvm ] &&
		{ [ "$arch" = arm64 ] || grep -q -m1 -wE 'vmx|svm' /proc/cpuinfo; }; then
		accelerator=(-accel kvm -cpu host)
	fi
	[ -n "$verbose" ] || cmdline+=' loglevel=0'

	timeout -k 5 "$limit" "${qemu[@]}" "${accelerator[@]}" -smp "$cpus" -m "$memory" \
		-display none -nodefaults -no-reboot -kernel "$vmlinuz" -initrd "$work/initramfs" \
		-append "$cmdline panic=-1 oops=panic $append" </dev/null &
	vm=$!
	wait $vm || status=$?

	# The archive is cut short if the guest died.
	mkdir "$work/out"
	[ ! -s "$work/result" ] || tar -C "$work/out" -xf "$work/result" 2>/dev/null || true
	if [ -n "$outdir" ]; then
		mkdir -p "$outdir"
		cp -r "$work/out/." "$outdir/"
	fi
	if [ -s "$work/out/status" ]; then
		status=$(cat "$work/out/status")
		say "${release:-$vmlinuz}: exit status $status after $((SECONDS - started)) s"
		return "$status"
	fi
	if [ $status = 124 ] || [ $status = 137 ]; then
		say "${release:-$vmlinuz}: time-out after $limit s" && return 124
	fi
	die "${release:-$vmlinuz}: the guest died"
}

build() { # ARCH OUTPUT PACKAGE
	(cd "$repo" && GOOS=linux GOARCH=$1 CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$2" "$3")
}

# ---- The matrix ------------------------------------------------------------------

kernels='5.10 6.1 6.12 6.18 newest'

# The tests of these packages run in the guest, all of them. What needs psutil is
# skipped there, as there is no Python.
packages=(pkg/tracker pkg/fallback cmd/conntrace internal/procinfo internal/ringbuf internal/sysinfo)

# But these are left out: they do not depend on the kernel, and are slow when emulated,
# most of them because they load the programs again and again, or make a load.
leave_out='^(TestSubscriptionOrder|TestCompletion|TestHelp|TestWrongUse|TestVerify.*|TestStopped'
leave_out+='|TestLosses|TestGapsAddUp|TestKilled|TestProperty.*'
leave_out+='|TestWatch(Signals|Duration|IsDefault|ClosedPipe|DropsPrivileges|SlowOutput))$'

# The hooks that are not the best ones, each with those of its tests that are quick enough.
hooks=('tracepoint,kretprobe' 'raw_tp,syscall')
with_hooks='^(TestLifecycle|TestMapped|TestRefused|TestCloseReasons|TestBacklog|TestHolders|TestReadYourWrites|TestTinyRingBuffer)$'

# matrix [KERNEL...] runs the tests on each kernel, and those of a locked down kernel on
# one of them, and prints what came of it.
matrix() {
	local bin out package k h mode status failed=0 all=() names=() pids=() runs=("${packages[@]}") started=$SECONDS
	# shellcheck disable=SC2086 # a list
	[ $# -gt 0 ] || set -- $kernels
	bin=$(mktemp -d) out=${outdir:-$bin/out}
	# shellcheck disable=SC2064 # as it is now
	trap "jobs -rp | xargs -r kill; rm -rf '$bin'" EXIT
	build "$arch" "$bin/conntrace" ./cmd/conntrace
	for package in "${packages[@]}"; do
		(cd "$repo" && GOOS=linux GOARCH=$arch CGO_ENABLED=0 go test -c -trimpath -o "$bin/${package##*/}.test" "./$package")
		all+=(-- "$bin/${package##*/}.test" -test.v=test2json -test.short -test.timeout="${limit}s" -test.skip="$leave_out")
	done
	for h in "${hooks[@]}"; do
		runs+=("pkg/tracker($h)")
		all+=(-- "$bin/tracker.test" -test.v=test2json -test.timeout="${limit}s" -test.run="$with_hooks" -hooks "$h")
	done
	for k; do
		launch "$k" "$append" "$k" "${all[@]}"
	done
	for mode in integrity confidentiality; do
		launch "${*: -1}, lockdown=$mode" "$append lockdown=$mode" "${*: -1}" \
			-- "$bin/conntrace.test" -test.v=test2json -test.run '^TestLockdown$'
	done
	for k in "${!names[@]}"; do
		status=0
		wait "${pids[k]}" || status=$?
		report "${names[k]}" "$out/${names[k]}" "$status" || failed=$((failed + 1))
	done
	[ $failed = 0 ] || die "$failed of ${#names[@]} failed"
	say "all ${#names[@]} passed in $((SECONDS - started)) s"
}

# launch NAME ARGS KERNEL -- COMMAND... starts a VM in the background, as soon as there
# are less than two, and notes it in names and pids.
launch() {
	local name=$1 args=$2 kernel=$3
	shift 3
	while [ "$(jobs -rp | wc -l)" -ge 2 ]; do sleep 0.2; done
	mkdir -p "$out/$name"
	"$0" -A "$arch" -c "$cpus" -M "$memory" -t "$limit" -k "$args" ${must_have:+-m "$modules"} -o "$out/$name" \
		"$kernel" -- "$bin/conntrace" doctor "$@" >"$out/$name/console.txt" 2>&1 &
	names+=("$name") pids+=($!)
}

# report NAME DIR STATUS prints what the tests of runs said.
report() {
	local i package ok=1
	echo "--- $1 ($arch)"
	if [ ! -e "$2/status" ]; then
		tail -n 30 "$2/console.txt"
		return 1
	fi
	sed -n 's/^  kernel  */kernel: /p; /^Source in use/,/^$/p' "$2/1.txt"
	for ((i = 2; ; i++)); do # 1 is the doctor
		[ -e "$2/$i.txt" ] || break
		package=${runs[i - 2]}
		[[ $1 != *lockdown* ]] || package=cmd/conntrace
		echo "$package"
		go tool test2json -t -p "$package" <"$2/$i.txt" |
			python3 "$repo/scripts/test-report.py" "Linux $1 $arch" "$skipped" || ok=''
	done
	grep -a '^vmtest:' "$2/console.txt" | tail -n 1
	[ -n "$ok" ] && [ "$3" = 0 ]
}

# ---- command line ----------------------------------------------------------------

usage() {
	sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"
}

[ "${1-}" != --help ] || { usage && exit; }
while getopts A:c:e:f:k:M:m:o:s:t:vh option; do
	case $option in
	A) arch=$OPTARG ;;
	c) cpus=$OPTARG ;;
	e) environment+=("$OPTARG") ;;
	f) files+=("$OPTARG") ;;
	k) append=$OPTARG ;;
	M) memory=$OPTARG ;;
	m) modules=$OPTARG must_have=1 ;;
	o) outdir=$OPTARG ;;
	s) skipped=$OPTARG ;;
	t) limit=$OPTARG ;;
	v) verbose=1 ;;
	h) usage && exit ;;
	*) die "see $0 --help" ;;
	esac
done
shift $((OPTIND - 1))
case ${1-} in
'') die "no kernel; see $0 --help" ;;
matrix) shift && matrix "$@" ;;
kernels)
	mkdir -p "$cache"
	set_up_apt
	for k in $kernels; do printf '%-8s %s\n' "$k" "$(kernel_package "$k")"; done
	;;
*) guest "$@" ;;
esac
