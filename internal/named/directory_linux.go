package named

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const directoryName = "sandbox-runs"

// suffix ends the names of the sockets.
const suffix = ".sock"

// directory is where the sockets of this user are: open, so that it stays the one that was checked,
// and so that paths are short enough for sockets, unix(7).
type directory struct{ *os.File }

// openDirectory opens it, and makes it if it is not there: in $XDG_RUNTIME_DIR, or where that is
// with a login's environment, if that is this user's; or with the user's id in its name in /run, if
// this user may write there, or in /tmp.
func openDirectory() (directory, error) {
	var places []string
	own := strconv.Itoa(os.Geteuid())
	if base := cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), "/run/user/"+own); filepath.IsAbs(base) {
		if d, err := openOwn(base, 0, 0o022); err == nil { // sudo may keep another user's
			d.Close()
			places = append(places, filepath.Join(base, directoryName))
		}
	}
	own = directoryName + "-" + own
	places = append(places, filepath.Join("/run", own), filepath.Join("/tmp", own))
	var err error
	for _, path := range places {
		if err = os.Mkdir(path, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			return openOwn(path, unix.O_NOFOLLOW, 0o077)
		}
	}
	return directory{}, err
}

// openOwn opens a directory that must be this user's, and lack the given permissions.
func openOwn(path string, flags int, lacks os.FileMode) (directory, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|flags, 0)
	if err != nil {
		return directory{}, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (st.Uid != uint32(os.Geteuid()) || st.Mode&uint32(lacks) != 0) {
		err = fmt.Errorf("%s belongs to another user or is open to others: remove it, or set XDG_RUNTIME_DIR to a directory of your own", path)
	}
	if err != nil {
		f.Close()
		return directory{}, err
	}
	return directory{f}, nil
}

// path returns a path of a name's socket that leads through the open directory.
func (d directory) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name+suffix)
}

// locked calls f while no other process takes a name or gives one up.
func (d directory) locked(f func() error) error {
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if err == nil {
			defer func() { _ = unix.Flock(int(d.Fd()), unix.LOCK_UN) }()
			return f()
		}
		if err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// names returns those that have a socket.
func (d directory) names() (names []string, err error) {
	entries, err := d.ReadDir(-1)
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok && Check(name) == nil {
			names = append(names, name)
		}
	}
	return names, err
}
