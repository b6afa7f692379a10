#!/bin/sh
# fuzz.sh TIME: runs each fuzz target of all modules for that long, one per CPU at a time, as go test -fuzz does. But
# that compiles all packages anew with the counters that guide the fuzzer. Here only this repository's have them.
set -eu
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME}
root=github.com/cellkit/sandbox
cache=$(go env GOCACHE)/fuzz
TMPDIR=$(mktemp -d)    # a worker is killed at the end, and leaves what it has there
export TMPDIR root cache time
trap 'rm -rf "$TMPDIR"' EXIT
targets=$(grep -rE '^func Fuzz' --include='*_test.go' --exclude-dir=testdata . | sed 's|/[^/]*:func \(Fuzz[A-Za-z0-9_]*\).*| \1|')
# shellcheck disable=SC2046 # one word per directory
go test -c -gcflags="$root/...=-d=libfuzzer" -ldflags=-w -o "$TMPDIR/" $(echo "$targets" | cut -d' ' -f1 | sort -u)
# Before Go 1.27 a target may fail when the time is over, with "context deadline exceeded" and no failing input
# (golang/go#75804).
echo "$targets" | xargs -P "$(nproc)" -L 1 sh -c '
	out=$(cd "$1" && "$TMPDIR/${1##*/}.test" -test.paniconexit0 -test.run="^$" -test.fuzz="^$2\$" -test.fuzztime="$time" \
		-test.fuzzminimizetime=100x -test.parallel=1 -test.fuzzcachedir="$cache/$root/${1#./}" 2>&1) ||
		{ ! echo "$out" | grep -q "Failing input" && echo "$out" | grep -qx "    context deadline exceeded"; } ||
		{ echo "$out"; exit 255; }
	echo "ok    $1 $2  $(echo "$out" | sed -n "s/.*\(execs: [0-9]*\).*/\1/p" | tail -n 1)"' sh
