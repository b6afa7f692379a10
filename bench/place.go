//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// workload is a program that does next to nothing, at a place where runs see it.
type workload struct {
	name string
	argv []string
}

var workloads = []workload{
	{"a static program", []string{"/programs/static"}},
	{"a dynamic program", []string{"/programs/dynamic"}},
	{"python3 -c pass", []string{"/usr/bin/python3", "-c", "pass"}},
}

// place is what all subjects share: a root with the host's /usr and a directory with programs,
// read-only.
type place struct {
	work string // the programs
	root string // a root directory for those that need one: links, and empty mount points
}

func newPlace(dir string) (*place, error) {
	p := &place{work: filepath.Join(dir, "work"), root: filepath.Join(dir, "root")}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, d := range []string{p.work, p.root + "/usr", p.root + "/programs", p.root + "/proc", p.root + "/dev", p.root + "/sys", p.root + "/run", p.root + "/tmp", p.root + "/home/sandbox"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		to, err := os.Readlink("/" + name)
		if err != nil {
			return nil, fmt.Errorf("this machine keeps /%s apart from /usr: %w", name, err)
		}
		if err := os.Symlink(to, filepath.Join(p.root, name)); err != nil {
			return nil, err
		}
	}
	for name, flags := range map[string][]string{"static": {"-static"}, "dynamic": nil} {
		if err := compile(filepath.Join(p.work, name), "int main(void) { return 0; }", flags); err != nil {
			return nil, err
		}
	}
	return p, compile(filepath.Join(p.work, "pause"), "#include <unistd.h>\nint main(void) { for (;;) pause(); }", []string{"-static"})
}

func compile(program, source string, flags []string) error {
	cc := exec.Command("gcc", append(flags, "-O2", "-x", "c", "-o", program, "-")...)
	cc.Stdin = strings.NewReader(source)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, out)
	}
	return nil
}

// onHost returns the command line of the workload on this machine.
func (p *place) onHost(w workload) []string {
	argv := append([]string(nil), w.argv...)
	if rest, ok := strings.CutPrefix(argv[0], "/programs/"); ok {
		argv[0] = filepath.Join(p.work, rest)
	}
	return argv
}
