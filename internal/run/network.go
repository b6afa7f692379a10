//go:build linux

package run

import (
	"os"

	"github.com/cellkit/sandbox/internal/spec"
)

// keepsNetwork reports whether a run may begin in a network namespace that another was in before,
// and leave it to a later one: if nothing of it can have a right to the namespace, and it can hand
// nothing of it to anybody. What is counted in a namespace shows its sockets, but not who has
// opened a file of /proc/net, through which the next run could be watched. Descriptors go through
// sockets alone: unix(7), SCM_RIGHTS. So it must share no directory with others in which there
// could be one, and be given none. Filters that are not ours may allow sockets of which nothing is
// counted.
func keepsNetwork(c *spec.Spec) bool {
	n, s, r := &c.Namespaces, &c.Security, &c.Root
	if n.Network != spec.NetworkNone || n.HostIDs || len(s.Capabilities) > 0 || s.Seccomp != nil || s.NoSeccomp ||
		r.Rootfs.Layers != nil && r.Image == "" || r.Upper != nil || c.Streams.Function != nil {
		return false
	}
	for _, m := range r.Mounts {
		if m.IsGiven() {
			return false
		}
	}
	for _, f := range c.Streams.Files {
		info, err := f.Stat()
		if err != nil || info.IsDir() || info.Mode()&os.ModeSocket != 0 {
			return false
		}
	}
	return true
}
