package main

import (
	"context"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// TestHome runs the command itself, with a scratch as its home, and then checks what it left there.
func TestHome(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "notes")
	build := exec.Command("go", "build", "-o", tool, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	home, err := sandbox.NewScratch(sandbox.MiB)
	require.NoError(t, err)
	defer home.Close()

	notes := sandboxtest.New(t, sandbox.WithReadOnlyBind(tool, "/notes"), sandbox.WithScratch("/home/sandbox", home))
	for _, note := range []string{"buy milk", "sleep"} {
		_, err := notes.With(sandbox.WithCommand("/notes", "add", note)).Run(t.Context())
		require.NoError(t, err)
	}
	out, err = notes.With(sandbox.WithCommand("/notes", "list")).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "buy milk\nsleep\n", string(out))

	info, err := fs.Stat(home.FS(), ".notes")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), "others can't read them")
	_, err = notes.With(sandbox.WithCommand("/notes", "fetch", "http://example.com/")).Run(t.Context())
	require.Error(t, err, "there is no network")
}

// TestNoNetworkCall shows that adding and listing notes makes no network calls: inside there is no
// network except a loopback interface, where only what the test starts listens.
func TestNoNetworkCall(t *testing.T) {
	sandboxtest.Isolate(t)
	var out strings.Builder
	require.NoError(t, run(t.TempDir(), []string{"add", "x"}, &out))
	require.NoError(t, run(t.TempDir(), []string{"list"}, &out))
	require.Error(t, run(t.TempDir(), []string{"fetch", "http://192.0.2.1/"}, &out))

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("fetched")) }))
	defer server.Close()
	home := t.TempDir()
	require.NoError(t, run(home, []string{"fetch", server.URL}, &out))
	require.NoError(t, run(home, []string{"list"}, &out))
	require.Equal(t, "fetched\n", out.String())
}

// TestFormatter runs a formatter that need not be trusted over golden files: it has only its input,
// ten seconds, and a mebibyte for its output.
func TestFormatter(t *testing.T) {
	formatter := sandboxtest.New(t, sandbox.WithCommand("sort", "-f"), sandbox.WithTimeout(10*time.Second), sandbox.WithOutputLimit(sandbox.MiB))
	inputs, err := filepath.Glob("testdata/*.in")
	require.NoError(t, err)
	require.NotEmpty(t, inputs)
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			t.Parallel()
			in, err := os.Open(input)
			require.NoError(t, err)
			defer in.Close()
			got, err := formatter.With(sandbox.WithStdin(in)).Output(t.Context())
			require.NoError(t, err)
			want, err := os.ReadFile(strings.TrimSuffix(input, ".in") + ".golden")
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
		})
	}
}
