#!/bin/sh
# install.sh PACKAGE...: installs the Debian packages that are missing, as root; otherwise says which.
# Does nothing, and needs neither root nor network, when all of them are there.
set -eu
if ! command -v dpkg-query >/dev/null; then
	echo "install: not a Debian system; these Debian packages (or their like) are needed: $*" >&2
	exit 0
fi
exec 9<"$0"
flock 9 # one at a time: guests start side by side, and apt-get update does not wait
missing=
for p; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "install: missing packages; as root: apt-get update && apt-get install --no-install-recommends$missing" >&2
	exit 1
fi
echo "install:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null 9<&-
# Without the lock, which a service that a package starts would keep.
# shellcheck disable=SC2086 # one word per package
apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 $missing </dev/null >/dev/null 9<&-
