package spec

import (
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox/internal/fault"
)

// Security is what the command may ask the kernel for.
type Security struct {
	Capabilities []string
	Seccomp      *specs.LinuxSeccomp // nil for the default profile
	NoSeccomp    bool
	SetID        bool // set-uid and set-gid bits can be given
}

// Equal reports whether both allow the same. Profiles are the same if they are one.
func (s *Security) Equal(o *Security) bool {
	return slices.Equal(s.Capabilities, o.Capabilities) && s.Seccomp == o.Seccomp && s.NoSeccomp == o.NoSeccomp && s.SetID == o.SetID
}

// capabilities by name, with their numbers in linux/capability.h.
var capabilities = sync.OnceValue(func() map[string]int {
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
})

// CapabilityNumber returns the number of a capability that exists.
func CapabilityNumber(name string) int { return capabilities()[name] }

// Check returns what is wrong with it, except for what a profile says.
func (s *Security) Check() (errs []error) {
	for _, name := range s.Capabilities {
		if _, ok := capabilities()[name]; !ok {
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
	return errs
}
