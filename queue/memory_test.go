//go:build linux

package queue

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// The helper idle has an idle queue in the directory that it is given, or none if that is "", and
// prints its resident memory in KiB.
func init() {
	testkit.AddHelper("idle", func(args []string) error {
		if args[0] != "" {
			q, err := Open(context.Background(), "", Dir(args[0]))
			if err != nil {
				return err
			}
			defer q.Close()
			time.Sleep(time.Second)
		}
		debug.FreeOSMemory()
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		fmt.Println(strings.Fields(rest)[0])
		return nil
	})
}

// An idle server adds little to the process that it is in.
func TestIdleMemory(t *testing.T) {
	resident := func(dir string) (kib int) {
		out, err := testkit.HelperCommand(testkit.Deadline(t), "idle", dir).Output()
		require.NoError(t, err)
		_, err = fmt.Sscan(string(out), &kib)
		require.NoError(t, err)
		return kib
	}
	without, with := resident(""), resident(t.TempDir())
	t.Logf("%d KiB without a queue, %d with one", without, with)
	require.Less(t, with-without, 20<<10)
}
