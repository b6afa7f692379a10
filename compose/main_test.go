//go:build linux

package compose

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

// write writes files into a new directory, and returns it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	return dir
}

// load loads a Compose file that stands alone, with no environment.
func load(t testing.TB, content string, opts ...Option) (*Project, error) {
	t.Helper()
	return Load(write(t, map[string]string{"compose.yaml": content}), append([]Option{Name("test"), Environ()}, opts...)...)
}

// project returns the project of a Compose file whose services have the image ./busybox.tar.
func project(t testing.TB, files map[string]string, opts ...Option) *Project {
	t.Helper()
	dir := testkit.OpenDir(t)
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		testkit.WriteFile(t, path, content, 0o644)
	}
	return projectIn(t, dir, opts...)
}

func projectIn(t testing.TB, dir string, opts ...Option) *Project {
	t.Helper()
	testkit.BusyboxImage(t, filepath.Join(dir, "busybox.tar"))
	store, err := image.OpenStore(testkit.OpenDir(t))
	require.NoError(t, err)
	p, err := Load(dir, append([]Option{Name("test"), Environ(), Images(image.WithStore(store))}, opts...)...)
	require.NoError(t, err)
	return p
}

// up starts a project, which ends with the test.
func up(t testing.TB, p *Project) *Running {
	t.Helper()
	r := p.Up(testkit.Deadline(t))
	t.Cleanup(func() { _ = r.Close() }) // a test that wants no error asks for it
	return r
}

// get asks by HTTP until there is an answer with status 200.
func get(t testing.TB, r *Running, service string, port int, path string) (body string) {
	t.Helper()
	testkit.Eventually(t, "an answer of "+service, func() bool {
		response, err := http.Get("http://" + r.Addr(service, port) + path)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		body = strings.TrimSpace(string(b))
		return err == nil && response.StatusCode == http.StatusOK
	})
	return body
}

// logged waits until a service has written a line with that text.
func logged(t testing.TB, r *Running, service, text string) {
	t.Helper()
	ctx := testkit.Deadline(t)
	var all strings.Builder
	for line := range r.Follow(ctx, service) {
		all.WriteString(line.Text + "\n")
		if strings.Contains(line.Text, text) {
			return
		}
	}
	require.FailNow(t, "no such line", "%q in:\n%s", text, all.String())
}
