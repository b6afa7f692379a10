//go:build linux && cgo

package wall

/*
#include <stdlib.h>
#include <sys/auxv.h>

// This runs before libcontainer's constructor, whose priority is the lowest, obeys the environment.
// In a set-uid program the environment comes from the caller and must not be obeyed.
__attribute__((constructor(101))) static void sandbox_distrust(void)
{
	if (getauxval(AT_SECURE))
		unsetenv("_LIBCONTAINER_INITPIPE");
}
*/
import "C"

import (
	"os"
	"strings"

	// The package's C code enters the cell's namespaces before the Go runtime starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

// Default returns the Wall of cells for which none was chosen. Where no cgroups are mounted at all
// libcontainer makes no container, not even one without a cgroup.
func Default() Wall {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil && !strings.Contains(string(mounts), " - cgroup") {
		return Builtin()
	}
	return Libcontainer()
}
