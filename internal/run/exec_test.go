//go:build linux

package run_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/program"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/spec"
)

// command returns what makes a further command of a name.
func command(name string, opts ...sandbox.Option) func(*spec.Spec) {
	return func(c *spec.Spec) {
		for _, o := range append(opts, sandbox.WithCommand(name)) {
			o(c)
		}
	}
}

func startHold(t *testing.T, opts ...sandbox.Option) *run.Run {
	r, err := made(append(opts, sandbox.WithHold())...).Start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() {
		r.Close()
		_, err := r.Wait()
		require.NoError(t, err)
	})
	return r
}

func TestExecCompilesOnce(t *testing.T) {
	r := startHold(t)
	plan, first, err := r.ExecPrograms(command("true"))
	require.NoError(t, err)
	again, second, err := r.ExecPrograms(command("true", sandbox.WithStdin(os.Stdin), sandbox.WithTimeout(time.Second)))
	require.NoError(t, err)
	require.Same(t, plan, again)
	require.Same(t, first, second)
	_, other, err := r.ExecPrograms(command("false"))
	require.NoError(t, err)
	require.NotSame(t, first, other)
}

// Every call by which a further command starts fails once. Each time the error names the call, and
// nothing of the command stays, and the run goes on.
func TestRootlessExecFaults(t *testing.T) {
	kinds := map[string][]sandbox.Option{"default": nil, "no filter": {sandbox.WithoutSeccomp()}, "terminal": nil}
	if hasHostIDs() {
		kinds["no user namespace"] = []sandbox.Option{sandbox.WithoutUserNamespace()}
	}
	for name, opts := range kinds {
		t.Run(name, func(t *testing.T) {
			r := startHold(t, opts...)
			set := command("true")
			if name == "terminal" {
				set = command("true", sandbox.WithTerminal(24, 80))
			}
			fine := func() {
				x, err := r.Exec(t.Context(), set)
				require.NoError(t, err)
				_, err = x.Wait()
				require.NoError(t, err)
				if x.Terminal() != nil {
					require.NoError(t, x.Terminal().Close())
				}
			}
			fine()
			good, hand, err := r.ExecPrograms(set)
			require.NoError(t, err)
			descriptors, processes := openDescriptors(t), descendants(t)
			step := 1
			if os.Getenv("VM_GUEST") == "1" {
				step = 9
			}
			for _, p := range []*program.Program{good.Run, hand} {
				for i := 0; i < p.Len(); i += step {
					errno := []unix.Errno{unix.EPERM, unix.EINVAL}[i%2]
					if i%16 == 0 { // takes a second: see endsWith
						errno = unix.ENOMEM
					}
					plan, last := *good, hand
					if p == hand {
						last = p.Failing(i, errno)
					} else {
						plan.Run = p.Failing(i, errno)
					}
					x, err := r.ExecWith(t.Context(), set, &plan, last)
					if err == nil {
						_, err = x.Wait()
						if x.Terminal() != nil {
							x.Terminal().Close()
						}
					}
					requireFault(t, err, errno, p.Call(i), p.MayFail(i) || i == p.Len()-1 && p == hand)
				}
			}
			fine()
			require.Eventually(t, func() bool { return openDescriptors(t) <= descriptors }, 10*time.Second, 10*time.Millisecond, "descriptors stay open")
			require.Eventually(t, func() bool { return descendants(t) <= processes }, 10*time.Second, 10*time.Millisecond, "processes stay")
		})
	}
}
