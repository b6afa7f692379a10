#!/bin/sh
# suite.sh SRC BIN TIMEOUT RUN SKIP DIR...: runs the test binary BIN/DIR/*.test of every package DIR in its directory
# SRC/DIR, one after the other, as go test does, and frames the output of each with lines for vmtest's main.go.
src=$1 bin=$2 timeout=$3 run=$4 skip=$5
shift 5
for dir; do
	printf '\n##vmtest begin %s\n' "$dir"
	(cd "$src/$dir" && exec "$bin/$dir"/*.test -test.v=test2json -test.paniconexit0 \
		-test.timeout="$timeout" -test.run="$run" -test.skip="$skip") </dev/null 2>&1
	printf '\n##vmtest end %d %s\n' $? "$dir"
done
