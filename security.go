package sandbox

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox/internal/spec"
)

// WithCapabilities lets the command keep the named capabilities, such as "CAP_NET_BIND_SERVICE", in
// its own user namespace. They are permitted, effective, inheritable, ambient and bounding, and the
// default seccomp profile allows the calls that go with them. They give no power over anything
// outside the run. CAP_SYS_ADMIN, which would let it change its mounts, and CAP_SETFCAP, which
// would let it give programs in binds capabilities of the host, are refused. Several calls add up.
// Default: none.
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
// acts for that owner, root for one. Use it if nothing is bound writable, or if the host has the
// bind's file system mounted nosuid.
func WithSetID() Option {
	return func(c *spec.Spec) { c.Security.SetID = true }
}

// WithoutSeccomp runs without a seccomp filter. The kernel's whole interface is then open to the
// run, except for what namespaces and the lack of capabilities take away, and so are set-uid bits:
// see WithSetID.
func WithoutSeccomp() Option {
	return func(c *spec.Spec) { c.Security.Seccomp, c.Security.NoSeccomp = nil, true }
}
