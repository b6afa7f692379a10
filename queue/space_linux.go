package queue

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// freeSpace returns how many bytes the disk of a directory has left.
func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}
