//go:build !linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"runtime"

	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/spec"
	"github.com/cellkit/sandbox/internal/stdio"
)

// On systems other than Linux everything compiles, and nothing runs.

func unsupported() error {
	return fmt.Errorf("sandbox: %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

type (
	described   struct{ Spec spec.Spec }
	running     struct{}
	terminal    struct{ io.ReadWriteCloser }
	cellImpl    struct{}
	scratchImpl struct{}
	networkImpl struct{}
)

func describe(c spec.Spec) *described                      { return &described{c} }
func (*described) With(c spec.Spec) *described             { return describe(c) }
func (*described) Start(context.Context) (*running, error) { return nil, unsupported() }
func (*described) CheckAlone(string) error                 { return unsupported() }
func (*described) Prepare(context.Context) error           { return unsupported() }
func (*described) Explain() (string, error)                { return "", unsupported() }

func (*running) PID() int                    { return 0 }
func (*running) Ended() <-chan struct{}      { return nil }
func (*running) Published() []netip.AddrPort { return nil }
func (*running) Signal(os.Signal) error      { return unsupported() }
func (*running) Kill() error                 { return unsupported() }
func (*running) Pause() error                { return unsupported() }
func (*running) Resume() error               { return unsupported() }
func (*running) Close()                      {}
func (*running) Terminal() *terminal         { return nil }
func (*terminal) Resize(_, _ uint16) error   { return unsupported() }
func (*running) Pipes() stdio.Ends           { return stdio.Ends{} }

func wait(*running) (*Result, error) { return nil, unsupported() }
func usage(*running) (Usage, error)  { return Usage{}, unsupported() }

func update(*running, []Option) error { return unsupported() }

func exec(context.Context, *running, []Option) (*running, error) { return nil, unsupported() }

func rootChanges(*described) ([]Change, error) { return nil, unsupported() }
func newCell(cellConfig) (*cellImpl, error)    { return nil, unsupported() }
func closeCell(*cellImpl) error                { return unsupported() }
func shutdown(context.Context) error           { return unsupported() }
func delegateSubgroup(string) error            { return unsupported() }

func check(context.Context) []Feature {
	return []Feature{{Name: "Linux", Required: true, Err: unsupported(), Remedy: "use Linux 5.10 or later"}}
}

func newNetwork(gateway.Config) (*networkImpl, error) { return nil, unsupported() }
func closeNetwork(*networkImpl)                       {}

func newScratch(int64) (*scratchImpl, error)                        { return nil, unsupported() }
func newDiskScratch(string, int64) (*scratchImpl, error)            { return nil, unsupported() }
func newFiles(fsys fs.FS) any                                       { return &fsys }
func (*scratchImpl) Close() error                                   { return unsupported() }
func (*scratchImpl) CopyIn(fs.FS, string) error                     { return unsupported() }
func (*scratchImpl) CopyOut(string) error                           { return unsupported() }
func (*scratchImpl) FS() fs.FS                                      { return nil }
func (*scratchImpl) Fill(context.Context, *spec.Spec, string) error { return unsupported() }
func (*scratchImpl) Size() int64                                    { return 0 }
