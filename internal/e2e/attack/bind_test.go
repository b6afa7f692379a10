//go:build linux

package attack

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

// With the capabilities for files, root of a run has no more power over a writable bind than the
// bind's owner: they are valid in the run's user namespace, but the kernel asks for the host's, or
// for an id that the bind does not have.
func TestAttackBind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs or an ordinary user")
	run := func(t *testing.T, kind string, opts ...sandbox.Option) {
		dir, handle := bindAttacked(t)
		requireHeld(t, kind, attacker(kind, append([]string{"/job"}, handle...)...).With(sandbox.WithBind(dir, "/job"), sandbox.WithUser(0, 0),
			sandbox.WithCapabilities("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_SETUID",
				"CAP_SETGID", "CAP_LINUX_IMMUTABLE", "CAP_SYS_CHROOT", "CAP_SYS_RAWIO", "CAP_MKNOD")).With(opts...))
	}
	run(t, "bind")
	t.Run("without seccomp", func(t *testing.T) { run(t, "bind", sandbox.WithoutSeccomp()) })
	dir, handle := bindAttacked(t)
	requireControl(t, "bind", append([]string{dir}, handle...)...)
	if testkit.AsRoot() { // an ordinary user's runs may use that user's subordinate ids
		run(t, "owners")
		requireControl(t, "owners", dir)
	}
}

// bindAttacked returns a directory with a set-uid program, and the handle of a file beside the
// directory.
func bindAttacked(t *testing.T) (dir string, handle []string) {
	t.Helper()
	parent := testkit.OpenDir(t)
	dir = filepath.Join(parent, "job")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Chmod(dir, 0o777)) // modes must not be what stops other users
	testkit.WriteFile(t, filepath.Join(dir, "program"), "#!/bin/sh\n", 0o755|os.ModeSetuid)
	testkit.WriteFile(t, filepath.Join(parent, "secret"), "secret", 0o600)
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(parent, "secret"), 0)
	if err == unix.EOPNOTSUPP { // overlayfs, in a container, where no control runs
		h, err = unix.NewFileHandle(1, make([]byte, 8)), nil
	}
	require.NoError(t, err)
	return dir, []string{strconv.Itoa(int(h.Type())), base64.StdEncoding.EncodeToString(h.Bytes())}
}

func init() {
	addAttacks("owners", []attack{
		{"a file of another user's", inBind("other", func(name string) error { return os.Chown(name, 12345, -1) }), true},
		{"a file of another user's, made as that one", func(args []string) error {
			_ = unix.Setfsuid(12345) // does not report errors
			return opened(unix.Open(args[0]+"/made", unix.O_CREAT|unix.O_WRONLY, 0o644))
		}, true},
	})
	addAttacks("bind", []attack{
		{"a file beside it, by handle", openByHandle, true},
		{"a device in it", func(args []string) error {
			return unix.Mknod(args[0]+"/device", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1)))
		}, true},
		{"a file capability", inBind("capable", func(name string) error {
			capNetRaw := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // linux/capability.h, vfs_cap_data
			return unix.Setxattr(name, "security.capability", capNetRaw, 0)
		}), true},
		{"an immutable file", inBind("immutable", func(name string) error {
			return withFile(name, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x10) }) // FS_IMMUTABLE_FL
		}), false},
		{"another program under a set-uid bit", func(args []string) error {
			f, err := os.OpenFile(args[0]+"/program", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.WriteString("#!/bin/id\n"); err != nil {
				return err
			}
			info, err := f.Stat()
			if err == nil && info.Mode()&os.ModeSetuid == 0 {
				return fmt.Errorf("the mode is %v", info.Mode())
			}
			return err
		}, true},
	})
}

// inBind tries something with a new file in the bind.
func inBind(name string, try func(name string) error) func([]string) error {
	return func(args []string) error {
		path := filepath.Join(args[0], name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			panic(err)
		}
		return try(path)
	}
}

func openByHandle(args []string) error {
	kind, err := strconv.Atoi(args[1])
	if err != nil {
		panic(err)
	}
	handle, err := base64.StdEncoding.DecodeString(args[2])
	if err != nil {
		panic(err)
	}
	return withFile(args[0], func(fd int) error {
		return opened(unix.OpenByHandleAt(fd, unix.NewFileHandle(int32(kind), handle), unix.O_RDONLY))
	})
}
