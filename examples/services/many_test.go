//go:build linux

package services

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/sandboxtest"
	"github.com/cellkit/sandbox/service"
)

// TestManyPostgres has as many PostgreSQLs at a time as the variable SANDBOX_POSTGRES says, each
// with data of its own, and reports how long that took:
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
	begin := time.Now()
	running := sandboxtest.Services(t, all...)
	t.Logf("%d are ready after %v", n, time.Since(begin))
	for i, pg := range running {
		require.Equal(t, 45+10*i, numbers(t, connect(t, pg), i))
	}
	t.Logf("all have answered after %v", time.Since(begin))
}
