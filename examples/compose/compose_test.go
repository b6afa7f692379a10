//go:build linux

package compose

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/compose"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// start starts the project of compose.yaml.
func start(t *testing.T) *compose.Running {
	t.Helper()
	dir := testkit.OpenDir(t)
	require.NoError(t, os.CopyFS(dir, os.DirFS(".")))
	testkit.BusyboxImage(t, filepath.Join(dir, "busybox.tar"))
	store, err := image.OpenStore(testkit.OpenDir(t))
	require.NoError(t, err)

	project, err := compose.Load(filepath.Join(dir, "compose.yaml"), compose.Environ("GREETING=hello"), compose.Images(image.WithStore(store)),
		compose.Observe(func(e compose.Event) { t.Log(e.Service, e.State) }))
	require.NoError(t, err)
	up := project.Up(context.Background())
	t.Cleanup(func() { require.NoError(t, up.Close()) })
	require.NoError(t, up.Ready())
	return up
}

func TestFront(t *testing.T) {
	up := start(t)
	var body []byte
	require.Eventually(t, func() bool {
		response, err := http.Get("http://" + up.Addr("front", 80) + "/greeting")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
		return err == nil && response.StatusCode == http.StatusOK
	}, testkit.Patience, 10*time.Millisecond)
	require.Equal(t, "hello\n", string(body))
}
