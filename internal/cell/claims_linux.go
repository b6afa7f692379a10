package cell

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// claims is a file in which each byte stands for an id of the host, and a locked byte for an id
// that a live run has. User ids begin at offset 0, group ids follow. The locks belong to the open
// file (fcntl(2), F_OFD_SETLK), which only the cell and its fork server share: the kernel drops
// them when both have ended, however they end.
type claims struct{ file *os.File }

const (
	claimsName = "ids"
	groupIDs   = 1 << 32 // offset of the first
)

func openClaims(root string) (*claims, error) {
	f, err := os.OpenFile(filepath.Join(root, claimsName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &claims{f}, nil
}

// claim locks the ids. It returns false if another cell has one of them.
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

// drop unlocks the ids.
func (c *claims) drop(uid, gid idRange) {
	_, _ = c.lock(unix.F_UNLCK, uid.start, uid.size) // if memory is short they stay locked
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
