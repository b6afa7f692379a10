#!/bin/bash
# guest.sh CMD [ARG...]: runs CMD as root in a QEMU guest whose / is this machine's / (read-only over 9p,
# a tmpfs overlay on top), with cgroup2 on /sys/fs/cgroup, and exits with CMD's status.
# 123: CMD succeeded, but a process outlived it; 124: out of time; 125: the guest died; 126: it could not be made;
# 127: Debian's packages of that kernel (5.10, newest) can't be had.
#
#   VM_ACCEL=kvm|tcg     default tcg, which runs everywhere; kvm where it can boot Debian kernels
#   VM_MEM=3072 VM_CPUS=2 VM_TIMEOUT=600          MiB, processors, seconds
#   VM_JOB=DIR           the one directory that host and guest share writable (default: a fresh one)
#   VM_KERNEL=6.12|6.1|5.10|newest    the latest of that line (default 6.12), or a version, such as 6.1.0-49-amd64
#   VM_DIR=DIR           cache of kernels (default: $XDG_CACHE_HOME/sandbox-vm)
#   VM_AS=WHO            root (default), or user: uid 1000 with subordinate ids;
#                        with systemd as PID 1: systemd (root, in a service), systemd-service (in one with
#                        Delegate=yes), systemd-user (uid 1000, in such a service of its user manager)
#   VM_PREPARE=1         install packages and make the kernel ready, and no more
#   VM_APPEND='...'      more words for the kernel's command line
#
# In the guest VM_GUEST=1, VM_JOB is set, /tmp and /run are empty, and CMD has the caller's working directory
# (/ if the guest has no such directory, as under /tmp). README.md tells the rest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
VM=${VM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sandbox-vm}
ACCEL=${VM_ACCEL:-tcg} MEM=${VM_MEM:-3072} CPUS=${VM_CPUS:-2} TIMEOUT=${VM_TIMEOUT:-600} AS=${VM_AS:-root}
PATH=$PATH:/usr/sbin:/sbin    # depmod and modprobe, for an ordinary user

die() { echo "guest: $*" >&2; exit 126; }
[ $# -gt 0 ] || die "usage: guest.sh CMD [ARG...]"
[ "$(uname -sm)" = "Linux x86_64" ] || die "made for Linux on x86_64 only; SANDBOX_VM=0 leaves the guest out"
case $ACCEL in
tcg) # Two TCG threads in QEMU 7.2 crash a guest that patches its own text, 1 boot in 20; from 10.0 on multi is fine.
	# Without fast string instructions, which are slow when emulated byte by byte, and a fifth level of page tables.
	accel=(-accel "tcg,thread=${VM_THREAD:-single}" -cpu max,-erms,-fsrm,la57=off) ;;
kvm) [ -w /dev/kvm ] || die "VM_ACCEL=kvm, but /dev/kvm can't be opened for writing"
	accel=(-accel kvm -cpu host) ;;
*) die "VM_ACCEL=$ACCEL is neither kvm nor tcg" ;;
esac
more=() append=${VM_APPEND:-}    # packages, words for the kernel
case $AS in
root) ;;
user) more=(uidmap) ;;
systemd | systemd-service | systemd-user)
	more=(systemd dbus libpam-systemd dbus-user-session uidmap)
	append="vm.init=/lib/systemd/systemd systemd.unit=vmjob.service $append" ;;
*) die "VM_AS=$AS is none of root, user, systemd, systemd-service, systemd-user" ;;
esac

# --- once: a kernel, unpacked from its Debian package and never installed, and an initrd that mounts the root ---

cached() {         # so that a warm cache needs neither network nor package lists
	case $1 in
	newest) sed 1q "$VM/newest" 2>/dev/null || : ;;
	5.10 | 6.1 | 6.12) find "$VM" -maxdepth 2 -path "*/k-$1.*/.ok" | sed 's,.*/k-\(.*\)/.ok$,\1,' | sort -V | tail -n 1 ;;
	*) echo "$1" ;;
	esac
}
added_source() {   # of a suite that this machine need not have: lists and all stay in VM, its own apt is left as it is
	local uri
	for uri in $(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | sort -u); do case $1:$uri in
	*:*/debian/) echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1 main" ;;
	bullseye:*/debian-security/) echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1-security main" ;;
	esac; done > "$VM/apt/$1.list"
	[ -s "$VM/apt/$1.list" ] || { echo "guest: none of apt's sources is a mirror of Debian, where $1 would be" >&2; exit 127; }
	apt=(-o "Dir::Etc::sourcelist=$VM/apt/$1.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$VM/apt/lists-$1" -o "Dir::Cache=$VM/apt/cache")
	mkdir -p "$VM/apt/lists-$1/partial" "$VM/apt/cache/archives/partial"
	update
}
update() { apt-get "${apt[@]}" -o APT::Sandbox::User=root update -qq >&2; }
behind() {         # the version that one of the metapackages stands for
	apt-cache "${apt[@]}" depends "$@" 2>/dev/null | sed -n "s/.*Depends: linux-image-\($WANT\.[^ ]*-amd64\)\$/\1/p" | head -n 1
}
resolve() {        # prints the version of WANT; the generic kernel, as the cloud one has no 9p
	case $WANT in
	6.12) behind linux-image-6.12-amd64 linux-image-amd64 ;;    # from Debian 13 on it is the plain one
	6.1 | 5.10) behind linux-image-amd64 ;;
	newest) apt-cache "${apt[@]}" search --names-only '^linux-image-[0-9.]+[^-]*-amd64$' | sed 's/^linux-image-\([^ ]*\).*/\1/' | sort -V | tail -n 1 ;;
	*) echo "$WANT" ;;
	esac
}
download() {       # leaves the packages in VM/new; newer kernels are split into several
	local names=()
	K=$(resolve); [ -n "$K" ] || return 1
	mapfile -t names < <(apt-cache "${apt[@]}" depends "linux-image-$K" | sed -n "s/.*Depends: \(linux-\(base\|binary\|modules\)-$K\)\$/\1/p")
	rm -rf "$VM/new"; mkdir "$VM/new"
	(cd "$VM/new" && apt-get "${apt[@]}" download -q -o APT::Sandbox::User=root "linux-image-$K" "${names[@]}" >&2)
}
unpack_kernel() {
	local deb
	echo "guest: fetching a kernel into $VM (once, about 110 MB)" >&2
	command -v apt-get >/dev/null || die "kernels come from Debian's packages, and there is no apt-get; SANDBOX_VM=0 leaves the guest out"
	case $WANT in
	5.10 | newest) # 127: the tests go on without it
		local suite=bullseye; [ "$WANT" = 5.10 ] || suite=trixie-backports
		mkdir -p "$VM/apt"
		{ added_source $suite && download; } 2> "$VM/apt/log" || {
			echo "guest: no $WANT kernel from Debian's $suite: $(grep -m 1 -e '^[EW]:' -e '^guest:' "$VM/apt/log" || echo 'no such package')" >&2; exit 127; } ;;
	*)  download || {  # the package list is empty, or names a version that the mirror no longer has
		[ "$(id -u)" = 0 ] || die "no package linux-image-${K:-$WANT-amd64}; try 'apt-get update' as root; SANDBOX_VM=0 leaves the guest out"
		update && download || die "can't fetch the package linux-image-${K:-$WANT-amd64}; SANDBOX_VM=0 leaves the guest out"
	} ;;
	esac
	rm -rf "$VM/k-$K"
	for deb in "$VM"/new/*.deb; do dpkg -x "$deb" "$VM/k-$K"; done
	[ -e "$VM/k-$K/lib" ] || ln -s usr/lib "$VM/k-$K/lib"    # where Debian 13 has the modules, and from 7.x on the kernel
	[ -e "$VM/k-$K/boot/vmlinuz-$K" ] || { mkdir -p "$VM/k-$K/boot"; ln -s "../lib/modules/$K/vmlinuz" "$VM/k-$K/boot/vmlinuz-$K"; }
	depmod -b "$VM/k-$K" "$K"
	[ "$WANT" != newest ] || echo "$K" > "$VM/newest"
	touch "$VM/k-$K/.ok"
	rm -r "$VM/new"
}
make_initrd() {    # busybox, the modules that / needs in the order of their dependencies, and the init below
	local T n=10 m f
	T=$(mktemp -d) && mkdir "$T"/{bin,m,proc,dev,lower,rw,job,root}
	cp "$(command -v busybox)" "$T/bin/busybox"
	for f in $(for m in virtio_pci virtio_console virtio_rng 9pnet_virtio 9p overlay; do
		modprobe -d "$VM/k-$K" -S "$K" --show-depends "$m"; done | awk '/^insmod/ && !s[$2]++ {print $2}'); do
		case $f in *.xz) xz -dc "$f" ;; *) cat "$f" ;; esac > "$T/m/$n.ko"; n=$((n + 1))
	done
	cat > "$T/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
for m in /m/*.ko; do insmod $m || echo "insmod $m failed"; done
for w in $(cat /proc/cmdline); do case $w in vm.*) eval "${w#vm.}";; esac; done
O=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,$O,cache=loose host /lower || poweroff -f
mount -t tmpfs -o mode=755,size=75% rw /rw; mkdir -m 755 /rw/u /rw/w
mount -t overlay -o lowerdir=/lower,upperdir=/rw/u,workdir=/rw/w root /root || poweroff -f
mount -t tmpfs -o mode=1777 tmp /root/tmp; mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/vm-modules                            # not below /usr, which has nothing else mounted in it
mount -t 9p -o ro,$O,cache=loose mods /root/run/vm-modules || poweroff -f
rm -rf /root/lib/modules; ln -s /run/vm-modules /root/lib/modules
mount -t 9p -o $O,cache=loose job /job || poweroff -f
cp /job/.guest /root/run/vm-guest
job=$(cat /job/.dir); mkdir -p "/root$job"; mount --move /job "/root$job"
mkdir -p /root/run/systemd/system                        # for VM_APPEND=vm.init=/lib/systemd/systemd
printf '%s\n' '[Unit]' Wants=dbus.service After=dbus.service '[Service]' Type=exec Delegate=yes \
  'ExecStart=/bin/bash /run/vm-guest' > /root/run/systemd/system/vmjob.service
rm -f /root/.dockerenv    # or systemd takes the guest for a container
mount --move /dev /root/dev; mount --move /proc /root/proc
exec switch_root /root ${init:-/bin/bash /run/vm-guest}
INIT
	chmod 755 "$T/init"
	(cd "$T" && find . | cpio -o -H newc --quiet) > "$VM/initrd.new"
	mv "$VM/initrd.new" "$VM/initrd-$K.cpio"
	rm -rf "$T"
}

"$here/install.sh" qemu-system-x86 busybox-static kmod cpio xz-utils iproute2 "${more[@]}" || die "packages are missing; SANDBOX_VM=0 leaves the guest out"
for c in qemu-system-x86_64 busybox depmod cpio xz ip flock; do command -v $c >/dev/null || die "no $c command"; done
mkdir -p "$VM"
exec 9> "$VM/.lock"; flock 9       # guests may start at the same time, in an empty cache too
WANT=${VM_KERNEL:-6.12} apt=()
K=$(cached "$WANT")
[ -n "$K" ] && [ -e "$VM/k-$K/.ok" ] || unpack_kernel
[ "$VM/initrd-$K.cpio" -nt "$0" ] || make_initrd
exec 9>&-
[ -z "${VM_PREPARE:-}" ] || exit 0

# --- every time: the job, QEMU, the status ---

QEMU='' OWN_JOB=''
cleanup() { [ -z "$QEMU" ] || kill "$QEMU" 2>/dev/null || :; [ -z "$OWN_JOB" ] || rm -rf "$OWN_JOB"; }
trap cleanup EXIT
trap 'exit 143' INT TERM
JOB=${VM_JOB:-$(mktemp -d "$VM/job.XXXXXX")}
[ -n "${VM_JOB:-}" ] || OWN_JOB=$JOB
mkdir -p "$JOB"; JOB=$(cd "$JOB" && pwd)
rm -f "$JOB"/.{rc,console,in}
mkfifo "$JOB/.in"    # stdin that never ends: at its end QEMU closes the port and the guest's writes block
printf '%s\n' "$JOB" > "$JOB/.dir"

{ printf 'export VM_JOB=%q PATH=%q HOME=%q\nas=%q cwd=%q cmd=(' "$JOB" "$PATH" "${HOME:-/root}" "$AS" "$PWD"
  printf ' %q' "$@"; echo ')'; cat <<'EOT'; } > "$JOB/.guest"
[ $$ != 1 ] || {     # as init (not under systemd): mount the rest
mount -t sysfs sys /sys; mount -t cgroup2 -o nsdelegate,memory_recursiveprot cg /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm; mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm; ln -sfn /proc/self/fd /dev/fd
for i in 0:in 1:out 2:err; do ln -sfn /proc/self/fd/${i%:*} /dev/std${i#*:}; done
ip link set lo up; hostname vm; }
# exec is 1.5 times faster with these three copied up from 9p into the overlay's tmpfs
chmod +r $(readlink -f /lib64/ld-linux-x86-64.so.2 /lib/x86_64-linux-gnu/libc.so.6) /etc/ld.so.cache
for p in /sys/class/virtio-ports/*; do read -r n < $p/name; [ "$n" = out ] && break; done
export VM_GUEST=1 TMPDIR=/tmp; unset XDG_RUNTIME_DIR; cd "$cwd" 2>/dev/null || cd /
as_user() { setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all "$@"; }
case $as in *user)   # uid 1000: an account with subordinate ids, a home, a runtime directory
getent passwd 1000 > /run/vm-account || {
echo 'vmuser:*:1000:1000::/run/vm-home:/bin/sh' | tee /run/vm-account >> /etc/passwd
getent group 1000 > /dev/null || echo 'vmuser:*:1000:' >> /etc/group; }
IFS=: read -r name _ < /run/vm-account
echo "$name:100000:65536" | tee /etc/subuid > /etc/subgid
export HOME=/run/vm-home XDG_RUNTIME_DIR=/run/user/1000
for d in "$HOME" "$XDG_RUNTIME_DIR"; do [ $as = systemd-user -a $d != "$HOME" ] || install -d -m 700 -o 1000 -g 1000 $d; done
esac
[ $as != systemd-user ] || export DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus
unset INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID    # of vmjob.service
{ export -p; declare -p cmd; printf 'cd %q\nexec "${cmd[@]}"\n' "$PWD"; } > /run/vm-cmd
ulimit -n 20000
case $as in          # a service of its own, so that its cgroup has nobody else in it
root) run=(bash) ;;
user) run=(as_user bash) ;;
systemd) run=(systemd-run -q --wait --pipe bash) ;;
systemd-service) run=(systemd-run -q --wait --pipe -p Delegate=yes bash) ;;
systemd-user) systemctl start user@1000.service
run=(as_user systemd-run --user -q --wait --pipe -p Delegate=yes bash) ;;
esac
mkfifo -m 666 /run/vm-out; cat /run/vm-out > /dev/${p##*/} & cat=$!
"${run[@]}" /run/vm-cmd < /dev/null > /run/vm-out 2>&1; rc=$?
# a process that outlives CMD and keeps its stdout open must not keep the guest up, and is a failure
(sleep 20; touch /run/vm-late; echo "guest: a process outlived the command and keeps its stdout open" > /run/vm-out
sleep 1; kill $cat) & wait $cat
[ ! -e /run/vm-late ] || [ $rc != 0 ] || rc=123
echo $rc > "$VM_JOB/.rc"; sync; echo o > /proc/sysrq-trigger; sleep 60
EOT

# Only root may give files any owner; for an ordinary user, what the guest writes into VM_JOB is the user's.
model=passthrough; [ "$(id -u)" = 0 ] || model=none
share() { printf 'local,path=%s,mount_tag=%s,security_model=%s,multidevs=remap%s' "${1//,/,,}" "$2" "$model" "${3:-}"; }
rc=0
timeout -k 5 "$TIMEOUT" nice -n 10 qemu-system-x86_64 "${accel[@]}" -smp "$CPUS" -m "$MEM" \
	-nodefaults -no-user-config -display none -no-reboot -kernel "$VM/k-$K/boot/vmlinuz-$K" -initrd "$VM/initrd-$K.cpio" \
	-append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off norandmaps transparent_hugepage=madvise init_on_alloc=0 $append" \
	-serial "file:$JOB/.console" -device virtio-rng-pci -device virtio-serial-pci \
	-chardev stdio,id=out,signal=off -device virtserialport,chardev=out,name=out \
	-virtfs "$(share / host ,readonly=on)" \
	-virtfs "$(share "$VM/k-$K/lib/modules" mods ,readonly=on)" \
	-virtfs "$(share "$JOB" job)" <> "$JOB/.in" &
QEMU=$!; wait $QEMU || rc=$?; QEMU=''
[ "$rc" != 124 ] || { echo "guest: no end after ${TIMEOUT}s (VM_TIMEOUT); its console:" >&2; tail -n 20 "$JOB/.console" >&2; exit 124; }
[ -s "$JOB/.rc" ] || { echo "guest: died (qemu: $rc); its console:" >&2; tail -n 80 "$JOB/.console" >&2 || :; exit 125; }
rc=$(cat "$JOB/.rc")
exit "$rc"
