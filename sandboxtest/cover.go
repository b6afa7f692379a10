package sandboxtest

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

const coverDir = "/coverage"

// covered runs the test and, if coverage is measured, adds the test's coverage to this process's.
// Package testing merges the counters that it finds in the directory of -test.gocoverdir when it
// writes its own.
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

// coverPlace is the directory to which this process will write its counters.
type coverPlace struct {
	dir     string
	scratch *sandbox.Scratch // for dir; in use until this process ends
}

var ownCoverPlace = sync.OnceValues(func() (p coverPlace, err error) {
	if p.dir = value("test.gocoverdir"); p.dir != "" {
		return p, nil
	}
	if p.scratch, err = sandbox.NewScratch(256 * sandbox.MiB); err != nil {
		return p, err
	}
	p.dir = pathOf(p.scratch)
	return p, flag.Set("test.gocoverdir", p.dir)
})

// pathOf returns a path by which this process finds the files of a scratch: the mount of a run that
// has the scratch knows it.
func pathOf(s *sandbox.Scratch) string {
	var c spec.Spec
	sandbox.WithScratch(coverDir, s)(&c)
	return c.Root.Mounts[0].Source.(spec.Scratch).From.(interface{ Path() string }).Path()
}

// What an isolated test may leave: its process writes one file when it ends, and so does each
// further process of the test binary.
const (
	maxCounterFiles = 64
	maxCounters     = 16 * sandbox.MiB // all files together
)

var counterName = regexp.MustCompile(`^covcounters\.[0-9a-f]{32}\.[0-9]+\.[0-9]+$`)

// copyCounters copies the files of counters that runtime/coverage writes, under names that no other
// process uses. It leaves out the files that describe the program (covmeta), which this process
// writes itself, and all others: the files are only as trustworthy as the test.
func copyCounters(from fs.FS, to string) error {
	list, err := fs.ReadDir(from, ".")
	if err != nil {
		return err
	}
	files, room := 0, int64(maxCounters)
	for _, e := range list {
		if !e.Type().IsRegular() || !counterName.MatchString(e.Name()) {
			continue
		}
		if files++; files > maxCounterFiles {
			return fmt.Errorf("more than %d files with counters", maxCounterFiles)
		}
		b, err := readCounters(from, e.Name(), room)
		if err != nil {
			return err
		}
		room -= int64(len(b))
		if err := writeNew(filepath.Join(to, e.Name()), b); err != nil {
			return err
		}
	}
	return nil
}

// readCounters reads a file of at most room bytes.
func readCounters(from fs.FS, name string, room int64) ([]byte, error) {
	f, err := from.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, room+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(b)) > room:
		return nil, fmt.Errorf("%s: more than %d bytes of counters", name, maxCounters)
	case !wellFormed(b):
		return nil, fmt.Errorf("%s: no counters", name)
	}
	return b, nil
}

// wellFormed reports whether a file of counters begins with valid tables of strings and arguments:
// package testing allocates the memory that these claim to need. See internal/coverage,
// CounterFileHeader and CounterSegmentHeader.
func wellFormed(b []byte) bool {
	const header = 32 + 16
	if len(b) < header || string(b[:4]) != "\x00cwm" {
		return false
	}
	strings, arguments := binary.LittleEndian.Uint32(b[40:]), binary.LittleEndian.Uint32(b[44:])
	return uint64(strings)+uint64(arguments) <= uint64(len(b)-header)
}

// writeNew writes a file unless it exists.
func writeNew(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}
