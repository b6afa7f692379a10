//go:build linux

package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/testkit"
)

// TestMergedAsOverlayfs makes layers at random, and has overlayfs itself say what there is in them.
func TestMergedAsOverlayfs(t *testing.T) {
	testkit.Need(t, "root's mounts of overlayfs")
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	seen := map[bool]int{}
	for range 200 {
		dir := t.TempDir()
		var layers []string
		for i := range 1 + r.IntN(4) {
			layers = append(layers, filepath.Join(dir, strconv.Itoa(i)))
			require.NoError(t, os.Mkdir(layers[i], 0o755))
			randomTree(t, r, layers[i], 0)
		}
		exists, kinds := overlaid(t, dir, layers)
		m, err := Open(layers)
		require.NoError(t, err)
		defer m.Close()
		for p, want := range exists {
			gap, missing := m.Missing(p)
			require.Equal(t, want, !missing, "%s in %s: %+v", p, dir, gap)
			require.False(t, missing && !strings.HasPrefix(gap.Path, "/"), gap)
			seen[want]++
		}
		for p, want := range kinds { // in any order
			isDir, _, ok := m.Lstat(p)
			require.Equal(t, want, [2]bool{ok, isDir}, "%s in %s", p, dir)
		}
		walked := map[string][2]bool{}
		require.NoError(t, fs.WalkDir(m.Tree("/", 1000), ".", func(p string, d fs.DirEntry, err error) error {
			walked[p] = [2]bool{true, d.IsDir()}
			return err
		}))
		for p, want := range kinds {
			require.Equal(t, want, walked[p], "%s in %s", p, dir)
		}
	}
	require.Greater(t, seen[true], 1000)
	require.Greater(t, seen[false], 1000)
}

var treeNames = []string{"a", "b", "c"}

// randomTree fills a directory.
func randomTree(t *testing.T, r *rand.Rand, dir string, depth int) {
	if r.IntN(5) == 0 && depth > 0 {
		if err := unix.Setxattr(dir, "user.overlay.opaque", []byte("y"), 0); err != nil {
			require.ErrorIs(t, err, unix.ENOTSUP)
		}
	}
	for _, name := range treeNames {
		at := filepath.Join(dir, name)
		switch r.IntN(7) {
		case 0, 1, 2:
			require.NoError(t, os.Mkdir(at, 0o755))
			if depth < 3 {
				randomTree(t, r, at, depth+1)
			}
		case 3:
			require.NoError(t, os.WriteFile(at, nil, 0o644))
		case 4:
			require.NoError(t, unix.Mknod(at, unix.S_IFCHR, 0))
		case 5:
			to := []string{"/a", "../b", "./c", "b/../c", "/c/a", "../../../a/b", "no/such", ".", "/"}
			require.NoError(t, os.Symlink(to[r.IntN(len(to))], at))
		}
	}
}

// overlaid is which paths exist where overlayfs has mounted the layers, the lowest first, in a
// namespace of its own.
func overlaid(t *testing.T, dir string, layers []string) (exists map[string]bool, kinds map[string][2]bool) {
	var paths []string
	for _, a := range treeNames {
		paths = append(paths, "/"+a)
		for _, b := range treeNames {
			paths = append(paths, "/"+a+"/"+b)
			for _, c := range treeNames {
				paths = append(paths, "/"+a+"/"+b+"/"+c, "/"+a+"/../"+b+"/"+c)
			}
		}
	}
	exists, kinds = map[string]bool{}, map[string][2]bool{}
	top, empty := filepath.Join(dir, "root"), filepath.Join(dir, "empty") // overlayfs wants two layers
	require.NoError(t, os.Mkdir(top, 0o755))
	require.NoError(t, os.Mkdir(empty, 0o755))
	var err error
	cell.OnOwnThread(func() {
		err = func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			lower := append([]string{empty}, layers...)
			slices.Reverse(lower)
			if err := unix.Mount("overlay", top, "overlay", unix.MS_RDONLY, "userxattr,lowerdir="+strings.Join(lower, ":")); err != nil {
				return err
			}
			root, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(root)
			for _, p := range paths {
				how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
				fd, err := unix.Openat2(root, p, &how)
				for err == unix.EAGAIN { // a ".." while something was mounted elsewhere: openat2(2)
					fd, err = unix.Openat2(root, p, &how)
				}
				exists[p] = err == nil
				if err == nil {
					_ = unix.Close(fd)
				}
				if !strings.Contains(p, "..") {
					how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
					var st unix.Stat_t
					fd, err := unix.Openat2(root, p[1:], &how)
					if err == nil {
						err = unix.Fstat(fd, &st)
						_ = unix.Close(fd)
					}
					kinds[p[1:]] = [2]bool{err == nil, st.Mode&unix.S_IFMT == unix.S_IFDIR}
				}
			}
			return nil
		}()
	})
	require.NoError(t, err)
	return exists, kinds
}

// What can't be looked at for want of a descriptor is not taken for missing.
func TestErr(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, os.WriteFile(dir+"/a/file", []byte("content"), 0o644))
	require.NoError(t, os.Symlink("nowhere", dir+"/a/link"))
	for _, look := range []func(m *View) error{
		func(m *View) error { m.Lstat("a/b"); return m.Err() },
		func(m *View) error { m.Missing("/a/b/c"); return m.Err() },
		func(m *View) error { _, err := m.Read("/a/file", 10); return err },
	} {
		m, err := Open([]string{dir})
		require.NoError(t, err)
		for _, name := range []string{"none", "a/file/none", "a/link/none", "a/" + strings.Repeat("n", 300)} {
			_, _, ok := m.Lstat(name)
			require.False(t, ok)
			_, missing := m.Missing("/" + name)
			require.True(t, missing)
		}
		require.NoError(t, m.Err())
		_, _, _ = m.Lstat("none") // so that no descriptor of a is there
		testkit.WithDescriptors(t, 0, func() { err = look(m) })
		require.ErrorIs(t, err, unix.EMFILE)
		m.Close()
	}
}

// Trees as deep as a path may be, in several layers, take no more descriptors than layers have, and
// a walk of them takes a step for each name.
func TestAttackDeep(t *testing.T) {
	const layers, depth = 4, 2000
	dir := t.TempDir()
	var all []string
	for i := range layers {
		layer := filepath.Join(dir, strconv.Itoa(i))
		require.NoError(t, os.Mkdir(layer, 0o755))
		require.NoError(t, os.Symlink(strings.Repeat("d/", depth), layer+"/deep"))
		require.NoError(t, os.Symlink("deep/.."+strings.Repeat("/d/..", 800)+"/d", layer+"/back"))
		require.NoError(t, os.Symlink("deep/"+strings.Repeat("d/", depth), layer+"/deeper"))
		at, err := unix.Open(layer, unix.O_PATH|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		for range 2 * depth {
			require.NoError(t, unix.Mkdirat(at, "d", 0o755))
			next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
			require.NoError(t, errors.Join(err, unix.Close(at)))
			at = next
		}
		require.NoError(t, unix.Close(at))
		all = append(all, layer)
	}
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) }()
	m, err := Open(all)
	require.NoError(t, err)
	defer m.Close()

	for name, missing := range map[string]bool{"/deep": false, "/back": false, "/deep/x": true, "/deeper": true} {
		at, is := m.Missing(name)
		require.Equal(t, missing, is, name)
		require.Less(t, len(at.Path), unix.PathMax)
	}
	for n := range depth {
		isDir, _, ok := m.Lstat(strings.Repeat("d/", n) + "d")
		require.True(t, ok && isDir, n)
		_, _, ok = m.Lstat(strings.Repeat("d/", n) + "x")
		require.False(t, ok, n)
	}
}

// Links that are as long as they may be and wind through directories are followed no further than
// takes a moment, whatever there is at their end: 64 layers took seconds for each path.
func TestAttackWinding(t *testing.T) {
	const links, depth = maxLinks / 2, 250
	dir := t.TempDir()
	deep := strings.Repeat("d/", depth)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, deep), 0o755))
	for i := range links {
		from, to := strconv.Itoa(i), strconv.Itoa(i+1)
		require.NoError(t, os.Symlink(deep+strings.Repeat("../d/", 690)+to, filepath.Join(dir, from)))
		require.NoError(t, os.Symlink("/"+to, filepath.Join(dir, deep, to)))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, strconv.Itoa(links)), 0o755))
	require.NoError(t, os.Symlink("../"+strconv.Itoa(links)+"/none", filepath.Join(dir, "d/nowhere")))
	m, err := Open([]string{dir})
	require.NoError(t, err)
	defer m.Close()
	for from, want := range map[int]string{0: "/0/x", links - 2: "/20/x", links: "/20/x"} {
		at, missing := m.Missing(fmt.Sprintf("/%d/x", from))
		require.True(t, missing)
		require.Equal(t, want, at.Path)
	}
	at, missing := m.Missing("/d/nowhere")
	require.True(t, missing)
	require.Equal(t, "/d/nowhere", at.Path, "where the link is, wherever it led")
}
