//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// imageOf returns an option for a root that is an image's.
func imageOf(layers ...string) sandbox.Option {
	return func(c *spec.Spec) { c.SetImage(spec.Image{Name: "test", Layers: layers, Dir: "/"}) }
}

// fillable returns a root whose /data, which /place leads to, has files of many kinds in two
// layers, of the owners of some, or else of all.
func fillable(t *testing.T, owners map[string]int, all int) sandbox.Option {
	testkit.Need(t, "files that hide others")
	low := testkit.Layer(t, map[string]string{"data/kept": "low", "data/hidden": "low", "data/replaced": "low", "data/dir/low": "low", "data/odd\xff": "odd", "place": "-> ../../bin/../data"})
	top := testkit.Layer(t, map[string]string{"data/hidden": "-", "data/replaced": "top", "data/dir/top": "top", "data/out": "-> /etc/passwd", "data/secret": "secret", "data/dir/in/file": ""})
	require.NoError(t, os.Link(low+"/data/kept", low+"/data/dir/again"))
	require.NoError(t, unix.Mkfifo(top+"/data/pipe", 0o600))
	for _, layer := range []string{low, top} {
		for _, name := range testkit.Tree(t, layer+"/data") {
			id, ok := owners[strings.TrimPrefix(name, layer+"/data/")]
			if !ok {
				id = all
			}
			if os.Geteuid() == 0 {
				require.NoError(t, os.Lchown(name, id, id+min(id, 1)))
			}
		}
	}
	require.NoError(t, unix.Chmod(top+"/data/secret", 0o4640))
	require.NoError(t, unix.Chmod(top+"/data/dir", 0o2550))
	require.NoError(t, unix.Chmod(top+"/data", 0o1775))
	at := time.Unix(1e9, 0)
	for _, name := range []string{low + "/data/kept", top + "/data/dir", top + "/data"} {
		require.NoError(t, os.Chtimes(name, at, at))
	}
	t.Cleanup(func() { _ = os.Chmod(top+"/data/dir", 0o755) })
	return imageOf(testkit.BusyboxRoot(t), low, top)
}

// A scratch begins with what the image has at its place, behind links and merged of layers, with
// modes, times and links.
func TestRootlessFill(t *testing.T) {
	t.Parallel()
	for _, user := range []int{1000, 0} {
		root := fillable(t, nil, user)
		s := newScratch(t, sandbox.MiB)
		box := sandbox.New(root, sandbox.WithUser(user, user), sandbox.WithScratch("/data", s))
		for range 2 {
			require.NoError(t, s.Fill(testkit.Deadline(t), box, "/place"))
			sh := func(script string) string {
				return runs.Output(t, box.With(sandbox.WithCommand("sh", "-c", script)))
			}
			require.Equal(t, strings.ReplaceAll(`. 1775 U:U
dir 2550 U:U
kept 644 U:U 2 1000000000
dir/again 644 U:U 2 1000000000
secret 640 U:U 1
`, "U", fmt.Sprint(user)), regexpCut(sh("cd /data; busybox stat -c '%n %a %u:%g %h %Y' . dir kept dir/again secret")))
			require.Equal(t, "pipe fifo\nout symbolic link\nlow top top /etc/passwd", sh(`cd /data; stat -c '%n %F' pipe out; echo $(cat dir/low; echo; cat dir/top; echo; cat replaced; echo; busybox readlink out)`))
			require.Equal(t, "dir kept odd\xff out pipe replaced secret", sh("cd /data; echo *"))
			require.Equal(t, "1000000000 1000000000", sh("cd /data; echo $(stat -c %Y . dir)"))
		}
		require.Equal(t, "changed", runs.Output(t, box.With(sandbox.WithCommand("sh", "-c", "cd /data; echo changed >kept; rm replaced secret; cat dir/again"))))
		require.NoError(t, s.Fill(testkit.Deadline(t), box, "/data"))
		require.Equal(t, "dir kept odd\xff out pipe", runs.Output(t, box.With(sandbox.WithCommand("sh", "-c", "cd /data; echo *"))))
	}
}

// regexpCut leaves out the times and numbers of links that say nothing.
func regexpCut(out string) (lines string) {
	for line := range strings.Lines(out + "\n") {
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "secret") {
			fields = fields[:4]
		} else if fields[0] == "." || fields[0] == "dir" {
			fields = fields[:3]
		}
		lines += strings.Join(fields, " ") + "\n"
	}
	return lines
}

// For root of a run, files keep the owners that they have in the image. For others, and for root
// with another group, all is the user's, but what the user could not read is left out.
func TestFillOwners(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	root := fillable(t, map[string]int{"dir": 34, "replaced": 0, "odd\xff": 0, "dir/in": 0, "dir/in/file": 0}, 33)
	stat := func(place string, opts ...sandbox.Option) string {
		t.Helper()
		s := newScratch(t, sandbox.MiB)
		box := sandbox.New(append([]sandbox.Option{root, sandbox.WithScratch("/data", s)}, opts...)...)
		require.NoError(t, s.Fill(testkit.Deadline(t), box, place))
		return runs.Output(t, box.With(sandbox.WithCommand("sh", "-c", "cd /data; echo $(stat -c '%n=%u:%g,%a' . *)")))
	}
	require.Equal(t, ".=33:34,1775 dir=34:35,2550 kept=33:34,644 odd\xff=0:0,644 out=33:34,777 pipe=33:34,600 replaced=0:0,644 secret=33:34,640",
		stat("/data", sandbox.WithUser(0, 0), sandbox.WithCapabilities("CAP_DAC_OVERRIDE")))
	require.Equal(t, ".=0:7,1775 dir=0:7,2550 kept=0:7,644 odd\xff=0:7,644 out=0:7,777 pipe=0:7,600 replaced=0:7,644 secret=0:7,640",
		stat("/data", sandbox.WithUser(0, 7)))
	require.Equal(t, ".=33:9,1775 kept=33:9,644 odd\xff=33:9,644 out=33:9,777 pipe=33:9,600 replaced=33:9,644 secret=33:9,640",
		stat("/data", sandbox.WithUser(33, 9)))
	require.Equal(t, ".=9:34,1775 kept=9:34,644 odd\xff=9:34,644 out=9:34,777 replaced=9:34,644 secret=9:34,640",
		stat("/data", sandbox.WithUser(9, 34)))
	require.Equal(t, ".=9:9,1775 kept=9:9,644 odd\xff=9:9,644 out=9:9,777 replaced=9:9,644",
		stat("/data", sandbox.WithUser(9, 9)))
	for place, has := range map[string]string{"/data/dir": " top=", "/data/dir/in": " file="} {
		require.Contains(t, stat(place, sandbox.WithUser(34, 9)), has)
		require.NotContains(t, stat(place, sandbox.WithUser(9, 9)), has)
	}
}

// What has no directory at the place, or is none, leaves the scratch as it is; so does what does
// not fit, or ends too early, whatever is in the image.
func TestRootlessFillNothing(t *testing.T) {
	t.Parallel()
	many := map[string]string{"file": "x", "loop": "-> loop", "dangling": "-> ../../../../nowhere", "up": "-> ../../../../../..", "empty/": ""}
	for i := range 600 {
		many[fmt.Sprintf("many/%d", i)] = ""
		many[fmt.Sprintf("links/%d", i)] = "-> x"
	}
	layer := testkit.Layer(t, many)
	require.NoError(t, os.MkdirAll(layer+"/large/in", 0o755))
	require.NoError(t, os.WriteFile(layer+"/large/in/first", make([]byte, 1000), 0o644))
	require.NoError(t, os.WriteFile(layer+"/large/in/hole", nil, 0o644))
	require.NoError(t, os.Truncate(layer+"/large/in/hole", 1<<40))
	deep := layer + "/deep"
	require.NoError(t, os.Mkdir(deep, 0o755))
	makeDeep(t, deep)
	s := newScratch(t, sandbox.MiB)
	box := sandbox.New(imageOf(layer), sandbox.WithUser(1, 1))
	empty := func(what string) {
		t.Helper()
		list, err := fs.ReadDir(s.FS(), ".")
		require.NoError(t, err)
		require.Empty(t, list, what)
	}
	for _, place := range []string{"/file", "/loop", "/dangling", "/missing", "/file/x", "/empty"} {
		require.NoError(t, s.Fill(testkit.Deadline(t), box, place))
		empty(place)
	}
	nobody := func(c *spec.Spec) {
		c.SetImage(spec.Image{Name: "test", Layers: []string{layer}, UserErr: fs.ErrNotExist})
	}
	for _, other := range []sandbox.Option{nobody, runs.Layers(layer), sandbox.WithRootfs(sandbox.DirRootfs(layer)), sandbox.WithRootfs(sandbox.HostRootfs())} {
		require.NoError(t, s.Fill(testkit.Deadline(t), box.With(other), "/many"))
		empty("no image, or no user")
	}
	info, err := fs.Stat(s.FS(), ".")
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o755, info.Mode())
	for place, want := range map[string]error{"/many": syscall.ENOSPC, "/links": syscall.ENOSPC, "/large": syscall.ENOSPC, "/deep": syscall.ENAMETOOLONG, "/up/large": syscall.ENOSPC} {
		err := s.Fill(testkit.Deadline(t), box, place)
		require.ErrorIs(t, err, want, place)
		require.ErrorContains(t, err, "sandbox: Fill: what the image has at "+place)
		empty(place)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, s.Fill(ctx, box, "/many"), context.Canceled)
	empty("cancelled")
	require.NoError(t, s.Close())
	require.ErrorContains(t, s.Fill(testkit.Deadline(t), box, "/many"), "closed")
}

// makeDeep makes directories within each other whose path is longer than one may be.
func makeDeep(t *testing.T, dir string) {
	name := strings.Repeat("d", 200)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	for range 30 {
		require.NoError(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

// Links of an image lead nowhere else, at the place and below.
func TestRootlessFillStaysInside(t *testing.T) {
	t.Parallel()
	outside := testkit.OpenDir(t)
	testkit.WriteFile(t, filepath.Join(outside, "secret"), "secret", 0o644)
	layer := testkit.Layer(t, map[string]string{"abs": "-> " + outside, "way": "-> ../../../../../../.." + outside, "d/abs": "-> " + outside, "d/way": "-> ../../../../.." + outside})
	for _, place := range []string{"/abs", "/way", "/d", "/d/../../../.." + outside, "/d/way"} {
		s := newScratch(t, sandbox.MiB)
		require.NoError(t, s.Fill(testkit.Deadline(t), sandbox.New(imageOf(layer), sandbox.WithUser(1, 1)), place))
		list, err := fs.ReadDir(s.FS(), ".")
		require.NoError(t, err)
		var names []string
		for _, e := range list {
			require.Equal(t, fs.ModeSymlink, e.Type())
			names = append(names, e.Name())
		}
		if place == "/d" {
			require.Equal(t, []string{"abs", "way"}, names)
		} else {
			require.Empty(t, names, place)
		}
	}
}
