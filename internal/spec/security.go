package spec

import (
	"slices"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox/internal/fault"
)

// Security is what the command may ask the kernel for.
type Security struct {
	Capabilities []string
	Seccomp      *specs.LinuxSeccomp // nil for the default profile
	NoSeccomp    bool
	SetID        bool // set-uid and set-gid bits can be given
	Notify       bool // the filter tells of what it refuses, for Supervision.Refused
}

// Refusal is sandbox.Refusal, which has its documentation.
type Refusal struct {
	Call       string
	Path       string
	Errno      syscall.Errno
	Option     string
	Capability string
	Comm       string
	PID        int
}

// Equal reports whether both allow the same. Profiles are the same if they are one.
func (s *Security) Equal(o *Security) bool {
	return slices.Equal(s.Capabilities, o.Capabilities) && s.Seccomp == o.Seccomp && s.NoSeccomp == o.NoSeccomp && s.SetID == o.SetID && s.Notify == o.Notify
}

// capabilities are the names in the order of their numbers in linux/capability.h.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
	"CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// GivenCapabilities returns the names of all that runs can have.
func GivenCapabilities() []string {
	return slices.DeleteFunc(slices.Clone(capabilities), func(name string) bool { return name == "CAP_SYS_ADMIN" || name == "CAP_SETFCAP" })
}

// CapabilityNumber returns the number of a capability that exists.
func CapabilityNumber(name string) int { return max(slices.Index(capabilities, name), 0) }

// Check returns what is wrong with it, except for what a profile says.
func (s *Security) Check() (errs []error) {
	for _, name := range s.Capabilities {
		if !slices.Contains(capabilities, name) {
			errs = append(errs, fault.Option("WithCapabilities", "%q is unknown: names look like CAP_NET_BIND_SERVICE", name))
		} else if name == "CAP_SYS_ADMIN" {
			errs = append(errs, fault.Option("WithCapabilities", "CAP_SYS_ADMIN is not given to runs: with it a run could undo read-only mounts, those of the host's directories too"))
		} else if name == "CAP_SETFCAP" {
			errs = append(errs, fault.Option("WithCapabilities", "CAP_SETFCAP is not given to runs: with it a run could give a program in a bind capabilities that hold on the host"))
		}
	}
	if s.SetID && (s.Seccomp != nil || s.NoSeccomp) {
		errs = append(errs, fault.Option("WithSetID", "means nothing with WithSeccomp or WithoutSeccomp, which replace the profile that it changes: leave one of the two out"))
	}
	if s.Notify && s.NoSeccomp {
		errs = append(errs, fault.Option("WithRefusals", "with WithoutSeccomp nothing is refused by a filter: leave one of the two out"))
	}
	return errs
}
