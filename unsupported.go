//go:build !linux

package sandbox

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"errors"
)

// Elsewhere than on Linux everything compiles, options are validated, and
// nothing runs.

func unsupported() error {
	return fmt.Errorf("sandbox: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

type (
	plans        struct{}
	commandCache struct{}
	prepared     struct{}
	cellImpl     struct{}
	running      struct{ pid int }
	scratchImpl  struct{}
	scratchFS    struct{ s *Scratch }
)

func (s *Sandbox) start(context.Context) (*Process, error) { return nil, unsupported() }
func (s *Sandbox) prepare(context.Context) error           { return unsupported() }
func newPrepared(*Sandbox) *prepared                       { return nil }
func (s *Sandbox) explain() (string, error)                { return "", unsupported() }
func (s *Sandbox) rootChanges() ([]Change, error)          { return nil, unsupported() }
func shutdown(context.Context) error                       { return unsupported() }
func delegateSubgroup(string) error                        { return unsupported() }
func newCell(cellConfig) (*Cell, error)                    { return nil, unsupported() }
func (c *Cell) close(context.Context) error                { return unsupported() }

func (*scratchImpl) make(int64, int64) (*os.Root, error) { return nil, unsupported() }
func (scratchImpl) close() error                         { return nil }
func (scratchImpl) gone() bool                           { return false }
func (scratchImpl) path() string                         { return "" }
func (scratchFS) Open(string) (fs.File, error)           { return nil, unsupported() }

func openBelow(*os.File, string) (*os.Root, error) { return nil, unsupported() }
func makeNode(*os.Root, string, fs.FileMode) error { return unsupported() }
func setModified(*os.File, time.Time) error        { return unsupported() }
func anyName(fsys fs.FS) fs.FS                     { return fsys }
func canName(_ fs.FS, name string) bool            { return fs.ValidPath(name) }

func check(context.Context) *Report {
	return &Report{Features: []Feature{{Name: "Linux", Required: true, Err: unsupported(), Remedy: "use Linux 5.10 or later"}}}
}

func (r *running) wait() (*Result, error)   { return nil, unsupported() }
func (r *running) signal(os.Signal) error   { return unsupported() }
func (r *running) killAll() error           { return unsupported() }
func (r *running) pause() error             { return unsupported() }
func (r *running) resume() error            { return unsupported() }
func (r *running) usageNow() (Usage, error) { return Usage{}, unsupported() }
func (r *running) kill(Reason)              {}
func (r *running) ended() <-chan struct{}   { return nil }
