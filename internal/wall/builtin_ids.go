//go:build linux

package wall

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapError is an error of writing a map of ids.
type mapError struct{ err error }

func (e *mapError) Error() string { return "mapping user ids: " + e.err.Error() }
func (e *mapError) Unwrap() error { return e.err }

// mapIDs writes the maps of the user namespace of a child that has one of its own:
// user_namespaces(7).
func mapIDs(pid int, uids, gids []Extent) error {
	err := mapWith("newuidmap", pid, "uid_map", uids)
	if err == nil && onlyOwnGroup(gids) {
		// Without CAP_SETGID, the kernel demands this before the process's own group is
		// mapped. Else a process could leave a group to which a file denies what it lets
		// others do (CVE-2014-8989).
		err = os.WriteFile(procFile(pid, "setgroups"), []byte("deny"), 0)
	}
	if err == nil {
		err = mapWith("newgidmap", pid, "gid_map", gids)
	}
	if err != nil {
		return &mapError{err}
	}
	return nil
}

// onlyOwnGroup reports whether the map has nothing but this process's own group, which everybody
// may map.
func onlyOwnGroup(gids []Extent) bool {
	return slices.Equal(gids, []Extent{{Inside: 0, Outside: int64(os.Getegid()), Size: 1}})
}

// mapWith writes a map itself, or, if this process may not, with a set-uid tool, which gives
// ordinary users the ids that they have in /etc/subuid and /etc/subgid.
func mapWith(tool string, pid int, name string, extents []Extent) error {
	var text strings.Builder
	args := []string{strconv.Itoa(pid)}
	for _, e := range extents {
		fmt.Fprintf(&text, "%d %d %d\n", e.Inside, e.Outside, e.Size)
		args = append(args, fmt.Sprint(e.Inside), fmt.Sprint(e.Outside), fmt.Sprint(e.Size))
	}
	err := os.WriteFile(procFile(pid, name), []byte(text.String()), 0)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if _, lookErr := exec.LookPath(tool); lookErr != nil {
		return err
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(string(out[:min(len(out), 1<<10)])))
	}
	return nil
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }
