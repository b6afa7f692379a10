//go:build linux

package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cellkit/sandbox/internal/execstd/exec"
	"github.com/cellkit/sandbox/internal/testkit"
)

// HelperEnv names the variable that has the path of the test binary of os/exec itself: it is what
// runs inside.
const HelperEnv = "SANDBOX_TEST_EXEC"

// internal/testenv

// NoSpecialBuildTypes and what Must has in its name say what the test needs, which all is there.
const NoSpecialBuildTypes = false

func MustHaveExec(testing.TB)           {}
func MustHaveGoBuild(testing.TB)        {}
func MustHaveSymlink(testing.TB)        {}
func MustInternalLink(testing.TB, bool) {}

func SkipFlaky(t testing.TB, issue int) { t.Skipf("flaky: golang/go#%d", issue) }

func Executable(testing.TB) string { return os.Getenv(HelperEnv) }

func GOROOT(testing.TB) string { return os.Getenv("GOROOT") }

func GoToolPath(t testing.TB) string { return filepath.Join(GOROOT(t), "bin/go") }

// Command is for building programs of os/exec's own.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), name, args...)
	c.Dir = filepath.Join(GOROOT(t), "src/os/exec")
	return c
}

func SyscallIsNotSupported(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, errors.ErrUnsupported)
}

// os/exec/internal/fdtest

func Exists(fd uintptr) bool {
	var st syscall.Stat_t
	return syscall.Fstat(int(fd), &st) == nil
}

// internal/poll

func IsPollDescriptor(fd uintptr) bool {
	to, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]"
}

// internal/syscall/unix

func KernelVersionGE(major, minor int) bool { return testkit.Kernel(major, minor) }
