//go:build linux

package e2e

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// Programs that are built without cgo, such as for containers without any library.

// commandLine returns the command line of this module, built with variables of the go command.
func commandLine(t *testing.T, env ...string) string {
	testkit.Need(t, "time to build programs")
	program := filepath.Join(testkit.OpenDir(t), "sandbox")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/sandbox")
	build.Env = append(os.Environ(), env...)
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// staticCommandLine returns the command line of this module, built without cgo.
func staticCommandLine(t *testing.T) string {
	program := commandLine(t, "CGO_ENABLED=0")
	file, err := elf.Open(program)
	require.NoError(t, err)
	defer file.Close()
	libs, err := file.ImportedLibraries()
	require.NoError(t, err)
	require.Empty(t, libs)
	return program
}

func TestWithoutCgo(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	program := staticCommandLine(t)
	// script runs a shell script in a sandbox, as a user, and returns its output and status.
	script := func(uid uint32, text string, flags ...string) (string, int) {
		cmd := exec.CommandContext(testkit.Deadline(t), program, append(append([]string{"run"}, flags...), "--", "sh", "-c", text)...)
		dir := testkit.OpenDir(t)
		require.NoError(t, os.Chown(dir, int(uid), int(uid)))
		cmd.Dir, cmd.Env = "/", append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "HOME="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if _, ended := err.(*exec.ExitError); !ended {
			require.NoError(t, err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	const facts = "id -u; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; wc -l < /proc/net/dev; exit 7"
	const safe = "1000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n3\n"
	for name, as := range map[string]struct {
		uid   uint32
		flags []string
	}{"root": {}, "an ordinary user": {uid: 1000}, "no user namespace": {flags: []string{"-no-user-ns"}}} {
		out, status := script(as.uid, facts, as.flags...)
		require.Equal(t, safe, out, name)
		require.Equal(t, 7, status, name)
	}
	_, status := script(0, "cat /dev/zero | tail", "-memory", "32m")
	require.Equal(t, 137, status, "out of memory")
	out, err := exec.CommandContext(testkit.Deadline(t), program, "check").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, "(?m)^cell +yes +as root, made by builtin$", string(out))
	text, _ := script(0, "true", "-wall", "libcontainer")
	require.Contains(t, text, "this program was built without cgo")
	require.Contains(t, text, "CGO_ENABLED=1")
}

// TestScratchContainer runs the command line where there is no other file, as in a container FROM
// scratch, and as the user of a distroless one, which has no more that it could use.
func TestScratchContainer(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "a whole machine's root")
	program := staticCommandLine(t)
	for _, uid := range []string{"0", "65532"} {
		fromScratch(t, uid, program, "")
	}
}

// fromScratch executes a program where there is no other file but its loader, "" if it has none,
// and in a run there.
func fromScratch(t *testing.T, uid, program, loader string) {
	t.Helper()
	args := []string{testkit.OpenDir(t), uid, program, loader, "run", "-rootfs", "/empty", "-ro-bind", "/sandbox:/mnt", "--", "/mnt", "version"}
	cmd := testkit.HelperCommand(testkit.Deadline(t), "scratch", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "uid %s: %s", uid, out)
	require.Regexp(t, "^sandbox .*linux/", string(out))
}

// TestMusl runs the command line that is built with cgo for musl, as on Alpine, here and where
// there is no other library.
func TestMusl(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testkit.Need(t, "musl")
	// Debian's musl has no headers of the kernel, which are the same for all.
	asm, err := filepath.Glob("/usr/include/*-linux-gnu/asm")
	require.NoError(t, err)
	require.NotEmpty(t, asm, "the package linux-libc-dev")
	program := commandLine(t, "CGO_ENABLED=1", "CC=musl-gcc", "CGO_CFLAGS=-O2 -idirafter /usr/include -idirafter "+filepath.Dir(asm[0]))
	file, err := elf.Open(program)
	require.NoError(t, err)
	defer file.Close()
	libs, err := file.ImportedLibraries()
	require.NoError(t, err)
	require.Equal(t, []string{"libc.so"}, libs, "musl's")
	out, err := exec.CommandContext(testkit.Deadline(t), program, "run", "--", "sh", "-c", "id -u; exit 7").CombinedOutput()
	require.Error(t, err)
	require.Equal(t, "1000\n", string(out))
	if testkit.WholeMachine() {
		fromScratch(t, "0", program, interpreterOf(t, file))
	}
}

// interpreterOf returns the loader that an executable names.
func interpreterOf(t *testing.T, file *elf.File) string {
	t.Helper()
	section := file.Section(".interp")
	require.NotNil(t, section)
	b, err := section.Data()
	require.NoError(t, err)
	return strings.TrimRight(string(b), "\x00")
}

// scratchHelper makes a directory the root, with nothing but the program, its loader, /proc, /dev
// and /tmp in it, and executes the program as a user.
func scratchHelper(args []string) error {
	root, program, loader := args[0], args[2], args[3]
	uid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	files := map[string]string{"sandbox": program, "empty/mnt": program}
	if loader != "" {
		files[loader], files["empty"+loader] = loader, loader
	}
	if err := unix.Mount("scratch", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for _, dir := range []string{"proc", "dev", "old", "empty/proc", "empty/dev", "empty/tmp", "empty/home"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for at, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, at)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, at), data, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"proc", "dev"} {
		if err := unix.Mount("/"+dir, filepath.Join(root, dir), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(root, filepath.Join(root, "old")); err != nil {
		return err
	}
	if err := errors.Join(os.Chdir("/"), unix.Unmount("/old", unix.MNT_DETACH)); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return unix.Exec("/sandbox", append([]string{"/sandbox"}, args[4:]...), []string{"HOME=/", "PATH=/"})
}
