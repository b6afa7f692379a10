//go:build linux

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/overlay"
)

// treeDigest returns a digest of everything below a directory: names, types, permissions, owners,
// links and contents. It follows no symbolic link and opens only regular files and directories.
func treeDigest(ctx context.Context, dir string) (string, error) {
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(sum, "%q %o %d %d %d\n", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			fmt.Fprintf(sum, "%q\n", target)
			return err
		case unix.S_IFDIR:
			var value [8]byte
			n, err := unix.Lgetxattr(p, "user.overlay.opaque", value[:])
			if err == nil {
				fmt.Fprintf(sum, "opaque %q\n", value[:n])
			}
			return nil
		case unix.S_IFREG:
			return hashFile(sum, p, st.Size)
		}
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

func hashFile(to io.Writer, p string, size int64) error {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Fprintf(to, "%d\n", size)
	_, err = io.Copy(to, f)
	return err
}

// readMerged returns at most limit bytes of a regular file, as one sees it in a run that has the
// layers for its root, the lowest first.
func readMerged(layers []string, name string, limit int64) ([]byte, error) {
	v, err := overlay.Open(layers)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return v.Read(name, limit)
}
