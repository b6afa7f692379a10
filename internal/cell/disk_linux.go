package cell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/fault"
)

// NewDiskScratch makes an ext4 file system in a file of a directory of the host, with room for the
// given number of bytes less its own tables. A *fault.SetupError lacks its stage. Nobody but the
// kernel writes that file: it has no name, the loop device that has it is let go of with the last
// mount, and so is the file with that.
func NewDiskScratch(dir string, size int64) (*Scratch, error) {
	if !hasSetAttr() {
		return nil, errNoScratch
	}
	if !asRoot() {
		return nil, &fault.SetupError{Err: errors.New("loop devices and ext4 take root"),
			Hint: "run this program as root, or use NewScratch, or WithBind of a directory, with a quota of its file system where it has one"}
	}
	image, err := newImage(dir, size)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	device, err := attachImage(image)
	if err != nil {
		return nil, &fault.SetupError{Err: err, Hint: "load the module loop, and in a container give it /dev/loop-control and the devices"}
	}
	defer device.Close()
	// What has no life after this process needs no flush to the disk when a run asks for one,
	// and room is given back as files are removed.
	return newScratch(func(s *Scratch) (*os.File, error) {
		return s.makeHere("ext4", []string{"source=" + device.Name(), "discard", "nobarrier", "noinit_itable", "errors=remount-ro"})
	})
}

// newImage returns a file without a name that has an empty file system in it. It takes room on the
// disk as it is written.
func newImage(dir string, size int64) (image *os.File, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fault.SetupError{Err: &os.PathError{Op: "open", Path: dir, Err: err}, Hint: "name a directory on a disk, such as one on ext4, xfs or btrfs"}
	}
	image = os.NewFile(uintptr(fd), dir)
	defer func() {
		if err != nil {
			image.Close()
		}
	}()
	if err := image.Truncate(size); err != nil {
		return nil, err
	}
	mkfs, err := findMkfs()
	if err != nil {
		return nil, err
	}
	// Without a journal, and without room that is kept for root. What the kernel does about
	// errors, as on a disk that is full, is not left to the machine's mke2fs.conf.
	cmd := exec.Command(mkfs, "-q", "-F", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-e", "remount-ro", "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "/proc/self/fd/3")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.ExtraFiles = []*os.File{image}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, &fault.SetupError{Err: fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))}
	}
	return image, nil
}

// findMkfs finds mkfs.ext4, also where only root's PATH leads.
func findMkfs() (string, error) {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if path, err := exec.LookPath(name); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", &fault.SetupError{Err: fmt.Errorf("mkfs.ext4: %w", exec.ErrNotFound), Hint: "install e2fsprogs"}
}

// attachImage returns a loop device of the file. It lets go of the file at the last close, of the
// descriptor or of a mount.
func attachImage(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(image.Fd())}
	// Direct I/O keeps the pages from being cached twice: once as the file's.
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	for range 1000 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		device.Close()
		if err != unix.EBUSY { // else another process was quicker
			return nil, &os.PathError{Op: "LOOP_CONFIGURE", Path: device.Name(), Err: err}
		}
	}
	return nil, unix.EBUSY
}
