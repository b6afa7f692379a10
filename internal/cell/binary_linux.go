package cell

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// binary is what it takes to execute this program's own file in a cell.
type binary struct {
	exe    *os.File
	loader string            // the dynamic loader, as the file names it; "" if static
	libs   []string          // shared objects mapped into this process
	copies map[string]string // of those that the cell's root can't reach
}

// reach copies libraries that others than their owner can't read, or find, into
// a directory: to the host's file systems the cell's root is nobody.
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

// forOthers tells whether everybody may read the file and search the directories
// that lead to it.
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

func ownBinary() (*binary, error) {
	exe, err := os.Open("/proc/self/exe") // also when the file was replaced or deleted
	if err != nil {
		return nil, fmt.Errorf("opening this program's own file: %w", err)
	}
	b := &binary{exe: exe}
	if b.loader, err = interpreter(exe); err == nil {
		err = b.readable()
	}
	if err == nil && b.loader != "" {
		b.libs, err = mappedLibraries()
	}
	if err != nil {
		b.exe.Close()
		return nil, err
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

// readable replaces a file that only its owner may execute by a copy in
// memory, since the cell's root is nobody to the host's file systems.
func (b *binary) readable() error {
	info, err := b.exe.Stat()
	if err != nil || info.Mode().Perm()&0o005 == 0o005 {
		return err
	}
	fd, err := unix.MemfdCreate("sandbox", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	memory := os.NewFile(uintptr(fd), "sandbox")
	defer memory.Close()
	if _, err := io.Copy(memory, io.NewSectionReader(b.exe, 0, info.Size())); err != nil {
		return err
	}
	if err := memory.Chmod(0o755); err != nil {
		return err
	}
	// A file that is open for writing can't be executed.
	copied, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	b.exe.Close()
	b.exe = copied
	return nil
}

// mappedLibraries lists the shared objects that the dynamic loader brought in,
// itself included: proc(5), /proc/pid/maps.
func mappedLibraries() ([]string, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	var libs []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, ok := executable(lines.Text())
		if !ok || path == exe {
			continue
		}
		// A library that was replaced by an upgrade: what has its name now will do.
		path = strings.TrimSuffix(path, " (deleted)")
		info, err := os.Stat(path)
		if err == nil && info.Mode().IsRegular() && !slices.Contains(libs, path) {
			libs = append(libs, path)
		}
	}
	return libs, nil
}

// executable returns the file of a line of /proc/pid/maps, if code is mapped from it. The
// name, after five fields and padding, may have spaces in it.
func executable(line string) (path string, ok bool) {
	at := strings.IndexByte(line, '/')
	if at < 0 {
		return "", false
	}
	fields := strings.Fields(line[:at])
	return line[at:], len(fields) == 5 && strings.Contains(fields[1], "x")
}

// searchPath is where the loader finds the libraries in the cell, which has no
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
