#!/bin/bash
# docker.sh MODE SRC BIN TIMEOUT RUN SKIP DIR...: suite.sh in a Docker container, with the output of suite.sh. As root.
#
#   docker-default      docker run without flags that matter
#   docker              the least that makes runs work (docs/CONTAINERS.md)
#   docker-cap          the same with CAP_SYS_ADMIN
#   docker-privileged   docker run --privileged
#
# With DOCKER_PACKAGES the image has all files of these Debian packages, too: names and patterns of dpkg-query.
#
# docker.sh engine COMMAND...: a command that finds the engine, which has a bridge, by DOCKER_HOST.
#
# The image is made of this machine's own files: the test binaries, and the programs that tests start. The engine is
# one of its own, with everything it has in one temporary directory, and ends with this script; nothing of it stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 7 ] || [ "${1:-}" = engine -a $# -ge 2 ] ||
	{ echo "usage: docker.sh MODE SRC BIN TIMEOUT RUN SKIP DIR..., docker.sh engine COMMAND..." >&2; exit 126; }
mode=$1 network=(--bridge none)
if [ "$mode" = engine ]; then
	bridge=sandbox$$ network=(--bridge "sandbox$$")
	shift
else
	src=$2 bin=$3
	timeout=$4 run=$5 skip=$6
	shift 6
fi

case $mode in
engine) ;;
docker-default) flags=() ;;
docker) flags=(--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined) ;;
docker-cap) flags=(--tmpfs /tmp:exec --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined
	--security-opt systempaths=unconfined) ;;
docker-privileged) flags=(--tmpfs /tmp:exec --privileged) ;;    # /tmp: overlayfs can't be mounted with owners mapped
*) echo "docker: no mode $mode" >&2; exit 126 ;;
esac
# This machine's own root may be in a container that lacks some of what --privileged gives.
bounding=$(awk '/^CapBnd/ {print $2}' /proc/self/status) last=$(cat /proc/sys/kernel/cap_last_cap)
[ "$mode" != docker-privileged ] || [ $((0x$bounding)) = $(((1 << (last + 1)) - 1)) ] ||
	{ echo "docker: --privileged takes all capabilities, and this machine's root has only $bounding" >&2; exit 127; }
[ "$(id -u)" = 0 ] || { echo "docker: the engine needs root" >&2; exit 126; }
"$here/install.sh" docker.io busybox-static uidmap tar ${bridge:+iproute2} >&2
[ -z "${VM_PREPARE:-}" ] || exit 0
packages=''
set -f
for pattern in ${DOCKER_PACKAGES:-}; do
	of=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$pattern" 2>/dev/null | sed -n 's/^installed //p') || :
	[ -n "$of" ] || { echo "docker: no package is installed that matches $pattern of DOCKER_PACKAGES" >&2; exit 126; }
	packages+=" $of"
done
set +f
docker=/usr/bin/docker dockerd=$(command -v /usr/sbin/dockerd /usr/bin/dockerd | head -n 1)

dir=$(mktemp -d "${TMPDIR:-/var/tmp}/sandbox-docker-XXXXXX")
parent=/sandbox-docker-$$
export DOCKER_HOST=unix://$dir/sock DOCKER_CONFIG=$dir/config
engine=''
strays=$(for d in /opt/containerd /run/docker /run/containerd; do [ -e $d ] || echo $d; done)    # made by the engine whatever it is told

# cleanup kills the container, ends the engine, which ends its containerd, and removes what they made.
cleanup() {
	local c
	trap '' PIPE INT TERM
	if [ -n "$engine" ]; then
		for c in $(timeout 60 $docker ps -aq 2>/dev/null); do timeout 60 $docker rm -f "$c" >/dev/null 2>&1 || :; done
		kill "$engine" 2>/dev/null || :
		for _ in $(seq 300); do kill -0 "$engine" 2>/dev/null || break; sleep 0.1; done
		kill -9 "$engine" 2>/dev/null || :
		wait "$engine" 2>/dev/null || :
	fi
	awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r m; do umount -l "$m"; done
	[ -z "${bridge:-}" ] || ip link delete "$bridge" 2>/dev/null || :
	find /sys/fs/cgroup -depth -type d -path "*$parent*" -exec rmdir {} + 2>/dev/null || :
	for c in $strays; do find "$c" -depth -type d -exec rmdir {} + 2>/dev/null || :; done
	rm -rf "$dir" || echo "docker: $dir stays" >&2
}
trap cleanup EXIT
trap 'exit 143' INT TERM

# start_engine takes the storage driver. It waits until the engine answers.
start_engine() {
	mkdir -p "$dir/config"
	echo '{}' >"$dir/daemon.json"
	setpriv --pdeathsig TERM "$dockerd" --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
		--host "$DOCKER_HOST" --group root --storage-driver "$1" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "$parent" \
		"${network[@]}" --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
		>"$dir/log" 2>&1 </dev/null &
	engine=$!
	for _ in $(seq 600); do
		$docker version >/dev/null 2>&1 && return
		kill -0 "$engine" 2>/dev/null || { wait "$engine" || :; engine=''; return 1; }
		sleep 0.2
	done
	return 1
}
[ -z "${bridge:-}" ] || { ip link add "$bridge" type bridge && ip address add 10.231.0.1/24 dev "$bridge" && ip link set "$bridge" up; }
start_engine overlay2 || start_engine vfs || { tail -n 20 "$dir/log" >&2; exit 125; }

if [ "$mode" = engine ]; then
	"$@"
	exit
fi

# image DIR... writes the image's tar: programs that tests start, their libraries, the tests of these packages.
image() {
	set +o pipefail    # ldd fails for static programs
	local root=$dir/image f
	mkdir -p "$root"/{proc,sys,dev,run,root,home,tmp,var/tmp,etc,usr/bin,usr/sbin,usr/lib,usr/lib64,usr/share,sandbox/bin}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	for f in bin sbin lib lib64; do if [ -L /$f ]; then cp -a /$f "$root/"; else mkdir "$root/$f"; fi; done
	dpkg -L dash bash coreutils grep sed findutils util-linux procps busybox-static uidmap tar hostname bsdutils libc-bin 2>/dev/null |
		grep -E '^(/usr)?/s?bin/.' >"$dir/programs"
	# shellcheck disable=SC2086 # one word per package
	[ -z "$packages" ] || dpkg -L $packages | while read -r f; do [ ! -f "$f" ] || echo "$f"; done >"$dir/more"
	[ ! -s "$dir/more" ] || while read -r f; do [ ! -x "$f" ] && [ "$f" = "${f%.so*}" ] || echo "$f"; done <"$dir/more" >>"$dir/programs"
	{ cat "$dir/programs"; xargs ldd <"$dir/programs" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*'; } | sort -u | while read -r f; do
		[ ! -e "$f" ] || printf '%s\n' "$f" "$(readlink -f "$f")"
	done | sort -u >"$dir/files"
	tar -C / -c -h --hard-dereference -T <(sed 's,^/*,,' "$dir/files") | tar -C "$root" -x --keep-directory-symlink
	# Where scripts find what is beside them, links are to be links.
	[ ! -s "$dir/more" ] || tar -C / -c -T <(sed 's,^/*,,' "$dir/more") | tar -C "$root" -x --keep-directory-symlink
	printf '%s\n' root:x:0:0:root:/root:/bin/sh user:x:1000:1000::/home:/bin/sh >"$root/etc/passwd"
	printf '%s\n' root:x:0: user:x:1000: >"$root/etc/group"
	cp -a "$src" "$root/sandbox/src"
	for f; do mkdir -p "$root/sandbox/bin/$f"; cp -a "$bin/$f"/*.test "$root/sandbox/bin/$f/"; done
	cp "$here/suite.sh" "$root/sandbox/"
	tar -C "$root" -c .
	rm -rf "$root"
}
image "$@" | $docker import - sandbox-test >/dev/null

$docker run --rm --network none -e SANDBOX_TEST_CONFIG="$mode" -e PATH="$PATH" ${DOCKER_FLAGS:-} "${flags[@]}" sandbox-test \
	${DOCKER_CMD:-/sandbox/suite.sh /sandbox/src /sandbox/bin "$timeout" "$run" "$skip" "$@"} </dev/null
