package sandbox

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// WithCapabilities lets the command keep the named capabilities, such as
// "CAP_NET_BIND_SERVICE", in its own user namespace. They are permitted,
// effective, inheritable, ambient and bounding, and the default seccomp profile
// allows the calls that go with them. They give no power over anything outside
// the run. CAP_SYS_ADMIN, which would let it change its mounts, and CAP_SETFCAP, which would let it give programs
// in binds capabilities of the host, are refused. Several calls
// add up. Default: none.
func WithCapabilities(names ...string) Option {
	return func(c *config) {
		c.security.capabilities = append(slices.Clip(c.security.capabilities), names...)
	}
}

// WithSeccomp replaces the default seccomp profile by one in the form of the OCI
// runtime specification; nil is the default one. It must allow what the run needs from execve on, and set-uid bits are
// its own business then: see WithSetID. A profile that can't be expressed exactly is an error.
func WithSeccomp(profile *specs.LinuxSeccomp) Option {
	return func(c *config) { c.security.seccomp, c.security.noSeccomp = profile, false }
}

// WithSetID lets the run give files set-uid and set-gid bits, as dpkg, tar -p and install -m 4755
// do, and chmod g+s of a directory. The default seccomp profile, of which this is a part, refuses
// that with EPERM ("Operation not permitted"), and openat2 with ENOSYS, since its mode can't be
// seen. Inside, the bits do nothing. But a program that a run makes in a writable bind belongs to
// the owner of the bind's directory on the host, and with a set-uid bit whoever executes it there
// acts for that owner, root for one. Use it where nothing is bound writable, or where the host has
// the bind's file system mounted nosuid.
func WithSetID() Option {
	return func(c *config) { c.security.setID = true }
}

// WithoutSeccomp runs without a seccomp filter. The kernel's whole interface is
// then open to the run, except for what namespaces and the lack of
// capabilities take away, and so are set-uid bits: see WithSetID.
func WithoutSeccomp() Option {
	return func(c *config) { c.security.seccomp, c.security.noSeccomp = nil, true }
}

// capabilityNumbers by name, in the order of linux/capability.h.
var capabilityNumbers = func() map[string]int {
	names := strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE
		SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
		SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
		WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
	m := make(map[string]int, len(names))
	for i, n := range names {
		m["CAP_"+n] = i
	}
	return m
}()

func (s *securityConfig) check() (errs []error) {
	for _, name := range s.capabilities {
		if _, ok := capabilityNumbers[name]; !ok {
			errs = append(errs, optionError("WithCapabilities", "%q is unknown: names look like CAP_NET_BIND_SERVICE", name))
		} else if name == "CAP_SYS_ADMIN" {
			errs = append(errs, optionError("WithCapabilities", "CAP_SYS_ADMIN is not given to runs: with it a run could undo read-only mounts, those of the host's directories too"))
		} else if name == "CAP_SETFCAP" {
			errs = append(errs, optionError("WithCapabilities", "CAP_SETFCAP is not given to runs: with it a run could give a program in a bind capabilities that hold on the host"))
		}
	}
	if s.setID && (s.seccomp != nil || s.noSeccomp) {
		errs = append(errs, optionError("WithSetID", "means nothing with WithSeccomp or WithoutSeccomp, which replace the profile that it changes: leave one of the two out"))
	}
	return errs
}
