//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// programs are one that does nothing, the same with cgo, which the module needs, and the same with
// the module, which it does not use.
var programs = [...]struct{ name, source string }{
	{"none", "package main\n\nfunc main() {}\n"},
	{"cgo", "package main\n\nimport \"C\"\n\nfunc main() {}\n"},
	{"imported", "package main\n\nimport _ \"github.com/cellkit/sandbox\"\n\nfunc main() {}\n"},
}

// imported is what one of programs is beyond the first one.
type imported struct {
	size, stripped int64 // bytes
	start          time.Duration
}

// imports builds programs, and starts them in turn.
func imports(dir string, rounds int) (cgo, module imported, err error) {
	var list []subject
	var is [len(programs)]imported
	for i, p := range programs {
		source, program := filepath.Join(dir, p.name+".go"), filepath.Join(dir, p.name)
		if err := os.WriteFile(source, []byte(p.source), 0o644); err != nil {
			return cgo, module, err
		}
		if is[i].stripped, err = build(source, program, "-s -w"); err != nil {
			return cgo, module, err
		}
		if is[i].size, err = build(source, program, ""); err != nil {
			return cgo, module, err
		}
		list = append(list, subject{name: p.name, run: func() error { return exec.Command(program).Run() }})
	}
	for i, times := range inTurn(list, rounds, 0) {
		is[i].start = quantile(times, 0.5)
	}
	beyond := func(i imported) imported {
		return imported{i.size - is[0].size, i.stripped - is[0].stripped, i.start - is[0].start}
	}
	return beyond(is[1]), beyond(is[2]), nil
}

// build returns the size of the program that it builds.
func build(source, program, ldflags string) (int64, error) {
	if out, err := exec.Command("go", "build", "-ldflags="+ldflags, "-o", program, source).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w: %s", err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
