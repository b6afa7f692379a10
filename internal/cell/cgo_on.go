//go:build linux && cgo

package cell

/*
#include <stdlib.h>
#include <sys/auxv.h>

// Before that of libcontainer, whose priority is the lowest, does what the environment says. In
// a set-uid program that is the caller's to say, and not to be done.
__attribute__((constructor(101))) static void sandbox_distrust(void)
{
	if (getauxval(AT_SECURE))
		unsetenv("_LIBCONTAINER_INITPIPE");
}
*/
import "C"

// Its C code enters the cell's namespaces before the Go runtime starts.
import _ "github.com/opencontainers/runc/libcontainer/nsenter"

const cgo = true
