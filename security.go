package sandbox

import (
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox/internal/spec"
)

// WithCapabilities lets the command keep the named capabilities, such as "CAP_NET_BIND_SERVICE", in
// its own user namespace. They are permitted, effective and bounding, for other users than root
// inheritable and ambient too, and the default seccomp profile allows the calls that go with them.
// They give no power over anything outside the run. CAP_SYS_ADMIN, which would let it change its
// mounts, and CAP_SETFCAP, which would let it give programs in binds capabilities of the host, are
// refused. Several calls add up. Default: none.
func WithCapabilities(names ...string) Option {
	return func(c *spec.Spec) {
		c.Security.Capabilities = append(slices.Clip(c.Security.Capabilities), names...)
	}
}

// WithSeccomp replaces the default seccomp profile with one in the form of the OCI runtime
// specification; nil means the default one. The profile must not be changed afterwards, and
// sandboxes share what they have prepared only if they have the very same one. It must allow what
// the run needs from execve on, and decides by itself about set-uid bits: see WithSetID. A profile
// that can't be expressed exactly is an error.
func WithSeccomp(profile *specs.LinuxSeccomp) Option {
	return func(c *spec.Spec) { c.Security.Seccomp, c.Security.NoSeccomp = profile, false }
}

// WithSetID lets the run give files set-uid and set-gid bits, as dpkg, tar -p and install -m 4755
// do, and chmod g+s of a directory. The default seccomp profile, of which this is a part, refuses
// this with EPERM ("Operation not permitted"), and openat2 with ENOSYS, since its mode can't be
// seen. Inside, the bits do nothing. But a program that a run makes in a writable bind belongs to
// the owner of the bind's directory on the host, and with a set-uid bit whoever executes it there
// acts for that owner, root for one. Use it if nothing is bound writable, neither for this run nor
// for one that can pass it open files, or if the host has the bind's file system mounted nosuid. In
// a cell of runsc it lets the run use ptrace too, by which gVisor's filters are got around.
func WithSetID() Option {
	return func(c *spec.Spec) { c.Security.SetID = true }
}

// Refusal is a system call that the filter of a run refused with an errno, or one that the kernel
// was bound to fail at a path.
type Refusal struct {
	// Call is the call's name, or "unknown" if it is none of this architecture's known calls.
	Call string
	// Path is the absolute path in the run, with links followed, that is missing (ENOENT), that
	// is on something read-only (EROFS), or whose permissions, or mount, do not allow what the
	// call asks for (EACCES), which may be a directory on the way. It is "" for a call that the
	// filter refused. The run chooses it.
	Path string
	// Errno is what the call failed with. Most programs do without a call that fails with
	// ENOSYS, such as clone3, which threads are first tried with.
	Errno syscall.Errno
	// Option is the option with which the filter would let the call pass: "WithSetID",
	// "WithCapabilities", or else "WithSeccomp", with a profile that allows it; or with which
	// what is at Path would be there ("WithReadOnlyBind") or could be changed
	// ("WithWritableRoot"; "WithBind" or "WithScratch" in place of the read-only one). It is ""
	// if no option would, as for permissions. The kernel, which decides then, may refuse it all
	// the same.
	Option string
	// Capability is what WithCapabilities would be given, or "".
	Capability string
	// Comm is the name of the process, which it may set as it likes: proc(5), /proc/PID/comm.
	Comm string
	// PID is the id of the thread as this process sees it.
	PID int
}

// WithRefusals has f called for the system calls that the seccomp filter refuses with an errno, the
// default profile's or that of WithSeccomp, once for each call and errno; and for the paths that
// are missing or denied to open, stat, access, execve, chdir, mkdir, unlink and their relatives,
// once for each path and errno: 256 times at most of each kind. A path that this machine does not
// have either is not reported as missing, as no option would show it, and programs look for much
// that is nowhere. f is called by one goroutine, one call after the other, while the run goes on,
// and never after Wait has returned, unless it takes longer than WithWaitDelay allows. What a
// command of Exec was refused is reported as the run's: the option belongs to the run. f must not
// wait for the run's end.
//
// It is for finding out why something does not work. The filter allows and refuses the same, but
// calls of both kinds wait for this process: for its filter's errno, or until it has looked at the
// path. After the first 1000 calls that are refused, each takes a millisecond, and after looks that
// have kept a CPU busy for a second, they may do so for a quarter of each further second, so
// that a flood of them costs this process little. The look is at what the process has there before
// its call, so a process that changes it at the same time can make the report wrong, and nothing
// else. Not reported is what this process can't find out: what is in /proc, on a network or FUSE
// file system, or, for an ordinary user, in directories that it may not enter itself.
//
// A call that a signal interrupts meanwhile fails with EINTR if its handler has no SA_RESTART. A
// run can't have another seccomp listener: EBUSY. A filter of its own that returns
// SECCOMP_RET_TRACE is passed over for calls with a path. Calls for which a profile ends the
// process are not reported.
//
// Default, and nil: none, which costs nothing. A profile of WithSeccomp must allow sendmsg and
// close.
func WithRefusals(f func(Refusal)) Option {
	return func(c *spec.Spec) {
		c.Security.Notify, c.Supervision.Refused = f != nil, nil
		if f != nil {
			c.Supervision.Refused = func(r spec.Refusal) { f(Refusal(r)) }
		}
	}
}

// WithoutSeccomp runs without a seccomp filter. The kernel's whole interface is then open to the
// run, except for what namespaces and the lack of capabilities take away, and so are set-uid bits:
// see WithSetID.
func WithoutSeccomp() Option {
	return func(c *spec.Spec) { c.Security.Seccomp, c.Security.NoSeccomp = nil, true }
}
