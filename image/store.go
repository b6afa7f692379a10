//go:build linux

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Store is a directory in which layers are unpacked, each once, under the digest of its content and
// of the layers below it. Any number of processes may use one at the same time. A process that dies
// at any moment leaves nothing in it that another takes for a layer.
//
//	layers/HASH/files       what is in the layer
//	layers/HASH/info.json   what is known of it; used when it was last modified
//	locks/HASH              shared lock by users of the layer, exclusive to make or remove it
//	temp/HASH               what is being unpacked or removed by who has that lock
type Store struct{ dir string }

// DefaultStore returns the store in the user's cache directory: $XDG_CACHE_HOME/sandbox/images, or
// ~/.cache/sandbox/images.
func DefaultStore() (*Store, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("image: no place for a store: %w: set it, or use WithStore", err)
	}
	return OpenStore(filepath.Join(dir, "sandbox", "images"))
}

// OpenStore opens the store in dir, and makes it if it does not exist. Only the caller's user may
// enter it, because images may have set-uid programs. For images that hide files of lower layers,
// its file system must have user extended attributes, as ext4, xfs and btrfs have, and tmpfs since
// Linux 6.6, and must not be an overlay, as a container's own root usually is: otherwise Open fails
// for them. A directory that exists is closed to others; one that they may enter is refused if
// there is anything else in it.
func OpenStore(dir string) (*Store, error) {
	if dir == "" {
		return nil, errors.New("image: store: no directory is given")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = mayClose(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("image: store: %w", err)
	}
	for _, sub := range storeDirs {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("image: store: %w", err)
		}
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("image: store: %w", err)
	}
	return &Store{dir}, nil
}

var storeDirs = []string{"layers", "locks", "temp"}

// mayClose refuses a directory that others may enter, and that has something else than a store:
// they could not use it any more.
func mayClose(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return nil // what is wrong with it is found when it is used
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const enough = 1 + 4 // storeDirs, lost+found, and what is too much
	names, err := f.Readdirnames(enough)
	if err != nil && err != io.EOF {
		return err
	}
	for _, name := range names {
		if !slices.Contains(storeDirs, name) && name != "lost+found" {
			return fmt.Errorf("%s has %q, and others may enter it: name a directory of its own, as a store is closed to them", dir, name)
		}
	}
	return nil
}

// layer is a locked layer in the store.
type layer struct {
	store *Store
	hash  string
	lock  *os.File
	info  info
}

// info is what the store knows of a layer.
type info struct {
	Content string // the digest of its tar file
	Opaque  bool   // hides the layers below it
	Bytes   int64  // size of its files
	Files   int64
	Tree    string // digest of the files as they were unpacked, for Verify

	LeftOut []string `json:",omitempty"` // device nodes, at most maxLeftOut
}

func (s *Store) path(kind, hash string) string { return filepath.Join(s.dir, kind, hash) }

func (l *layer) files() string { return filepath.Join(l.store.path("layers", l.hash), "files") }

func (l *layer) release() error { return l.lock.Close() }

// unpack returns the image, with all of its layers in the store.
func (s *Store) unpack(ctx context.Context, src *source, o *options) (_ *Image, err error) {
	img := &Image{digest: src.digest, config: src.config.Config}
	defer func() {
		if err != nil {
			err = errors.Join(err, img.Close())
		}
	}()
	chain := ""
	for i, content := range src.config.RootFS.DiffIDs {
		chain = chainID(chain, content)
		job := &job{
			src: src, from: src.layers[i], content: content, parents: img.layers, limits: o.limits,
			progress: o.progress, at: Progress{Layer: content.String(), Index: i, Count: len(src.layers)},
		}
		l, err := s.layer(ctx, chain, job)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", content, err)
		}
		img.layers = append(img.layers, l)
	}
	return img, nil
}

// chainID names a layer by everything that its files depend on: the OCI image specification, "Layer
// ChainID".
func chainID(below string, content v1.Hash) string {
	if below == "" {
		return content.Hex
	}
	h, _, _ := v1.SHA256(strings.NewReader("sha256:" + below + " " + content.String())) // reading a string does not fail
	return h.Hex
}

// layer locks a layer. If it is missing, it is unpacked first.
func (s *Store) layer(ctx context.Context, hash string, j *job) (_ *layer, err error) {
	lock, err := os.OpenFile(s.path("locks", hash), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	l := &layer{store: s, hash: hash, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	for {
		if err := flock(ctx, lock, unix.LOCK_SH); err != nil {
			return nil, err
		}
		if err := l.readInfo(); err == nil {
			now := time.Now()
			return l, os.Chtimes(l.infoPath(), now, now) // for Collect, which removes the least recently used first
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		// Whoever has been faster keeps a shared lock for as long as it uses the layer.
		if got, err := tryFlock(lock, unix.LOCK_EX); err != nil {
			return nil, err
		} else if !got {
			if err := pauseFlock(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err := l.readInfo(); errors.Is(err, fs.ErrNotExist) { // no other process was faster
			if err := l.make(ctx, j); err != nil {
				return nil, err
			}
		}
		// Between the exclusive lock and a shared one another process may remove it again,
		// so check once more.
	}
}

func (l *layer) infoPath() string { return filepath.Join(l.store.path("layers", l.hash), "info.json") }

func (l *layer) readInfo() error {
	b, err := os.ReadFile(l.infoPath())
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &l.info); err != nil {
		return fmt.Errorf("%s: %w: the store is damaged: Verify names what is, and removes it", l.infoPath(), err)
	}
	return nil
}

// make unpacks the layer in another place, and moves it to its own when all of it is on the disk.
// The caller has the exclusive lock.
func (l *layer) make(ctx context.Context, j *job) (err error) {
	temp := l.store.path("temp", l.hash)
	if err := removeAll(temp); err != nil { // left by a process that died
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(temp))
		}
	}()
	files := filepath.Join(temp, "files")
	if err := os.MkdirAll(files, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(files, 0o755); err != nil { // despite the umask
		return err
	}
	if l.info, err = j.unpack(ctx, files); err != nil {
		return err
	}
	b, err := json.Marshal(l.info)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temp, "info.json"), b, 0o600); err != nil {
		return err
	}
	if err := syncFS(temp); err != nil {
		return err
	}
	return os.Rename(temp, l.store.path("layers", l.hash))
}

// syncFS waits until everything that was written is on the disk: a layer's name must not survive a
// loss of power that its files don't survive.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// flock waits for a lock until ctx ends.
func flock(ctx context.Context, f *os.File, how int) error {
	for {
		got, err := tryFlock(f, how)
		if got || err != nil {
			return err
		}
		if err := pauseFlock(ctx); err != nil {
			return err
		}
	}
}

// tryFlock reports whether it got a lock. If not, a lock that f had is lost: flock(2).
func tryFlock(f *os.File, how int) (bool, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err {
		case nil:
			return true, nil
		case unix.EWOULDBLOCK:
			return false, nil
		case unix.EINTR:
		default:
			return false, os.NewSyscallError("flock", err)
		}
	}
}

// pauseFlock waits between two attempts.
func pauseFlock(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// removeAll does the same as os.RemoveAll, but also removes directories that their owner may not
// write to.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700) // os.RemoveAll reports what it still can't remove
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Layer is a layer in the store.
type Layer struct {
	Digest string // of its content and of the layers below it
	Bytes  int64
	Files  int64
	Used   time.Time // when an image with this layer was last opened
}

// Layers lists the layers in the store, the most recently used first.
func (s *Store) Layers() ([]Layer, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return nil, fmt.Errorf("image: store: %w", err)
	}
	var list []Layer
	for _, e := range entries {
		l := &layer{store: s, hash: e.Name()}
		if err := l.readInfo(); errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("image: store: %w", err)
		}
		stat, err := os.Stat(l.infoPath())
		if err != nil {
			continue
		}
		list = append(list, Layer{Digest: "sha256:" + l.hash, Bytes: l.info.Bytes, Files: l.info.Files, Used: stat.ModTime()})
	}
	slices.SortFunc(list, func(a, b Layer) int { return b.Used.Compare(a.Used) })
	return list, nil
}

// Collect removes layers that no open image of any process uses, the least recently used first,
// until the files in the store have at most that many bytes. It returns how many bytes it removed.
func (s *Store) Collect(keep int64) (removed int64, err error) {
	list, err := s.Layers()
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, l := range list {
		total += l.Bytes
	}
	if err := s.sweep(); err != nil {
		return 0, err
	}
	for _, l := range slices.Backward(list) {
		if keep > 0 && total-removed <= keep { // with 0, layers of no bytes go too
			break
		}
		gone, err := s.remove(l.Digest[len("sha256:"):])
		if err != nil {
			return removed, fmt.Errorf("image: store: %w", err)
		}
		if gone {
			removed += l.Bytes
		}
	}
	return removed, nil
}

// remove removes a layer unless a process uses it.
func (s *Store) remove(hash string) (bool, error) {
	lock, err := s.tryLock(hash)
	if lock == nil || err != nil {
		return false, err
	}
	defer lock.Close()
	temp := s.path("temp", hash)
	if err := removeAll(temp); err != nil {
		return false, err
	}
	if err := os.Rename(s.path("layers", hash), temp); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	return true, removeAll(temp)
}

// sweep removes what processes that died have left.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "temp"))
	if err != nil {
		return fmt.Errorf("image: store: %w", err)
	}
	for _, e := range entries {
		lock, err := s.tryLock(e.Name())
		if lock == nil && err == nil {
			continue // a process is working on it
		}
		if err == nil {
			err = errors.Join(removeAll(s.path("temp", e.Name())), lock.Close())
		}
		if err != nil {
			return fmt.Errorf("image: store: %w", err)
		}
	}
	return nil
}

// tryLock returns nil if a process uses the layer.
func (s *Store) tryLock(hash string) (*os.File, error) {
	lock, err := os.OpenFile(s.path("locks", hash), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	got, err := tryFlock(lock, unix.LOCK_EX)
	if !got {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Verify compares the files of every layer with what was unpacked. The error names the layers that
// differ. They are removed, unless a process uses them, so that the next Open unpacks them again.
func (s *Store) Verify(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return fmt.Errorf("image: store: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		damage, err := s.verify(ctx, e.Name())
		if err == nil && damage != nil {
			var gone bool
			if gone, err = s.remove(e.Name()); gone {
				damage = fmt.Errorf("%w: removed", damage)
			} else if err == nil {
				damage = fmt.Errorf("%w: in use", damage)
			}
		}
		if err = errors.Join(damage, err); err != nil {
			errs = append(errs, fmt.Errorf("image: layer sha256:%s: %w", e.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// verify returns what is wrong with a layer. It holds the layer's lock meanwhile.
func (s *Store) verify(ctx context.Context, hash string) (damage, err error) {
	lock, err := os.OpenFile(s.path("locks", hash), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := flock(ctx, lock, unix.LOCK_SH); err != nil {
		return nil, err
	}
	l := &layer{store: s, hash: hash}
	if _, err := os.Lstat(s.path("layers", hash)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed meanwhile
	}
	if err := l.readInfo(); err != nil {
		return err, nil
	}
	tree, err := treeDigest(ctx, l.files())
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return err, nil
	case tree != l.info.Tree:
		return errors.New("its files are not those that were unpacked"), nil
	}
	return nil, nil
}
