package cell

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// claims is a file in which a locked byte is an id of the host that a live run has: user ids from offset 0,
// group ids behind them. The locks belong to the open file (fcntl(2), F_OFD_SETLK), which a cell shares with its fork
// server only: the kernel drops them when both have ended, however they do.
type claims struct{ file *os.File }

const (
	claimsName = "ids"
	groupIDs   = 1 << 32 // where they begin
)

func openClaims(root string) (*claims, error) {
	f, err := os.OpenFile(filepath.Join(root, claimsName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &claims{f}, nil
}

// claim returns false if somebody else has one of the ids.
func (c *claims) claim(uid, gid idRange) (bool, error) {
	ok, err := c.lock(unix.F_WRLCK, uid.start, uid.size)
	if !ok {
		return false, err
	}
	if ok, err = c.lock(unix.F_WRLCK, groupIDs+gid.start, gid.size); !ok {
		c.drop(uid, idRange{})
	}
	return ok, err
}

// drop gives the ids back.
func (c *claims) drop(uid, gid idRange) {
	_, _ = c.lock(unix.F_UNLCK, uid.start, uid.size) // for want of memory it stays locked
	if gid.size > 0 {
		_, _ = c.lock(unix.F_UNLCK, groupIDs+gid.start, gid.size)
	}
}

func (c *claims) lock(kind int16, start, size int64) (bool, error) {
	err := unix.FcntlFlock(c.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: size})
	switch err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EACCES:
		return false, nil
	}
	return false, &os.PathError{Op: "lock", Path: c.file.Name(), Err: err}
}
