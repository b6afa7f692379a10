package cell

import (
	"bufio"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/wall"
)

// binary is what a cell needs to execute this program's own file.
//
// Until a run's clone executes the command, its /proc/self/exe is this file. A command, or a
// command's interpreter, may be a link to /proc/self/exe and must not reach this file through it
// (CVE-2019-5736). So the cell gets the file through a read-only mount or as a copy of its own, and
// once the fork server is up, seal makes sure that nobody can execute or open it again.
type binary struct {
	exe    *os.File
	seal   func() error
	close  func()
	loader string            // the dynamic loader, as the file names it; "" if static
	libs   []string          // shared objects mapped into this process
	copies map[string]string // libraries that the cell's root can't reach
}

// reach copies libraries that only their owner can read or find into a directory: to the host's
// file systems the cell's root is nobody.
func (b *binary) reach(dir string) error {
	b.copies = map[string]string{}
	for i, lib := range b.libs {
		if forOthers(lib) {
			continue
		}
		data, err := os.ReadFile(lib)
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
		b.copies[lib] = filepath.Join(dir, fmt.Sprint(i))
		if err == nil {
			err = os.WriteFile(b.copies[lib], data, 0o755)
		}
		if err = errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(b.copies[lib], 0o755)); err != nil {
			return fmt.Errorf("copying %s for the cell: %w", lib, err)
		}
	}
	return nil
}

// forOthers reports whether everybody may read the file and search the directories that lead to it.
func forOthers(path string) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

// ownPath leads to this program's own file.
const ownPath = "/proc/self/exe"

func ownBinary() (*binary, error) {
	exe, err := os.Open(ownPath) // works even if the file was replaced or deleted
	if err != nil {
		return nil, fmt.Errorf("opening this program's own file: %w", err)
	}
	defer exe.Close()
	b := &binary{}
	if b.loader, err = interpreter(exe); err != nil {
		return nil, err
	}
	if b.loader != "" {
		if b.libs, err = mappedLibraries(); err != nil {
			return nil, err
		}
	}
	info, err := exe.Stat()
	if err != nil {
		return nil, err
	}
	// To the host's file systems the cell's root is nobody.
	if info.Mode().Perm()&0o005 != 0o005 || b.mount(exe) != nil {
		return b, b.copy(exe, info.Size())
	}
	return b, nil
}

func interpreter(exe *os.File) (string, error) {
	f, err := elf.NewFile(exe)
	if err != nil {
		return "", fmt.Errorf("reading this program's own file: %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), unix.PathMax))
			return strings.TrimRight(string(b), "\x00"), err
		}
	}
	return "", nil
}

// mount opens the file on a mount of its own. That takes CAP_SYS_ADMIN and a file that has not been
// deleted.
func (b *binary) mount(exe *os.File) error {
	fd, err := unix.OpenTree(int(exe.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	tree := os.NewFile(uintptr(fd), "mount of this program's own file")
	set := func(attr uint64) error {
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attr})
	}
	if err = set(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV); err == nil {
		b.exe, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	if err != nil {
		tree.Close()
		return err
	}
	b.seal = func() error { return os.NewSyscallError("mount_setattr", set(unix.MOUNT_ATTR_NOEXEC)) }
	b.close = func() {
		b.exe.Close()
		tree.Close()
	}
	return nil
}

// copy copies the file to memory.
func (b *binary) copy(exe *os.File, size int64) error {
	fd, err := unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), "copy of this program's own file")
	err = sendFile(fd, int(exe.Fd()), size)
	if err == nil {
		err = memory.Chmod(0o755)
	}
	if err == nil { // its mode would let a run with this process's user id write to it
		_, err = unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err == nil {
		// A file that is open for writing can't be executed.
		b.exe, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	memory.Close()
	if err != nil {
		return fmt.Errorf("copying this program's own file: %w", err)
	}
	b.seal = func() error { return b.exe.Chmod(0) }
	b.close = func() { b.exe.Close() }
	return nil
}

// sendFile copies size bytes within the kernel.
func sendFile(to, from int, size int64) error {
	for at := int64(0); at < size; {
		n, err := unix.Sendfile(to, from, &at, int(min(size-at, 1<<30)))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return os.NewSyscallError("sendfile", err)
		}
	}
	return nil
}

// mappedLibraries lists the shared objects that the dynamic loader mapped, itself included:
// proc(5), /proc/pid/maps.
func mappedLibraries() ([]string, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	exe, err := os.Readlink(ownPath)
	if err != nil {
		return nil, err
	}
	var libs []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, ok := executable(lines.Text())
		if !ok || path == exe {
			continue
		}
		// An upgrade replaced the library: use the file that has its name now.
		path = strings.TrimSuffix(path, " (deleted)")
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && !slices.Contains(libs, path) {
			libs = append(libs, path)
		}
	}
	return libs, nil
}

// neededAs returns the name by which programs refer to a library. It may differ from the file's
// name: elf(5), DT_SONAME.
func neededAs(lib string) string {
	if f, err := elf.Open(lib); err == nil {
		defer f.Close()
		if names, _ := f.DynString(elf.DT_SONAME); len(names) == 1 && names[0] == filepath.Base(names[0]) {
			return names[0]
		}
	}
	return filepath.Base(lib)
}

// executable returns the file in a line of /proc/pid/maps if code is mapped from it. The name,
// which follows five fields and padding, may contain spaces.
func executable(line string) (path string, ok bool) {
	at := strings.IndexByte(line, '/')
	if at < 0 {
		return "", false
	}
	fields := strings.Fields(line[:at])
	return line[at:], len(fields) == 5 && strings.Contains(fields[1], "x")
}

// binds returns the loader and the libraries under the names by which the cell's root finds them.
func (b *binary) binds() (list []wall.Bind) {
	if b.loader != "" {
		if real, err := filepath.EvalSymlinks(b.loader); err == nil {
			list = append(list, wall.Bind{Source: cmp.Or(b.copies[real], real), Destination: b.loader})
		}
	}
	for _, l := range b.libs {
		if at := filepath.Join(filepath.Dir(l), neededAs(l)); at != b.loader {
			list = append(list, wall.Bind{Source: cmp.Or(b.copies[l], l), Destination: at})
		}
	}
	return list
}

// searchPath returns the directories where the loader finds the libraries in the cell, which has no
// loader cache.
func (b *binary) searchPath() string {
	var dirs []string
	for _, l := range b.libs {
		if d := filepath.Dir(l); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, ":")
}
