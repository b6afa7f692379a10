//go:build linux

package limits

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// removeWait bounds how long a removal waits for the end of killed processes. They usually end
// within a millisecond; one in an uninterruptible sleep can take forever.
const removeWait = 10 * time.Second

// Remove cleans up after a dead owner: it kills every process below path (such as "/sandbox/<id>")
// and removes the directories, in every hierarchy of this machine. A path that does not exist is no
// error. The directory above is also removed if Discover made it and it is now empty.
func Remove(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
		return fmt.Errorf("cgroup %q: must be an absolute, clean path below the cgroup mount", p)
	}
	all, err := mounts()
	if err != nil {
		return err
	}
	points := mountPoints(all)
	if err := removeTree(points, p); err != nil {
		return err
	}
	return removeTop(points, p)
}

// removeTop removes the directory above p if Discover chose it and nobody uses it any more.
func removeTop(mounts []string, p string) error {
	above := path.Dir(p)
	if path.Base(above) != top {
		return nil
	}
	var errs []error
	for _, mount := range mounts {
		dir := path.Join(mount, above)
		// EBUSY: other cells. EROFS, EACCES: a hierarchy that we don't use.
		if err := unix.Rmdir(dir); err != nil && !gone(err) && err != unix.EBUSY && err != unix.EROFS && err != unix.EACCES {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// removeTree kills the processes in p and below it and removes the directories, below each mount.
func removeTree(mounts []string, p string) error {
	if inside(p) {
		return fmt.Errorf("cgroup %s: this process is in it; it can't be removed from within", p)
	}
	list := func() (dirs []string) { // children before their parents
		for _, mount := range mounts {
			dirs = append(dirs, below(path.Join(mount, p))...)
		}
		return dirs
	}
	return removeDirs(list, func() error { return killTree(mounts, p) })
}

// removeDirs removes directories in the order of the list. Only when one is busy does it kill
// members and try again for removeWait. The list may have others by then: a container runtime that
// ends makes a cgroup for itself.
func removeDirs(list func() []string, kill func() error) error {
	var (
		deadline = time.Now().Add(removeWait)
		delay    = 100 * time.Microsecond
		killErr  error
	)
	for {
		left := 0
		var err error
		for _, dir := range list() {
			if e := unix.Rmdir(dir); e != nil && !gone(e) {
				left++
				err = &fs.PathError{Op: "rmdir", Path: dir, Err: e}
				if e != unix.EBUSY {
					deadline = time.Time{} // waiting does not help
				}
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d cgroup directories are left: %w", left, errors.Join(err, killErr))
		}
		killErr = kill()
		time.Sleep(delay)
		delay = min(2*delay, 20*time.Millisecond)
	}
}

// killTree kills the members of p and of everything below it.
func killTree(mounts []string, p string) error {
	var dirs []string
	for _, mount := range mounts {
		dir := path.Join(mount, p)
		if writeFile(dir+"/cgroup.kill", "1") != nil {
			dirs = append(dirs, below(dir)...)
		}
	}
	// Freezing from the top down stops processes that fork faster than they are killed. v1
	// keeps a frozen process even from SIGKILL, so all are thawed at the end, wherever they
	// were frozen.
	for _, dir := range slices.Backward(dirs) {
		_ = freezerOf(dir).set(true)
	}
	err := killMembers(dirs)
	for _, dir := range dirs {
		_ = freezerOf(dir).set(false)
	}
	return err
}

// below returns dir and all directories below it, children first, or none if dir does not exist.
func below(dir string) []string {
	var dirs []string
	_ = filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir // vanished meanwhile, or can't be read, which rmdir reports
		}
		if entry.IsDir() {
			dirs = append(dirs, name)
		}
		return nil
	})
	slices.Reverse(dirs)
	return dirs
}

// inside reports whether this process is in p or below it, in any hierarchy.
func inside(p string) bool {
	data, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && strings.HasPrefix(f[2]+"/", p+"/") {
			return true
		}
	}
	return false
}
