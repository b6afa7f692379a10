//go:build linux

package testkit

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const helperVar = "SANDBOX_TEST_HELPER"

// HelperEnv in the environment of a test binary makes it a helper program; its first argument says
// which.
const HelperEnv = helperVar + "=1"

var helpers = map[string]func(args []string) error{}

// AddHelper adds a program that this test binary can act as, on the host or in a run. It must be
// called while packages are initialized.
func AddHelper(name string, run func(args []string) error) {
	if helpers[name] != nil {
		panic("two helpers " + name)
	}
	helpers[name] = run
}

// HelperArgs returns the arguments that make the test binary a helper program.
func HelperArgs(name string, args ...string) []string {
	if helpers[name] == nil {
		panic("no helper " + name)
	}
	return append([]string{name}, args...)
}

// HelperCommand returns the command that runs a helper program on the host.
func HelperCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", HelperArgs(name, args...)...)
	cmd.Env = append(os.Environ(), HelperEnv)
	return cmd
}

func runHelper(args []string) int {
	if len(args) == 0 || helpers[args[0]] == nil {
		fmt.Fprintf(os.Stderr, "no helper %q\n", args)
		return 2
	}
	if err := helpers[args[0]](args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Alloc is a helper program that uses that many MiB of memory and says so.
func Alloc(args []string) error {
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(-1, 0, mib<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(mem); i += 4096 {
		mem[i] = 1
	}
	fmt.Println("allocated")
	return nil
}

// Spin is a helper program that keeps a CPU busy until it has used that much CPU time.
func Spin(args []string) error {
	d, err := time.ParseDuration(args[0])
	for err == nil {
		var used unix.Rusage
		err = unix.Getrusage(unix.RUSAGE_SELF, &used)
		if time.Duration(used.Utime.Nano()+used.Stime.Nano()) > d {
			break
		}
	}
	return err
}
