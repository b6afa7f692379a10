// Command vmtest runs the tests of this module on the machine at hand and in a QEMU guest.
//
//	go run ./internal/vmtest [-pkg pattern] [-run regexp] [-v] [configuration...]
//
// Every package's test binary is built once and then run in each configuration:
//
//	host       in the repository, as the user at hand
//	guest      as root on Linux 6.12 with cgroup v2 and nothing mounted but the usual (see guest.sh)
//	host-user  as uid 1000 on this machine, only if started by root: the root package's rootless tests
//
// With no configuration named, all of them run. README.md lists the environment variables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

var (
	pkgPattern = flag.String("pkg", "./...", "the packages to test, a pattern of the go command")
	runPattern = flag.String("run", "", "run only the tests that match this regular expression, as -run of go test")
	verbose    = flag.Bool("v", false, "show the output of every test, not only of those that fail")
)

// userID is the uid and gid of the configuration host-user.
const userID = 1000

// A testPackage is a package that has tests.
type testPackage struct {
	path string
	dir  string // relative to the root of the module
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	report, err := testAll(ctx, flag.Args())
	stop()
	if err != nil {
		report.broken("vmtest", err)
	}
	if !report.print(os.Stdout) {
		os.Exit(1)
	}
}

// testAll builds the test binaries and runs them in the configurations named.
func testAll(ctx context.Context, names []string) (*report, error) {
	report := &report{out: os.Stdout, verbose: *verbose}
	configurations, err := chooseConfigurations(names)
	if err != nil {
		return report, err
	}
	s, err := newStage(ctx)
	if err != nil {
		return report, err
	}
	defer s.remove()
	for _, name := range configurations {
		if ctx.Err() != nil {
			return report, ctx.Err()
		}
		s.run(ctx, name, report)
	}
	return report, nil
}

// chooseConfigurations returns what to run: the configurations named, or all that make sense here.
func chooseConfigurations(names []string) ([]string, error) {
	all := []string{"host", "guest", "host-user"}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, fmt.Errorf("no configuration %q: there are %s", name, strings.Join(all, ", "))
		}
	}
	if slices.Contains(names, "host-user") && os.Getuid() != 0 {
		return nil, errors.New("the configuration host-user needs root: an ordinary user's own tests are host")
	}
	if len(names) == 0 {
		names = all
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		if name == "guest" && os.Getenv("SANDBOX_VM") == "0" {
			fmt.Println("guest: left out, as SANDBOX_VM=0 says")
			return true
		}
		return name == "host-user" && os.Getuid() != 0
	}), nil
}

// A stage is the directory that every configuration can reach: the test binaries, and a copy of the source tree
// for those that can't see the repository (a guest has its own /tmp, a user may not enter root's home).
type stage struct {
	root     string // of the repository
	dir      string
	packages []testPackage
}

func newStage(ctx context.Context) (*stage, error) {
	mod, err := goTool(ctx, "env", "GOMOD")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sandbox-test-")
	if err != nil {
		return nil, err
	}
	s := &stage{root: filepath.Dir(strings.TrimSpace(mod)), dir: dir}
	if err := s.fill(ctx); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

func (s *stage) remove() {
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
	}
}

func (s *stage) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *stage) fill(ctx context.Context) error {
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if err := copyTree(ctx, s.root, s.path("src")); err != nil {
		return fmt.Errorf("copying the source tree: %w", err)
	}
	list, err := goTool(ctx, "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}", *pkgPattern)
	if err != nil {
		return err
	}
	start := time.Now()
	for line := range strings.Lines(list) {
		path, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if dir, err = filepath.Rel(s.root, dir); err != nil {
			return err
		}
		// a path that ends with a slash is a directory, where the binary gets its usual name
		if _, err := goTool(ctx, "test", "-c", "-o", s.path("bin", dir)+"/", path); err != nil {
			return err
		}
		s.packages = append(s.packages, testPackage{path, dir})
	}
	fmt.Printf("built %d test binaries in %v\n", len(s.packages), time.Since(start).Round(time.Second))
	return nil
}

// goTool runs the go command and returns its standard output; what it has to complain about is the error.
func goTool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// copyTree copies what git knows or would add below src. The owner of the repository need not be the user at hand.
func copyTree(ctx context.Context, src, dst string) error {
	git := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = src
	git.Stderr = os.Stderr
	files, err := git.Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		err := copyFile(filepath.Join(src, name), filepath.Join(dst, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted, but not in the index yet
			return err
		}
	}
	return nil
}

func copyFile(src, dst string) error {
	info, err := os.Lstat(src)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	case info.Mode().IsRegular():
		data, err := os.ReadFile(src)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, data, info.Mode().Perm())
	}
	return nil
}

// run runs the test binaries in one configuration and adds their results to the report.
func (s *stage) run(ctx context.Context, name string, report *report) {
	pattern := *runPattern
	if name == "host-user" && pattern == "" {
		pattern = envOr("SANDBOX_HOST_USER_RUN", "Rootless")
	}
	packages := slices.DeleteFunc(slices.Clone(s.packages), func(p testPackage) bool {
		switch name {
		case "guest":
			return p.dir == "internal/vmtest" // about this command; its tests start the go command, which is slow there
		case "host-user":
			return p.dir != "."
		}
		return false
	})
	if len(packages) == 0 && len(s.packages) > 0 {
		return
	}
	section := report.section(name)
	cmd, err := s.command(ctx, name, pattern, packages)
	if err != nil {
		section.broken(err)
		return
	}
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	output, w := io.Pipe()
	cmd.Stdout = w
	go func() {
		err := cmd.Run()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = errors.New("a process outlived the tests and holds their output open")
		}
		w.CloseWithError(err)
	}()
	if err := section.read(ctx, output, packages); err != nil {
		section.broken(err)
	}
}

// command is the one that runs suite.sh with the packages in the configuration.
func (s *stage) command(ctx context.Context, name, pattern string, packages []testPackage) (*exec.Cmd, error) {
	var (
		timeout = envOr("SANDBOX_TEST_TIMEOUT", map[string]string{"guest": "20m"}[name], "5m")
		env     = []string{"SANDBOX_TEST_CONFIG=" + name}
	)
	suite := func(src, bin string) []string {
		args := []string{"sh", filepath.Join(src, "internal/vmtest/suite.sh"), src, bin, timeout, pattern}
		for _, p := range packages {
			args = append(args, p.dir)
		}
		return args
	}
	var args []string
	switch name {
	case "host":
		args = suite(s.root, s.path("bin"))
	case "guest":
		// The tests run on a tmpfs, as on many machines; 9p can do less than a real file system.
		env = append(env, "VM_JOB="+s.dir, "VM_TIMEOUT="+envOr("VM_TIMEOUT", "3000"))
		args = append([]string{filepath.Join(s.root, "internal/vmtest/guest.sh"), "env", env[0],
			"sh", "-c", `cp -r "$VM_JOB/src" "$VM_JOB/bin" /tmp && exec "$@"`, "sh"}, suite("/tmp/src", "/tmp/bin")...)
	case "host-user":
		for _, dir := range []string{"home", "run", "tmp"} {
			if err := os.MkdirAll(s.path("user", dir), 0o700); err != nil {
				return nil, err
			}
		}
		if err := chownTree(s.path("user"), userID); err != nil {
			return nil, err
		}
		env = append(env, "HOME="+s.path("user/home"), "XDG_RUNTIME_DIR="+s.path("user/run"), "TMPDIR="+s.path("user/tmp"))
		id := fmt.Sprint(userID)
		args = append([]string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--inh-caps=-all"},
			suite(s.path("src"), s.path("bin"))...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = s.root
	cmd.Env = append(os.Environ(), env...)
	return cmd, nil
}

func chownTree(root string, id int) error {
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id, id)
	})
}

// envOr returns the value of the environment variable, or the first default that is not empty.
func envOr(name string, defaults ...string) string {
	for _, value := range append([]string{os.Getenv(name)}, defaults...) {
		if value != "" {
			return value
		}
	}
	return ""
}
