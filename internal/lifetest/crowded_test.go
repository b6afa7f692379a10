//go:build linux

package lifetest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestCrowded has a host process that runs out of descriptors. Its runs succeed or fail but do not
// hang, and limits hold.
func TestCrowded(t *testing.T) {
	testkit.Need(t, "root")
	out, err := testkit.HelperCommand(t.Context(), "crowded").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "fine\n", string(out))
	bootOnce(t)
	requireNothingLeft(t)
}

func crowded([]string) error {
	check(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: 256}))
	ctx := context.Background()
	hello := sandbox.New(sandbox.WithCommand("echo", "hello"))
	_, err := hello.Run(ctx)
	check(err)

	c := &crowd{}
	patience := testkit.Scale(10*time.Second, time.Minute)
	good := 0
	for free := range 30 {
		c.fill()
		c.leave(free)
		limited, cancel := context.WithTimeout(ctx, patience)
		out, err := hello.Output(limited)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			check(fmt.Errorf("with %d free descriptors a run hangs", free))
		case err == nil && string(out) != "hello\n":
			check(fmt.Errorf("with %d free descriptors a run wrote %q", free, out))
		case err == nil:
			good++
		}
	}
	c.leave(256)
	if good == 0 || good == 30 {
		check(fmt.Errorf("%d of 30 runs were good, so the others tell nothing", good))
	}

	busy := sandbox.New(sandbox.WithCommand("sh", "-c", "while :; do :; done"), sandbox.WithCPUTime(testkit.Scale(300*time.Millisecond, 3*time.Second)))
	p, err := busy.Start(ctx)
	check(err)
	c.fill()
	time.Sleep(testkit.Scale(500*time.Millisecond, 5*time.Second))
	c.leave(256)
	if _, err := p.Wait(); !errors.Is(err, sandbox.ErrCPUTime) {
		check(fmt.Errorf("the CPU time limit was forgotten: %w", err))
	}
	check(sandbox.Shutdown(ctx))
	fmt.Println("fine")
	return nil
}

// crowd holds descriptors that others need.
type crowd struct{ fds []int }

func (c *crowd) fill() {
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		c.fds = append(c.fds, fd)
	}
}

// leave closes n of the descriptors, or all.
func (c *crowd) leave(n int) {
	for ; n > 0 && len(c.fds) > 0; n-- {
		unix.Close(c.fds[len(c.fds)-1])
		c.fds = c.fds[:len(c.fds)-1]
	}
}
