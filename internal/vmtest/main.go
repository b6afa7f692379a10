// Command vmtest runs the tests of this module, and of those in image, queue and compose, on the
// machine at hand and in QEMU guests; with -pkg also those in examples.
//
//	go run ./internal/vmtest [-pkg pattern] [-run regexp] [-v] [configuration...]
//
// Every package's test binary is built once and then run in each configuration, see testkit/matrix.
// Without names, the configurations of make test run. README.md lists the environment variables.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cellkit/sandbox/internal/stdio"
)

var (
	pkgPattern = flag.String("pkg", everything, "the packages to test, a pattern of the go command")
	runPattern = flag.String("run", "", "run only the tests that match this regular expression, as -run of go test")
	verbose    = flag.Bool("v", false, "show the output of every test, not only of those that fail")
)

// everything is the pattern that matches all packages of all modules.
const everything = "./..."

// modules are the directories of the modules that are tested, and examples the one of which only
// packages that are asked for are.
var modules = []string{".", "image", "queue", "compose", examples}

const examples = "examples"

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
	report := &report{out: stdio.Locked(os.Stdout), verbose: *verbose}
	configurations, err := chooseConfigurations(names)
	if err != nil {
		return report, err
	}
	s, err := newStage(ctx)
	if err != nil {
		return report, err
	}
	defer s.remove()
	// An emulated guest keeps one CPU busy. The configurations on this machine run one after
	// the other in place of a guest. Part of their time they wait, and a guest uses it.
	var (
		here, guests []func()
		running      sync.WaitGroup
		places       = make(chan struct{}, runtime.NumCPU())
	)
	for _, c := range configurations {
		if *runPattern != "" {
			c.Run, c.Skip = *runPattern, ""
		}
		if section := s.section(c, report); section != nil {
			s.prepare(ctx, c)
			run := func() { s.run(ctx, c, section) }
			if c.Guest() {
				guests = append(guests, run)
			} else {
				here = append(here, run)
			}
		}
	}
	tests := slices.Insert(guests, 0, func() {
		for _, run := range here {
			run()
		}
	})
	for _, run := range tests {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			run()
		})
	}
	running.Wait()
	return report, nil
}

// A stage is a directory that every configuration can reach: the test binaries, and a copy of the
// source tree for those that can't see the repository (a guest has its own /tmp, and a user may not
// enter root's home).
type stage struct {
	root     string // of the repository
	dir      string
	packages []testPackage
	overlay  string // for the go command, "" for none
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
	if err := s.addWall(os.Getenv("SANDBOX_TEST_WALL")); err != nil {
		return err
	}
	start := time.Now()
	for _, module := range modules {
		if pattern, ok := patternIn(module); ok {
			if err := s.build(ctx, module, pattern); err != nil {
				return err
			}
		}
	}
	fmt.Printf("built %d test binaries in %v\n", len(s.packages), time.Since(start).Round(time.Second))
	return nil
}

// patternIn returns which of a module's packages were asked for.
func patternIn(module string) (pattern string, ok bool) {
	if *pkgPattern == everything {
		return everything, module != examples
	}
	for _, m := range modules[1:] { // the first module's directory contains the others
		if below, in := strings.CutPrefix(filepath.Clean(*pkgPattern)+"/", m+"/"); in {
			return "./" + below, m == module
		}
	}
	return *pkgPattern, module == modules[0]
}

// build builds the test binaries of a module's packages.
func (s *stage) build(ctx context.Context, module, pattern string) error {
	list, err := goTool(ctx, "-C", filepath.Join(s.root, module), "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}", pattern)
	if err != nil {
		return err
	}
	builds, ctx := errgroup.WithContext(ctx)
	builds.SetLimit(runtime.NumCPU()) // the linker's work is mostly one thread's
	for line := range strings.Lines(list) {
		path, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if dir, err = filepath.Rel(s.root, dir); err != nil {
			return err
		}
		s.packages = append(s.packages, testPackage{path, dir})
		builds.Go(func() error {
			// For a path that ends in a slash, which is a directory, the binary gets
			// its usual name. -w leaves out what only debuggers read.
			_, err := goTool(ctx, "-C", filepath.Join(s.root, module), "test", "-c", "-overlay="+s.overlay, "-ldflags=-w", "-o", s.path("bin", dir)+"/", path)
			return err
		})
	}
	return builds.Wait()
}

// goTool runs the go command and returns its standard output. The error contains its standard
// error.
func goTool(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// copyTree copies the files below src that git tracks or would add. The owner of the repository
// need not be the current user.
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
		if err != nil && !errors.Is(err, os.ErrNotExist) { // deleted, but still in the index
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

// section starts a configuration's part of the report. It returns nil if none of the packages asked
// for run there.
func (s *stage) section(c configuration, report *report) *section {
	if len(s.packagesOf(c)) == 0 && len(s.packages) > 0 {
		return nil
	}
	return report.section(c.Name)
}

// packagesOf returns the packages that run in the configuration: those asked for with -pkg, or its
// own.
func (s *stage) packagesOf(c configuration) []testPackage {
	asked := *pkgPattern != everything
	return slices.DeleteFunc(slices.Clone(s.packages), func(p testPackage) bool {
		if c.Guest() && p.dir == "internal/vmtest" {
			return true // tests this command, and starts the go command, which is slow there
		}
		return !asked && c.Packages != nil && !slices.Contains(c.Packages, p.dir)
	})
}

// run runs the test binaries in one configuration and adds their results to the report.
//
// An emulated guest that shares two CPUs with another, and with this machine's own tests, can stand
// still for seconds, and take as long from these. Tests allow for that, but thousands of them can't
// at every step. So if few tests fail, these are tried again, and the report says so. All tests are
// tried again if an emulator corrupts its guest's registers, which shows as a panic of the guest's
// kernel at a place that makes no sense.
func (s *stage) run(ctx context.Context, c configuration, section *section) {
	start := time.Now()
	defer func() { section.took = time.Since(start) }()
	s.runTests(ctx, c, section)
	if section.died {
		again := (&report{out: section.out, verbose: section.verbose}).section(c.Name + " again")
		s.runTests(ctx, c, again)
		section.bootedAgain(again)
		return
	}
	if failed := section.worthAnotherTry(); len(failed) > 0 {
		c.Run = "^(" + strings.Join(failed, "|") + ")$"
		again := (&report{out: section.out, verbose: section.verbose}).section(c.Name + " again")
		s.runTests(ctx, c, again)
		section.triedAgain(again)
	}
}

// prepare installs what a configuration needs. Tests that run on this machine meanwhile look at its
// files. Of what fails here the configuration's own run says why.
func (s *stage) prepare(ctx context.Context, c configuration) {
	if !c.Guest() && c.As != "docker" {
		return
	}
	if cmd, err := s.command(ctx, c, s.packagesOf(c)); err == nil {
		cmd.Env = append(cmd.Env, "VM_PREPARE=1")
		_ = cmd.Run()
	}
}

// runTests runs the tests that c.Run matches.
func (s *stage) runTests(ctx context.Context, c configuration, section *section) {
	if ctx.Err() != nil {
		section.broken(ctx.Err())
		return
	}
	packages := s.packagesOf(c)
	cmd, err := s.command(ctx, c, packages)
	if err != nil {
		section.broken(err)
		return
	}
	var last lastLine
	cmd.Stderr = io.MultiWriter(os.Stderr, &last)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	output, w := io.Pipe()
	cmd.Stdout = w
	go func() {
		err := cmd.Run()
		exit, ok := errors.AsType[*exec.ExitError](err)
		switch {
		case errors.Is(err, exec.ErrWaitDelay):
			err = errors.New("a process outlived the tests and holds their output open")
		case ok && exit.ExitCode() == notHere && c.Optional:
			err = errNotHere
		}
		w.CloseWithError(err)
	}()
	err = section.read(ctx, output, packages)
	switch {
	case errors.Is(err, errNotHere):
		section.leftOut(last.String())
	case err != nil:
		section.broken(err)
		exit, ok := errors.AsType[*exec.ExitError](err)
		section.died = c.Guest() && ok && exit.ExitCode() == guestDied
	}
}

// guestDied is the exit status of guest.sh if the guest died.
const guestDied = 125

// notHere is the exit status of guest.sh and docker.sh if this machine can't have the
// configuration. The last line of stderr says why.
const notHere = 127

var errNotHere = errors.New("this machine can't have it")

// lastLine keeps the last line that was written, up to a maximum length.
type lastLine struct{ tail []byte }

func (l *lastLine) Write(p []byte) (int, error) {
	l.tail = append(l.tail, p...)
	l.tail = l.tail[max(0, len(l.tail)-1000):]
	return len(p), nil
}

func (l *lastLine) String() string {
	text := strings.TrimSpace(string(l.tail))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// command returns the command that runs suite.sh with the packages in the configuration.
func (s *stage) command(ctx context.Context, c configuration, packages []testPackage) (*exec.Cmd, error) {
	timeout := envOr("SANDBOX_TEST_TIMEOUT", "20m")
	if c.Guest() {
		timeout = envOr("SANDBOX_TEST_TIMEOUT", "30m")
	}
	pattern := c.Run
	if c.Name == "host-user" && *runPattern == "" {
		pattern = envOr("SANDBOX_HOST_USER_RUN", pattern)
	}
	suite := func(src, bin string) []string {
		return append([]string{"sh", filepath.Join(src, "internal/vmtest/suite.sh"), src, bin, timeout, pattern, c.Skip}, dirs(packages)...)
	}
	var (
		env  = []string{"SANDBOX_TEST_CONFIG=" + c.Name}
		args []string
	)
	switch {
	case c.Guest():
		job, err := s.job(ctx, c, packages)
		if err != nil {
			return nil, err
		}
		// The tests run on a tmpfs, as on many machines: 9p can do less than a real file
		// system.
		args = append([]string{filepath.Join(s.root, "internal/vmtest/guest.sh"), "env", env[0],
			"sh", "-c", `cp -r "$VM_JOB/src" "$VM_JOB/bin" /tmp && exec "$@"`, "sh"}, suite("/tmp/src", "/tmp/bin")...)
		env = append(env, "VM_JOB="+job, "VM_AS="+c.As, "VM_TIMEOUT="+envOr("VM_TIMEOUT", "3000"))
		if c.Kernel != defaultKernel {
			env = append(env, "VM_KERNEL="+c.Kernel)
		}
	case c.As == "docker": // with the flags of each package
		args = append([]string{filepath.Join(s.root, "internal/vmtest/docker.sh"), c.Name}, suite(s.path("src"), s.path("bin"))[2:]...)
	case c.As == "user":
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
	default:
		args = suite(s.root, s.path("bin"))
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = s.root
	cmd.Env = append(os.Environ(), env...)
	return cmd, nil
}

func dirs(packages []testPackage) (list []string) {
	for _, p := range packages {
		list = append(list, p.dir)
	}
	return list
}

// job makes the directory that a guest shares. Each guest has its own, with hard links to the
// source tree and to the binaries of these packages.
func (s *stage) job(ctx context.Context, c configuration, packages []testPackage) (string, error) {
	dir := s.path("job", c.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	files := []string{"src"}
	for _, p := range packages {
		files = append(files, filepath.Join("bin", p.dir, path.Base(p.path)+".test"))
	}
	cmd := exec.CommandContext(ctx, "cp", append([]string{"-al", "--parents", "-t", dir}, files...)...)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cp: %w: %s", err, out)
	}
	return dir, nil
}

func chownTree(root string, id int) error {
	return filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id, id)
	})
}

// envOr returns the value of the environment variable, or the default if it is empty.
func envOr(name, value string) string { return cmp.Or(os.Getenv(name), value) }
