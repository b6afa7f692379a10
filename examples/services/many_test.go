//go:build linux

package services

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// TestManyPostgres has as many PostgreSQLs at a time as the variable SANDBOX_POSTGRES says, each
// with data of its own, and reports how long that took and how much of the machine's memory:
//
//	SANDBOX_POSTGRES=50 go test -run ManyPostgres -v ./services
func TestManyPostgres(t *testing.T) {
	testkit.Need(t, "SANDBOX_POSTGRES=50")
	n, err := strconv.Atoi(os.Getenv("SANDBOX_POSTGRES"))
	require.NoError(t, err)
	var all []*service.Service
	for i := range n {
		all = append(all, service.New(fmt.Sprint("pg", i), pgBox, service.Port(5432), service.From(database),
			service.Ready(service.Log("ready to accept connections")), service.StartTimeout(10*time.Minute)))
	}
	begin, free := time.Now(), available(t)
	running := sandboxtest.Services(t, all...)
	t.Logf("%d are ready after %v", n, time.Since(begin))
	for i, pg := range running {
		require.Equal(t, 45+10*i, numbers(t, connect(t, pg), i))
	}
	t.Logf("all have answered after %v, and take %.1f MiB each", time.Since(begin), (free-available(t))/float64(n))
	begin = time.Now()
	for _, pg := range running {
		require.NoError(t, pg.Close())
	}
	t.Logf("all were ended after %v more", time.Since(begin))
}

// available returns how many MiB of memory this machine has for more: proc_meminfo(5).
func available(t *testing.T) (mib float64) {
	b, err := os.ReadFile("/proc/meminfo")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(b), "\nMemAvailable:")
	_, err = fmt.Sscan(rest, &mib)
	require.NoError(t, err)
	return mib / 1024
}
