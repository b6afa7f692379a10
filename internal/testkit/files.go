//go:build linux

package testkit

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// WriteFile writes a file with exactly that mode.
func WriteFile(t testing.TB, name, content string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(name, []byte(content), mode))
	require.NoError(t, os.Chmod(name, mode)) // despite the umask
}

// OpenDir returns a directory for the test that everybody can enter, at the end of a path that
// everybody can search.
func OpenDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sandbox-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	return dir
}

// Mkdirs makes directories below another.
func Mkdirs(root string, dirs ...string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Tree lists what is below a directory.
func Tree(t testing.TB, root string) (list []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		list = append(list, path)
		return err
	}))
	return list
}

// Layer returns a directory with the given files: a name that ends in a slash is a directory, the
// content "-" a whiteout, and "-> x" a link.
func Layer(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := OpenDir(t)
	for name, content := range files {
		at := dir + "/" + name
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			require.NoError(t, os.Symlink(to, at))
		} else if content == "-" {
			require.NoError(t, unix.Mknod(at, unix.S_IFCHR, 0))
		} else if strings.HasSuffix(name, "/") {
			require.NoError(t, os.MkdirAll(at, 0o755))
		} else {
			WriteFile(t, at, content, 0o644)
		}
	}
	return dir
}

// Busybox returns the file of a static busybox.
func Busybox(t testing.TB) []byte {
	t.Helper()
	Need(t, "a static busybox")
	exe, err := exec.LookPath("busybox")
	require.NoError(t, err)
	b, err := os.ReadFile(exe)
	require.NoError(t, err)
	return b
}

// BusyboxRoot returns a directory with a static busybox in it and the given mount points.
func BusyboxRoot(t testing.TB, dirs ...string) string {
	t.Helper()
	if len(dirs) == 0 { // mount points that it lacks are on a layer above
		Need(t, "overlayfs for runs")
	}
	root := OpenDir(t)
	require.NoError(t, Mkdirs(root, append(dirs, "/bin")...))
	WriteFile(t, root+"/bin/busybox", string(Busybox(t)), 0o755)
	if len(dirs) > 0 { // then it also has the files that runs have of their own
		require.NoError(t, os.MkdirAll(root+"/etc", 0o755))
		for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
			WriteFile(t, root+"/etc/"+name, "", 0o644)
		}
	}
	for _, name := range strings.Fields("sh ls cat touch echo mkdir pwd id rm ln stat true") {
		require.NoError(t, os.Symlink("busybox", root+"/bin/"+name))
	}
	return root
}

// builds are programs compiled for tests.
var builds compiled

type compiled struct {
	once sync.Once
	dir  string
	err  error
}

// StaticTrue returns the path of a statically linked program that does nothing.
func StaticTrue(t testing.TB) string {
	t.Helper()
	Need(t, "gcc")
	builds.once.Do(func() {
		if builds.dir, builds.err = os.MkdirTemp("", "sandbox-test-"); builds.err != nil {
			return
		}
		_ = os.Chmod(builds.dir, 0o755)
		cmd := exec.Command("gcc", "-static", "-O2", "-x", "c", "-o", filepath.Join(builds.dir, "true"), "-")
		cmd.Stdin = strings.NewReader("int main(void) { return 0; }\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			builds.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, builds.err)
	return filepath.Join(builds.dir, "true")
}

func (c *compiled) remove() {
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

// WithDescriptors calls f while this process can open no more than n files.
func WithDescriptors(t testing.TB, n int, f func()) {
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: was.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) }()
	var taken []*os.File
	defer func() {
		for _, f := range taken {
			f.Close()
		}
	}()
	for f, err := os.Open(os.DevNull); err == nil; f, err = os.Open(os.DevNull) {
		taken = append(taken, f)
	}
	for range n {
		taken[len(taken)-1].Close()
		taken = taken[:len(taken)-1]
	}
	f()
}
