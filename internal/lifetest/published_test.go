//go:build linux

package lifetest_test

import (
	"archive/zip"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
	modules "golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/cellkit/sandbox/internal/testkit"
)

// TestPublished publishes this repository's modules in a module proxy, in the version in which they
// require each other. Another module then requires them from there, and the commands are
// installed.
func TestPublished(t *testing.T) {
	testkit.Need(t, "time to build programs")
	p := newProxy(t)
	version := p.requiredVersion(t, "../../image/go.mod")
	p.publish(t, rootModule, version, "../..")
	for _, m := range []string{"image", "queue", "docker", "libvirt", "compose"} {
		require.Equal(t, version, p.requiredVersion(t, "../../"+m+"/go.mod"))
		p.publish(t, rootModule+"/"+m, version, "../../"+m)
	}

	foreign := t.TempDir()
	require.NoError(t, os.CopyFS(foreign, os.DirFS("testdata/foreign")))
	mod := fmt.Sprintf("module example.com/foreign\n\ngo 1.26\n\nrequire (\n\t%[1]s %[2]s\n\t%[1]s/image %[2]s\n\t%[1]s/queue %[2]s\n)\n", rootModule, version)
	require.NoError(t, os.WriteFile(filepath.Join(foreign, "go.mod"), []byte(mod), 0o600))
	p.run(t, foreign, "build", "-o", "foreign", ".")
	prints(t, "in a sandbox\n", command(t, filepath.Join(foreign, "foreign")))

	for _, m := range []string{rootModule, rootModule + "/image"} {
		p.run(t, t.TempDir(), "install", m+"/cmd/sandbox@"+version)
		out, err := command(t, filepath.Join(p.dir, "bin", "sandbox"), "version").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.True(t, strings.HasPrefix(string(out), "sandbox "+version+", "), "%s", out)
	}
	p.run(t, t.TempDir(), "install", rootModule+"/queue/cmd/sandbox-queue@"+version)
	require.NoError(t, command(t, filepath.Join(p.dir, "bin", "sandbox-queue"), "serve", "-h").Run())
	for _, m := range []string{"docker", "libvirt", "compose"} { // of which nothing was required above
		p.run(t, t.TempDir(), "mod", "download", rootModule+"/"+m+"@"+version)
	}
	p.run(t, t.TempDir(), "install", rootModule+"/compose/cmd/sandbox-compose@"+version)
	require.NoError(t, command(t, filepath.Join(p.dir, "bin", "sandbox-compose"), "up", "-h").Run())
}

const rootModule = "github.com/cellkit/sandbox"

// proxy is a directory that the go command takes modules from, by the protocol of
// https://go.dev/ref/mod#goproxy-protocol.
type proxy struct {
	dir string
	env []string // of the go command
}

// newProxy makes a proxy with a module cache of its own, which contains no other content of the
// same version. All other modules come from the machine's cache, or from the source of that cache.
// Paths are trimmed so that the build cache can be used the next time.
func newProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{dir: t.TempDir()}
	goEnv := func(name string) string {
		out, err := exec.Command("go", "env", name).Output()
		require.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	sources := "file://" + filepath.Join(p.dir, "proxy") + ",file://" + filepath.Join(goEnv("GOMODCACHE"), "cache/download") + "," + goEnv("GOPROXY")
	p.env = append(os.Environ(), "GOPROXY="+sources, "GOMODCACHE="+filepath.Join(p.dir, "mod"), "GOBIN="+filepath.Join(p.dir, "bin"),
		"GOFLAGS=-mod=mod -modcacherw -trimpath -buildvcs=false", "GOWORK=off", "GOSUMDB=off", "GOVCS=*:off", "GOPRIVATE=", "CGO_ENABLED=1",
		// The go command also looks for modules with the names of these packages. It asks
		// no proxy for them, so no answer gets in the way.
		"GONOPROXY="+rootModule+"/cmd,"+rootModule+"/image/cmd,"+rootModule+"/queue/cmd,"+rootModule+"/compose/cmd")
	return p
}

// requiredVersion returns the version in which a module requires the root module. The module may
// not replace it.
func (p *proxy) requiredVersion(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	mod, err := modfile.Parse(file, data, nil)
	require.NoError(t, err)
	require.Empty(t, mod.Replace)
	for _, r := range mod.Require {
		if r.Mod.Path == rootModule {
			return r.Mod.Version
		}
	}
	t.Fatalf("%s does not require %s", file, rootModule)
	return ""
}

// publish adds the module in dir to the proxy.
func (p *proxy) publish(t *testing.T, name, version, dir string) {
	t.Helper()
	at := filepath.Join(p.dir, "proxy", name, "@v")
	require.NoError(t, os.MkdirAll(at, 0o700))
	file := filepath.Join(at, version)
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file+".mod", mod, 0o600))
	require.NoError(t, os.WriteFile(file+".info", fmt.Appendf(nil, `{"Version":%q}`, version), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(at, "list"), []byte(version+"\n"), 0o600))
	out, err := os.Create(file + ".zip")
	require.NoError(t, err)
	require.NoError(t, modzip.CreateFromDir(out, modules.Version{Path: name, Version: version}, dir))
	require.NoError(t, out.Close())
	requireFiles(t, file+".zip", path.Join(name+"@"+version, "LICENSE"), path.Join(name+"@"+version, "NOTICE"))
}

// requireFiles requires that an archive contains the files.
func requireFiles(t *testing.T, file string, names ...string) {
	t.Helper()
	z, err := zip.OpenReader(file)
	require.NoError(t, err)
	defer z.Close()
	have := map[string]bool{}
	for _, f := range z.File {
		have[f.Name] = true
	}
	for _, name := range names {
		require.True(t, have[name], "%s is not in %s", name, file)
	}
}

// run runs the go command with modules from the proxy.
func (p *proxy) run(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = dir, p.env
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "go %v\n%s", args, out)
}
