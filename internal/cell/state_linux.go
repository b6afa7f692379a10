package cell

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/wall"
)

// state is a cell's directory. Its lock file is locked as long as its owner lives, and the kernel
// unlocks it however the owner ends. So whoever gets the lock of another directory knows that its
// owner is dead.
type state struct {
	id   string
	dir  string
	lock *os.File
}

const lockName = "lock"

// stateRoot returns /run/sandbox for root, otherwise a directory of the user's own. Root of a user
// namespace, or of a container with a read-only root, counts as an ordinary user if it may not
// write to /run.
func stateRoot() (string, error) {
	if os.Geteuid() != 0 {
		return userStateRoot()
	}
	dir, err := ensureDir("/run/sandbox", 0o711)
	if err == nil || !foreignRun() {
		return dir, err
	}
	return userStateRoot()
}

// foreignRun reports whether this process may not make anything in /run.
func foreignRun() bool { return unix.Access("/run", unix.W_OK) != nil }

// userStateRoot returns the first place that can be used. In the directory for temporary files
// another user may have taken the name.
func userStateRoot() (string, error) {
	var places []string
	// The same place with and without a login's environment: processes share ids through it.
	if dir := cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", os.Geteuid())); filepath.IsAbs(dir) {
		places = append(places, filepath.Join(dir, "sandbox"))
	}
	places = append(places, filepath.Join(os.TempDir(), fmt.Sprintf("sandbox-%d", os.Geteuid())))
	if dir, err := os.UserHomeDir(); err == nil && filepath.IsAbs(dir) {
		places = append(places, filepath.Join(dir, ".sandbox"))
	}
	var errs []error
	for _, place := range places {
		dir, err := ensureDir(place, 0o700)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("no place for the state of cells: set XDG_RUNTIME_DIR to a directory of this user's: %w", errors.Join(errs...))
}

// ensureDir makes the directory, or accepts an existing one that belongs to this user and that
// nobody else can write to.
func ensureDir(dir string, mode os.FileMode) (string, error) {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("state directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fmt.Errorf("state directory %s is not a directory of this user's that only it can write to: remove it", dir)
	}
	if err := os.Chmod(dir, mode); err != nil { // despite the umask
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// newState makes a locked directory. It takes the lock before the directory gets the name by which
// others find it.
func newState(root string) (*state, error) {
	var random [8]byte
	_, _ = rand.Read(random[:])
	s := &state{id: hex.EncodeToString(random[:])}
	s.dir = filepath.Join(root, s.id)
	tmp := filepath.Join(root, "."+s.id)
	if err := os.Mkdir(tmp, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := s.prepare(tmp); err != nil {
		s.release()
		os.RemoveAll(tmp)
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return s, nil
}

func (s *state) prepare(tmp string) error {
	if err := os.Chmod(tmp, 0o711); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(tmp, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return os.NewSyscallError("flock", err)
	}
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil { // for people and tests that look for its owner
		return err
	}
	return os.Rename(tmp, s.dir)
}

func (s *state) release() {
	if s.lock != nil {
		s.lock.Close()
	}
}

// remove deletes the directory and then gives up the lock.
func (s *state) remove() error {
	err := os.RemoveAll(s.dir)
	s.release()
	return err
}

// unnamedFor is how long a directory may exist without a locked lock file. It covers the time
// between its creation and its owner's flock, with a wide margin.
const unnamedFor = time.Minute

// sweep removes what dead owners left: processes, cgroups, directories.
func sweep(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, sweepOne(root, e))
		}
	}
	return errors.Join(errs...)
}

func sweepOne(root string, e os.DirEntry) error {
	dir := filepath.Join(root, e.Name())
	if strings.HasPrefix(e.Name(), ".") && recent(e) {
		return nil // its owner is about to lock it and must find it unlocked
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		if recent(e) {
			return nil
		}
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // its owner lives
	}
	container := filepath.Join(dir, containerName)
	working := wall.Working(container) // and may make again what is removed here
	// The owner may have died between making the file and writing it.
	if path, err := os.ReadFile(filepath.Join(dir, cgroupName)); err == nil && len(path) > 0 {
		if err := limits.Remove(string(path)); err != nil {
			return fmt.Errorf("removing the cgroups of dead cell %s: %w", e.Name(), err)
		}
	}
	if name, err := os.ReadFile(filepath.Join(dir, runtimeName)); err == nil {
		if err := wall.Clean(string(name), e.Name(), container); err != nil {
			return fmt.Errorf("cleaning up after %s of dead cell %s: %w", name, e.Name(), err)
		}
	}
	if working {
		return nil // a later sweep finds the rest through the directory
	}
	return os.RemoveAll(dir)
}

// recent reports whether the directory is too young to be left over, or is gone.
func recent(e os.DirEntry) bool {
	info, err := e.Info()
	return err != nil || time.Since(info.ModTime()) < unnamedFor
}

// cgroupName is the file to which a cell writes where its cgroups are, before it makes them.
const cgroupName = "cgroup"

// runtimeName is the file with the name of the installed runtime that makes a cell, if one does,
// and containerName the directory that is wall.Container.Dir.
const (
	runtimeName   = "runtime"
	containerName = "container"
)

// noteRuntime writes down which runtime a later sweep has to clean up after.
func (s *state) noteRuntime(name string) error {
	return os.WriteFile(filepath.Join(s.dir, runtimeName), []byte(name), 0o600)
}
