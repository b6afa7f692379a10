package sandboxtest

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/hook"
)

const coverDir = "/coverage"

// covered runs the test and has what it covers count for this process, if that is measured. Package testing merges the counters that it finds
// in the directory of -test.gocoverdir when it writes its own.
func covered(t *testing.T, run func(args []string, opts ...sandbox.Option) (*parser, error)) (*parser, error) {
	args := arguments(t)
	if testing.CoverMode() == "" {
		return run(args)
	}
	plainly := func(why error) (*parser, error) {
		t.Logf("sandboxtest: what this test covers does not count: %v", why)
		return run(append(args, "-test.gocoverdir=/tmp"))
	}
	to, err := ownCoverPlace()
	if err != nil {
		return plainly(err)
	}
	scratch, err := sandbox.NewScratch(64 * sandbox.MiB)
	if err != nil {
		return plainly(err)
	}
	defer scratch.Close()
	events, err := run(append(args, "-test.gocoverdir="+coverDir), sandbox.WithScratch(coverDir, scratch))
	var setup *sandbox.SetupError
	if errors.As(err, &setup) && setup.Stage == "WithScratch" {
		return plainly(err)
	}
	if copyErr := copyCounters(scratch.FS(), to.dir); copyErr != nil {
		t.Errorf("sandboxtest: what this test covers: %v", copyErr)
	}
	return events, err
}

// coverPlace is where this process will write its counters.
type coverPlace struct {
	dir     string
	scratch *sandbox.Scratch // of dir; in use until this process ends
}

var ownCoverPlace = sync.OnceValues(func() (p coverPlace, err error) {
	if p.dir = value("test.gocoverdir"); p.dir != "" {
		return p, nil
	}
	if p.scratch, err = sandbox.NewScratch(256 * sandbox.MiB); err != nil {
		return p, err
	}
	p.dir = hook.ScratchPath(p.scratch)
	return p, flag.Set("test.gocoverdir", p.dir)
})

// copyCounters copies the files that runtime/coverage writes. Their names are those of no other process's.
func copyCounters(from fs.FS, to string) error {
	list, err := fs.ReadDir(from, ".")
	if err != nil {
		return err
	}
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), "covmeta.") && !strings.HasPrefix(e.Name(), "covcounters.") {
			continue
		}
		b, err := fs.ReadFile(from, e.Name())
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(to, e.Name()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) { // what describes the program is the same for all
			continue
		}
		if err != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return fmt.Errorf("%w, and closing it: %v", err, f.Close())
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
