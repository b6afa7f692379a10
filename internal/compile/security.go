//go:build linux

package compile

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
)

// addPrivileges makes the command the run's user, with no capabilities except those asked for:
// capabilities(7).
func (k *compiler) addPrivileges() {
	k.addGroupPrivileges()
	if !k.shape.SingleID {
		uid := program.Int(k.c.Namespaces.UID)
		k.b.Call("setresuid", unix.SYS_SETRESUID, uid, uid, uid)
	}
	k.addUserPrivileges()
}

// keptCapabilities returns those that were asked for, as bits.
func (k *compiler) keptCapabilities() (keep uint64) {
	for _, name := range k.c.Security.Capabilities {
		keep |= 1 << spec.CapabilityNumber(name)
	}
	return keep
}

// addGroupPrivileges is what takes the rights of root.
func (k *compiler) addGroupPrivileges() {
	b, keep, zero := k.b, k.keptCapabilities(), program.Int(0)
	b.Stage("privileges")
	if k.shape.HostIDs {
		// Before the run becomes its user: otherwise the keyring would count as one of the
		// 200 that the host's user of that id may have.
		k.addKeyring()
	}
	if keep != 0 {
		b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS"), program.Int(1), zero, zero, zero)
	}
	k.addGroups()
	if !k.shape.SingleID {
		gid := program.Int(k.c.Namespaces.GID)
		b.Call("setresgid", unix.SYS_SETRESGID, gid, gid, gid)
	}
}

// addUserPrivileges is what the run's user may do. It leaves the command without a right that the
// user does not have.
func (k *compiler) addUserPrivileges() {
	b, keep, zero := k.b, k.keptCapabilities(), program.Int(0)
	if !k.shape.HostIDs {
		k.addKeyring()
	}
	// execve(2) gives root what is bounding, and others what is ambient. If they were ambient
	// for root, too, a program that becomes another user, and then sets again what it found,
	// would fail.
	ambient := keep
	if k.c.Namespaces.UID == 0 {
		ambient = 0
	}
	k.addCapset(keep, ambient)
	k.addUndumpable() // for the memory that the command still shares with PID 1
	for i := 0; i <= k.m.LastCap; i++ {
		if ambient&(1<<i) != 0 {
			b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"),
				program.Int(unix.PR_CAP_AMBIENT_RAISE, "PR_CAP_AMBIENT_RAISE"), program.Int(i), zero, zero)
		}
	}
	b.Call("umask", unix.SYS_UMASK, program.Int(defaultUmask, "022"))
}

const defaultUmask = 0o022

// addGroups takes the groups of the fork server from the command, or, if all runs have the same id,
// leaves it those that the caller's own namespace has. An image's groups are set if that is
// possible, but never if they would be the host's.
func (k *compiler) addGroups() {
	b, n := k.b, &k.c.Namespaces
	groups := n.Groups
	if n.Image.Groups && (k.shape.SingleID || k.shape.HostIDs) {
		groups = nil
	}
	if !k.shape.SingleID && (len(groups) == 0 || n.Image.Groups) {
		b.Call("setgroups", unix.SYS_SETGROUPS, program.Int(0), program.Int(0, "NULL"))
	}
	if len(groups) == 0 {
		return
	}
	list := make([]uint32, len(groups))
	for i, gid := range groups {
		list[i] = uint32(gid)
	}
	call := b.Call
	if n.Image.Groups {
		call = b.CallMaybe
	}
	b.StageFor(program.Groups, "WithGroups")
	call("setgroups", unix.SYS_SETGROUPS, program.Int(len(list)), b.Bytes(appendUint32s(nil, list...), fmt.Sprint(groups)))
	b.Stage("privileges")
}

// addUndumpable keeps processes with the same id from a process's memory. A change of ids sets this
// to the sysctl fs.suid_dumpable: proc(5), kernel/cred.c, commit_creds.
func (k *compiler) addUndumpable() {
	zero := program.Int(0)
	k.b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_DUMPABLE, "PR_SET_DUMPABLE"), zero, zero, zero, zero)
}

// addBounding drops all capabilities from the bounding set, except for those in keep.
func (k *compiler) addBounding(keep uint64) {
	zero := program.Int(0)
	for i := 0; i <= k.m.LastCap; i++ {
		if keep&(1<<i) == 0 {
			k.b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"), program.Int(i), zero, zero, zero)
		}
	}
}

// addKeyring gives the run a session keyring of its own in place of the cell's: keyctl(2). If all
// runs have the same id, they share its quota of 200 keys.
func (k *compiler) addKeyring() {
	add := k.b.Call
	if k.shape.SingleID {
		add = k.b.CallMaybe
	}
	add("keyctl", unix.SYS_KEYCTL, program.Int(unix.KEYCTL_JOIN_SESSION_KEYRING, "KEYCTL_JOIN_SESSION_KEYRING"), program.Int(0, "NULL"))
}

// addCapset makes the calling process's effective and permitted capabilities those in keep, and its
// inheritable ones those in inheritable: capset(2), version 3, two structs of 32 bits each.
func (k *compiler) addCapset(keep, inheritable uint64) {
	b := k.b
	var head, sets []byte
	head = appendUint32s(head, unix.LINUX_CAPABILITY_VERSION_3, 0)
	for shift := 0; shift < 64; shift += 32 {
		half := uint32(keep >> shift)
		sets = appendUint32s(sets, half, half, uint32(inheritable>>shift))
	}
	b.Call("capset", unix.SYS_CAPSET, b.Bytes(head, "{_LINUX_CAPABILITY_VERSION_3, 0}"), b.Bytes(sets, fmt.Sprintf("%#x", keep)))
}

// filterFirst reports whether the filter is loaded before the command is received. That takes 0.1
// ms off the start of a prepared run, but a filter of the caller's own may refuse the calls in
// between.
func filterFirst(s *spec.Security) bool { return s.Seccomp == nil && !s.NoSeccomp }

// addSeccomp sets no_new_privs and loads the filter, if there is to be one: seccomp(2).
func (k *compiler) addSeccomp() error {
	f, err := Filter(&k.c.Security)
	if err != nil {
		return err
	}
	b, zero := k.b, program.Int(0)
	b.Stage("seccomp")
	b.Call("prctl", unix.SYS_PRCTL, program.Int(unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"), program.Int(1), zero, zero, zero)
	if f == nil {
		return nil
	}
	load := program.Int(unix.SECCOMP_SET_MODE_FILTER, "SECCOMP_SET_MODE_FILTER")
	if k.c.Security.Notify {
		if err := checkNotify(f); err != nil {
			return err
		}
		if f, err = f.Notifying(); err != nil {
			return fault.Option("WithRefusals", "%w", err)
		}
	}
	text := fmt.Sprintf("{%d instructions}", f.Len())
	fprog := b.Struct(text, program.Int(f.Len()), b.Bytes(f.Bytes(), text))
	if !k.c.Security.Notify {
		b.Call("seccomp", unix.SYS_SECCOMP, load, program.Int(f.Flags), fprog)
		return nil
	}
	b.Stage("WithRefusals")
	listener := b.CallTo("seccomp", unix.SYS_SECCOMP, load, program.Int(f.Flags, "SECCOMP_FILTER_FLAG_NEW_LISTENER"), fprog)
	b.SendFileWith(program.Listener, listener)
	b.Close(listener) // whoever has it decides about calls
	return nil
}

// checkNotify refuses a filter that would refuse to hand over its own listener: that call would
// wait for ever for an answer.
func checkNotify(f *seccomp.Filter) error {
	for name, c := range map[string]seccomp.Call{"sendmsg": seccomp.Own("sendmsg", 0, 0, unix.MSG_NOSIGNAL), "close": seccomp.Own("close")} {
		if !f.Allows(c) {
			return fault.Option("WithRefusals", "the profile of WithSeccomp must allow sendmsg and close, by which the run tells of what is refused, and refuses %s", name)
		}
	}
	return nil
}

func appendUint32s(b []byte, values ...uint32) []byte {
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}
