//go:build linux

package testkit

import (
	"bufio"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An Inventory is everything that a forgotten cell or run would add to, by kind. It contains only
// what belongs to this process, as others run tests at the same time.
type Inventory map[string][]string

// TakeInventory returns the current inventory.
func TakeInventory() Inventory {
	startPoller()
	return Inventory{
		"child processes":   children(os.Getpid()),
		"cgroups":           cgroups(),
		"state directories": Cells(),
		"mounts":            MountPoints(),
		"descriptors":       descriptors(),
		"goroutines":        goroutines(),
	}
}

// AwaitNothingAdded gives what is about to end the time to do so, and returns a readable list of
// what is there then and was not when i was taken.
func (i Inventory) AwaitNothingAdded(patience time.Duration) string {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		added := i.added(TakeInventory())
		if added == "" || time.Now().After(end) {
			return added
		}
	}
}

func (i Inventory) added(now Inventory) string {
	var text strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(now)) {
		for _, item := range now[kind] {
			if !slices.Contains(i[kind], item) {
				fmt.Fprintf(&text, "%s: %s\n", kind, item)
			}
		}
	}
	return text.String()
}

// startPoller makes the runtime open its own descriptors, so that they are in every inventory.
func startPoller() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// cellID matches the names of cells' directories.
var cellID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// cgroups returns the cgroups of cells that no other live process owns, and the directory above the
// cells if no cell is left in it.
func cgroups() (list []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
		case cellID.MatchString(d.Name()):
			if dir := cellDir(d.Name()); dir == "" && mayBeOurs(d) || dir != "" && owned(dir) {
				list = append(list, path)
			}
			return fs.SkipDir
		case d.Name() == "sandbox" && len(subdirectories(path)) == 0 && mayBeOurs(d):
			list = append(list, path)
		}
		return nil
	})
	return list
}

// mayBeOurs reports whether a cgroup can be this process's: an ordinary user's are its own, and it
// does not find the state directories of root's cells.
func mayBeOurs(d fs.DirEntry) bool {
	if os.Geteuid() == 0 {
		return true
	}
	info, err := d.Info()
	return err == nil && int(info.Sys().(*syscall.Stat_t).Uid) == os.Geteuid()
}

func subdirectories(path string) (names []string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// stateRoots returns the places where cells may have their directories.
func stateRoots() []string {
	if os.Geteuid() == 0 {
		return []string{"/run/sandbox"}
	}
	return []string{
		filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sandbox"),
		fmt.Sprintf("/run/user/%d/sandbox", os.Geteuid()),
		filepath.Join(os.TempDir(), fmt.Sprintf("sandbox-%d", os.Geteuid())),
	}
}

// Cells returns the state directories of this process's cells.
func Cells() (list []string) {
	for _, root := range stateRoots() {
		for _, id := range subdirectories(root) {
			if owned(filepath.Join(root, id)) {
				list = append(list, filepath.Join(root, id))
			}
		}
	}
	return list
}

// cellDir returns the state directory of a cell of any process, or "".
func cellDir(id string) string {
	for _, root := range stateRoots() {
		if _, err := os.Stat(filepath.Join(root, id)); err == nil {
			return filepath.Join(root, id)
		}
	}
	return ""
}

// owned reports whether a cell belongs to this process, by its lock file.
func owned(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "lock"))
	return err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(os.Getpid())
}

// MountPoints returns the lines of /proc/self/mountinfo, except for those of engines that
// vmtest/docker.sh has started, maybe for another test: they mount things of their own.
func MountPoints() (list []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if !strings.Contains(lines.Text(), "/sandbox-docker-") {
			list = append(list, lines.Text())
		}
	}
	return list
}

// descriptors returns this process's open files, by number and what they refer to.
func descriptors() (list []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		path := "/proc/self/fd/" + e.Name()
		// The descriptor of ReadDir itself is closed by now.
		if target, err := os.Readlink(path); err == nil && !keptByLibcontainer(path, target) {
			list = append(list, e.Name()+" -> "+target)
		}
	}
	return list
}

// keptByLibcontainer reports whether a descriptor is one of the two that libcontainer opens once in
// a process's life: the roots of the cgroup file system and of procfs.
func keptByLibcontainer(path, target string) bool {
	var fs unix.Statfs_t
	return target == "/sys/fs/cgroup" || target == "/" && unix.Statfs(path, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC
}

// age is how long a goroutine has waited, in its stack's first line.
var age = regexp.MustCompile(`, \d+ minutes`)

// goroutines returns the goroutines of this module, except for the caller and tests.
func goroutines() (list []string) {
	buf := make([]byte, 4<<20)
	all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	for _, stack := range all[1:] { // the first is the caller
		if strings.Contains(stack, "cellkit/sandbox") && !strings.Contains(stack, "testing.tRunner(") {
			list = append(list, age.ReplaceAllString(stack, ""))
		}
	}
	return list
}

// CgroupMounts returns the mount points of this machine's cgroup hierarchies.
func CgroupMounts() (list []string) {
	for _, m := range MountPoints() {
		if _, after, _ := strings.Cut(m, " - "); strings.HasPrefix(after, "cgroup") {
			list = append(list, strings.Fields(m)[4])
		}
	}
	return list
}
