#!/bin/sh
# A `go test -exec` wrapper for root: runs the test binary as the user nobody,
# without any capability, as it would run for an ordinary user.
#
#   go test -exec "$PWD/scripts/as-nobody.sh" ./...
set -eu
dir=$(mktemp -d) # the build's own folder is closed to others
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cp "$1" "$dir/"
name=$(basename "$1")
shift
env -u XDG_RUNTIME_DIR HOME=/nonexistent \
	setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --inh-caps=-all "$dir/$name" "$@"
