//go:build linux

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Several processes that open the same image at once unpack it once, and remains of processes that
// died do no harm.
func TestRootlessStoreIsShared(t *testing.T) {
	needWhiteouts(t)
	store := newStore(t)
	var files []file
	for i := range 300 {
		files = append(files, file{name: fmt.Sprint("f", i), content: strings.Repeat("x", 1000)})
	}
	dir := layoutOf(t, imageOf(t, v1.Config{}, asGzip(t, tarOf(t, files...)), asGzip(t, second(t))))
	left := filepath.Join(store.dir, "temp", chainOf(t, files), "files", "half")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, os.Chmod(filepath.Dir(left), 0o500))
	var progress sync.Map
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			other, err := OpenStore(store.dir)
			if err != nil {
				t.Error(err)
				return
			}
			img, err := Open(context.Background(), dir, WithStore(other), WithProgress(func(p Progress) {
				if p.Bytes == p.Total {
					n, _ := progress.LoadOrStore(p.Index, new(sync.Map))
					n.(*sync.Map).Store(p.Layer, p.Count)
				}
			}))
			if err != nil {
				t.Error(err)
				return
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	list, err := store.Layers()
	require.NoError(t, err)
	require.Len(t, list, 2)
	for i := range 2 {
		_, ok := progress.Load(i)
		require.True(t, ok, "progress of layer %d", i)
	}
	require.NoError(t, store.Verify(t.Context()))
	entries, err := os.ReadDir(filepath.Join(store.dir, "temp"))
	require.NoError(t, err)
	require.Empty(t, entries)
	info, err := os.Stat(store.dir)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
}

func chainOf(t *testing.T, files []file) string {
	h, _, err := v1.SHA256(bytes.NewReader(tarOf(t, files...)))
	require.NoError(t, err)
	return h.Hex
}

// Unused layers are removed, the least recently used first.
func TestCollect(t *testing.T) {
	store := newStore(t)
	kilo := func(name string) v1.Layer {
		return asGzip(t, tarOf(t, file{name: name, content: strings.Repeat("x", 1000)}))
	}
	used := open(t, store, layoutOf(t, imageOf(t, v1.Config{}, kilo("used"))))
	for _, name := range []string{"old", "new"} {
		require.NoError(t, open(t, store, layoutOf(t, imageOf(t, v1.Config{}, kilo(name)))).Close())
	}
	removed, err := store.Collect(2000)
	require.NoError(t, err)
	require.EqualValues(t, 1000, removed)
	list, err := store.Layers()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "sha256:"+chainOf(t, []file{{name: "new", content: strings.Repeat("x", 1000)}}), list[0].Digest)
	removed, err = store.Collect(0)
	require.NoError(t, err)
	require.EqualValues(t, 1000, removed, "what is in use stays")
	require.NoError(t, used.Close())
	removed, err = store.Collect(0)
	require.NoError(t, err)
	require.EqualValues(t, 1000, removed)
	requireEmpty(t, store)

	for _, name := range []string{"1", "2", "3"} {
		require.NoError(t, open(t, store, layoutOf(t, imageOf(t, v1.Config{}, kilo(name))), WithStoreSize(2000)).Close())
	}
	list, err = store.Layers()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "sha256:"+chainOf(t, []file{{name: "3", content: strings.Repeat("x", 1000)}}), list[0].Digest)
}

// Verify finds every kind of change, and the layers that it removes are unpacked again.
func TestVerify(t *testing.T) {
	layer := tarOf(t, file{name: "dir/"}, file{name: "dir/file", content: "content"}, file{name: "link", link: "dir"})
	dir := layoutOf(t, imageOf(t, v1.Config{}, asGzip(t, layer)))
	store := newStore(t)
	for what, change := range map[string]func(files string) error{
		"content":    func(f string) error { return os.WriteFile(f+"/dir/file", []byte("changed"), 0o644) },
		"mode":       func(f string) error { return os.Chmod(f+"/dir/file", 0o755) },
		"new":        func(f string) error { return os.WriteFile(f+"/dir/new", nil, 0o644) },
		"gone":       func(f string) error { return os.Remove(f + "/dir/file") },
		"link":       func(f string) error { return errors.Join(os.Remove(f+"/link"), os.Symlink("/etc", f+"/link")) },
		"pipe":       func(f string) error { return errors.Join(os.Remove(f+"/dir/file"), unix.Mkfifo(f+"/dir/file", 0o644)) },
		"everything": os.RemoveAll,
		"info":       func(f string) error { return os.WriteFile(filepath.Dir(f)+"/info.json", []byte("{"), 0o600) },
	} {
		img := open(t, store, dir)
		files := img.layers[0].files()
		require.NoError(t, store.Verify(t.Context()))
		require.NoError(t, change(files), what)
		require.ErrorContains(t, store.Verify(t.Context()), "in use", what)
		require.NoError(t, img.Close())
		require.ErrorContains(t, store.Verify(t.Context()), "removed", what)
		requireEmpty(t, store)
	}
}

// Open ends when its context ends, whatever it waits for, and leaves nothing behind.
func TestCanceled(t *testing.T) {
	store := newStore(t)
	layer := asGzip(t, tarOf(t, file{name: "x"}))
	dir := layoutOf(t, imageOf(t, v1.Config{}, layer))
	content, err := layer.DiffID()
	require.NoError(t, err)
	lock, err := store.tryLock(content.Hex)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Open(ctx, dir, WithStore(store))
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, lock.Close())
	_, err = Open(ctx, dir, WithStore(store))
	require.ErrorIs(t, err, context.Canceled)
	requireEmpty(t, store)
}

// Who was faster to unpack a layer keeps a shared lock of it.
func TestFasterOther(t *testing.T) {
	store, other := newStore(t), newStore(t)
	layer := asGzip(t, tarOf(t, file{name: "x"}))
	dir := layoutOf(t, imageOf(t, v1.Config{}, layer))
	content, err := layer.DiffID()
	require.NoError(t, err)
	img, err := Open(t.Context(), dir, WithStore(other))
	require.NoError(t, err)
	require.NoError(t, img.Close())
	lock, err := os.Create(store.path("locks", content.Hex))
	require.NoError(t, err)
	defer lock.Close()
	got, err := tryFlock(lock, unix.LOCK_SH)
	require.NoError(t, err)
	require.True(t, got)
	opened := make(chan error)
	go func() {
		img, err := Open(testkit.Deadline(t), dir, WithStore(store))
		if err == nil {
			err = img.Close()
		}
		opened <- err
	}()
	time.Sleep(100 * time.Millisecond) // it can't unpack it meanwhile
	require.NoError(t, os.Rename(other.path("layers", content.Hex), store.path("layers", content.Hex)))
	require.NoError(t, <-opened)
}

// A store is closed to others, and closes nothing that is not its own.
func TestStoreClosesNothingElse(t *testing.T) {
	mode := func(dir string) fs.FileMode {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		return info.Mode().Perm()
	}
	for name, test := range map[string]struct {
		have   string // a directory in it
		before fs.FileMode
		fails  bool
	}{
		"empty": {"", 0o755, false}, "a file system's": {"lost+found", 0o755, false}, "a store": {"layers", 0o755, false},
		"closed": {"other", 0o700, false}, "another's": {"other", 0o755, true}, "everybody's": {"other", 0o777, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.MkdirAll(filepath.Join(dir, test.have), 0o755))
			require.NoError(t, os.Chmod(dir, test.before))
			_, err := OpenStore(dir)
			if !test.fails {
				require.NoError(t, err)
				require.Equal(t, fs.FileMode(0o700), mode(dir))
				return
			}
			require.ErrorContains(t, err, "name a directory of its own")
			require.Equal(t, test.before, mode(dir))
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "nothing is made there")
		})
	}
	_, err := OpenStore("")
	require.ErrorContains(t, err, "no directory is given")
}

// crashEnv makes this test binary open an image in a store until its parent kills it.
const crashEnv = "IMAGE_TEST_CRASH"

func init() {
	if dir, ref, ok := strings.Cut(os.Getenv(crashEnv), "\n"); ok {
		store, err := OpenStore(dir)
		if err == nil {
			_, err = Open(context.Background(), ref, WithStore(store))
		}
		fmt.Println(err)
		os.Exit(0)
	}
}

// A process that is killed while it unpacks leaves nothing that is taken for a layer, and blocks no
// other process.
func TestCrash(t *testing.T) {
	var files []file
	for i := range 400 {
		files = append(files, file{name: fmt.Sprint("f", i), content: strings.Repeat("x", 3000)})
	}
	ref := layoutOf(t, imageOf(t, v1.Config{}, asGzip(t, tarOf(t, files...)), asZstd(t, tarOf(t, files[:200]...))))
	killed := 0
	for i := range 30 {
		store := newStore(t)
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), crashEnv+"="+store.dir+"\n"+ref)
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(i) * 4 * time.Millisecond)
		_ = cmd.Process.Kill() // it may have ended
		if cmd.Wait() != nil {
			killed++
		}
		require.NoError(t, store.Verify(t.Context()), "what is there is whole")
		img := open(t, store, ref)
		for n, l := range img.layers {
			entries, err := os.ReadDir(l.files())
			require.NoError(t, err)
			require.Len(t, entries, []int{400, 200}[n])
		}
		require.NoError(t, store.Verify(t.Context()))
		require.NoError(t, img.Close())
		_, err := store.Collect(0)
		require.NoError(t, err)
		requireEmpty(t, store)
	}
	require.Greater(t, killed, 5)
}
