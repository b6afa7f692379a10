//go:build linux

package sandboxtest

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// greeter is a service that says its name.
func greeter(name string) *service.Service {
	script := `
import os, socket, sys
s = socket.create_server(("0.0.0.0", 7))
print("open", os.getpid(), flush=True)
while True:
    c, _ = s.accept()
    print("asked", flush=True)
    c.sendall(sys.argv[1].encode())
    c.close()
`
	return service.New(name, sandbox.New(sandbox.WithCommand("python3", "-c", script, name)), service.Port(7))
}

// shared is what tests of this package have in common.
var shared = Share(greeter("one"), greeter("two"))

// Tests that run at the same time have services of their own, or share one.
func TestRootlessServiceGroup(t *testing.T) {
	testkit.Need(t, "python3")
	t.Cleanup(func() { require.NoError(t, shared.Close()) })
	t.Run("all", func(t *testing.T) {
		for range 3 {
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				s := Services(t, greeter("b"), greeter("a"))
				require.Equal(t, "b", testkit.Ask(t, s[0].Addr(7)))
				require.Equal(t, "a", testkit.Ask(t, s[1].Addr(7)))
				require.Equal(t, "one", testkit.Ask(t, shared.Get(t, "one").Addr(7)))
				require.Equal(t, "two", testkit.Ask(t, shared.Get(t, "two").Addr(7)))
			})
		}
	})
	require.Equal(t, "asked", shared.Get(t, "two").Logs()[3].Text, "it was started once")
}

// An isolated test reaches its services, and nothing else.
func TestRootlessIsolateServices(t *testing.T) {
	if isolated == "" {
		testkit.Need(t, "python3") // which is not inside
	}
	s := Services(t, greeter("near"), greeter("far"))
	common := shared.Get(t, "one")
	if isolated == "" {
		t.Cleanup(func() { require.NoError(t, shared.Close()) })
		t.Setenv("COMMON", common.Addr(7))
		require.Equal(t, "one", testkit.Ask(t, os.Getenv("COMMON")))
	}
	Isolate(t, s[0].Reach(), sandbox.WithEnv("COMMON="+common.Addr(7)))
	require.Equal(t, "near:7", s[0].Addr(7))
	require.Equal(t, "near", testkit.Ask(t, s[0].Addr(7)))
	reached := 0
	for _, host := range []string{"198.18.0.2", "198.18.0.3"} { // those of the two
		if conn, err := net.DialTimeout("tcp", host+":7", testkit.Patience); err == nil {
			conn.Close()
			reached++
		}
	}
	require.Equal(t, 1, reached)
	for _, addr := range []string{s[1].Addr(7), common.Addr(7), os.Getenv("COMMON"), "192.0.2.1:80"} {
		_, err := net.DialTimeout("tcp", addr, 2*time.Second)
		require.Error(t, err, addr)
	}
}

// failing is a test that has failed.
type failing struct {
	fake
	dir string
}

func (*failing) Failed() bool          { return true }
func (f *failing) ArtifactDir() string { return f.dir }

// A failing test shows what its services wrote, and keeps it; of shared ones what came meanwhile.
func TestRootlessServiceLogs(t *testing.T) {
	testkit.Need(t, "python3")
	Need(t)
	own := Share(greeter("shared"))
	defer own.Close()
	first := own.Get(t, "shared")
	testkit.Eventually(t, "its first line", func() bool { return len(first.Logs()) == 1 })
	artifacts := flag.Lookup("test.artifacts").Value
	defer func(was string) { require.NoError(t, artifacts.Set(was)) }(artifacts.String())
	require.NoError(t, artifacts.Set("true"))
	f := &failing{fake{TB: t}, t.TempDir()}
	time.Sleep(time.Millisecond)
	testkit.Ask(t, own.Get(f, "shared").Addr(7))
	testkit.Ask(t, Service(f, greeter("mine")).Addr(7))
	testkit.Eventually(t, "its second line", func() bool { return len(first.Logs()) == 2 })
	log := f.over()
	require.Regexp(t, `the log of service shared:\n\d\d:\d\d:\d\d\.\d{3} asked\n`, log)
	require.Regexp(t, `the log of service mine:\n\S+ open \d+\n\S+ asked\n`, log)
	b, err := os.ReadFile(filepath.Join(f.dir, "mine.log"))
	require.NoError(t, err)
	require.Regexp(t, `^\S+ open \d+\n\S+ asked\n$`, string(b))
}
