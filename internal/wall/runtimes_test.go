//go:build linux

package wall

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/spec"
)

// What options are checked against is what there is.
func TestRuntimes(t *testing.T) {
	var names []string
	for _, r := range runtimes {
		names = append(names, r.name)
	}
	assert.Equal(t, spec.Runtimes(), names)
	_, err := Installed("none")
	assert.Error(t, err)
	assert.NoError(t, Clean("none", "0", "/nonexistent"))

	// Those whose clients are in other modules, which this program does not have.
	for _, name := range []string{"docker", "libvirt"} {
		var missing *MissingError
		_, err = Installed(name)
		require.ErrorAs(t, err, &missing)
		assert.Contains(t, missing.Remedy(), `import _ "github.com/cellkit/sandbox/`+name+`"`)
		assert.ErrorAs(t, Clean(name, "0", "/nonexistent"), &missing)
	}
}

// A path is one value to a runtime, whatever is in it.
func TestRuntimesQuotePaths(t *testing.T) {
	const odd = `/a b\c:d,e`
	c := &Container{
		ID: "1", Dir: t.TempDir(), Rootfs: "/root", Binds: []Bind{{odd, "/lib/x"}}, Args: []string{"/init"},
		UIDs: []Extent{{0, 1 << 16, 1 << 16}}, GIDs: []Extent{{0, 1 << 16, 1 << 16}},
	}
	args, err := nspawn(nil, c)
	require.NoError(t, err)
	assert.Contains(t, args, `--bind-ro=/a b\\c\:d,e:/lib/x:norbind`)
	_, err = lxc(nil, c)
	require.NoError(t, err)
	conf, err := os.ReadFile(filepath.Join(c.Dir, "config"))
	require.NoError(t, err)
	assert.Contains(t, string(conf), "lxc.mount.entry = /a\\040b\\134c:d,e lib/x none bind,ro,nosuid,nodev 0 0\n")

	c.Env = []string{"A=b\nlxc.hook.start-host = /bin/sh"}
	_, err = lxc(nil, c)
	assert.ErrorContains(t, err, "line break")
	c.GIDs = []Extent{{0, 1 << 17, 1 << 16}}
	_, err = nspawn(nil, c)
	assert.ErrorContains(t, err, "one range")
}

// What a killed runtime leaves outside of its container's directory goes, and nothing else.
func TestRuntimesClean(t *testing.T) {
	locks := filepath.Join(t.TempDir(), "locks")
	for _, name := range []string{"state/1/container/.1", "state/2/container/.2"} {
		require.NoError(t, os.MkdirAll(filepath.Join(locks, filepath.Dir(name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(locks, name), nil, 0o600))
	}
	require.NoError(t, lxcUnlock(locks, "/state/1/container"))
	assert.NoDirExists(t, filepath.Join(locks, "state/1"))
	assert.FileExists(t, filepath.Join(locks, "state/2/container/.2"))
	require.NoError(t, lxcUnlock(locks, "/state/2/container"))
	assert.DirExists(t, filepath.Join(locks, "state"), "another LXC may be about to use it")
}

// A runtime's version is its first line, however much the command prints.
func TestRuntimeVersion(t *testing.T) {
	for script, want := range map[string]string{"echo runc 1.2.3; echo more": "runc 1.2.3", "exec yes": "", "exit 3": "", "true": ""} {
		path := filepath.Join(t.TempDir(), "runc")
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700))
		version, err := (&Command{path: path}).Version()
		assert.Equal(t, want, version, script)
		assert.Equal(t, want == "", err != nil, script)
	}
}

// A runtime's command is known to be there, and after it nothing is.
func TestRuntimeWorking(t *testing.T) {
	arguments := func(*commandLine, *Container) ([]string, error) { return []string{"-c", "read -r end <&3"}, nil }
	w := &Command{commandLine: &commandLine{command: arguments}, path: "/bin/sh"}
	c := &Container{Dir: filepath.Join(t.TempDir(), "container"), Rootfs: t.TempDir()}
	assert.False(t, Working(c.Dir))
	r, end, err := os.Pipe()
	require.NoError(t, err)
	c.Files = []*os.File{r}
	p, err := w.Start(c)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.True(t, Working(c.Dir))
	require.NoError(t, end.Close())
	_, err = p.Wait()
	assert.Error(t, err) // the shell read nothing
	assert.False(t, Working(c.Dir))
}
