#!/bin/sh
# release-check.sh VERSION: reports whether the modules of this checkout may be tagged (docs/VERSIONING.md).
set -eu
cd "$(dirname "$0")/.."
version=${1:?usage: make release-check VERSION=v0.1.0}
root=github.com/cellkit/sandbox
fail() { echo "release-check: $*" >&2; exit 1; }
for m in image queue docker libvirt compose examples bench; do
	grep -q "$root $version\$" $m/go.mod || fail "$m/go.mod does not require $root $version"
done
! grep -l '^replace' go.mod ./*/go.mod || fail "a go.mod has a replace directive"
for m in "$root $version => ." "$root/image $version => ./image" "$root/queue $version => ./queue" "$root/compose $version => ./compose"; do
	grep -qx "replace $m/*" go.work || fail "go.work does not have: replace $m"
done
grep -q "^## \[${version#v}\]" CHANGELOG.md || fail "CHANGELOG.md has no heading for ${version#v}"
[ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed"
go test -count=1 -run 'TestPublished$' ./internal/lifetest
