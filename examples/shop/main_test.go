//go:build linux

package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && services[os.Args[1]] != nil {
		log.Fatal(services[os.Args[1]]())
	}
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestSell has all orders fulfilled although a worker is killed.
func TestSell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := open(ctx, "127.0.0.1:0")
	require.NoError(t, err)
	rate, err := s.sell(ctx, 500, 10)
	require.NoError(t, err)
	t.Logf("%.0f orders a second", rate)
	require.NoError(t, s.close())
}

// running returns how many processes below one have the name.
func running(pid int, name string) (n int) {
	for _, child := range testkit.ChildrenOf(pid) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		if strings.TrimSpace(string(comm)) == name {
			n++
		}
		n += running(child, name)
	}
	return n
}

// TestOpenFails has nothing running that was started before what fails.
func TestOpenFails(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := open(ctx, "192.0.2.1:1") // no address of this machine
	require.ErrorContains(t, err, "WithPublish")
	require.Zero(t, running(os.Getpid(), "redis-server"))
}
