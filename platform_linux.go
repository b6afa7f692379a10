package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/changes"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/probe"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// What is behind the API. On other systems platform_other.go stands in for it.

type (
	described   = run.Sandbox
	running     = run.Run
	cellImpl    = cell.Cell
	scratchImpl = scratch.Scratch
	networkImpl = gateway.Network
)

// engine makes all runs of this process.
var engine = run.NewEngine()

func describe(c spec.Spec) *described { return engine.New(c) }

func wait(r *running) (*Result, error) {
	end, err := r.Wait()
	if end == nil {
		return nil, err
	}
	failed := exitError(end)
	if end.Failed() {
		if failed.Reason == Exited || failed.Reason == Signaled {
			failed.cause = err // of copying, which may be the command's
		}
		return failed.Result, failed
	}
	return failed.Result, err
}

func exitError(end *run.End) *ExitError {
	e := &ExitError{Result: &Result{ExitCode: end.ExitCode, Signal: end.Signal, Reason: Reason(end.Reason), Usage: Usage(end.Usage)}, cause: end.Cause}
	if end.Of != nil {
		e.ofRun = exitError(end.Of).Unwrap()
		e.cause = errors.Join(ErrRunEnded, e.ofRun)
	}
	return e
}

func exec(ctx context.Context, r *running, opts []Option) (*running, error) {
	return r.Exec(ctx, func(c *spec.Spec) { apply(c, opts) })
}

func update(r *running, opts []Option) error {
	return r.Update(func(c *spec.Spec) { apply(c, opts) })
}

func usage(r *running) (Usage, error) {
	u, err := r.Usage()
	return Usage(u), err
}

var changeKinds = map[changes.Kind]ChangeKind{changes.Added: Added, changes.Changed: Changed, changes.Removed: Removed}

func rootChanges(s *described) (list []Change, err error) {
	found, err := changes.List(s.Parts(), scratch.UpperOf(&s.Spec.Root))
	for _, c := range found {
		list = append(list, Change{Path: c.Path, Kind: changeKinds[c.Kind]})
	}
	return list, err
}

func check(ctx context.Context) (list []Feature) {
	for _, f := range probe.All(ctx, engine, func(r *running) error { _, err := wait(r); return err }) {
		list = append(list, Feature(f))
	}
	return list
}

func newCell(c cellConfig) (*cellImpl, error) {
	return engine.Boot(cell.Config{HostNetwork: c.network == NetworkHost, HostIDs: c.hostIDs, CgroupParent: c.cgroupParent, Runtime: c.runtime})
}

func closeCell(c *cellImpl) error { return engine.End(context.Background(), c) }

func shutdown(ctx context.Context) error { return engine.Shutdown(ctx) }

func newNetwork(c gateway.Config) (*networkImpl, error) { return gateway.New(c) }

func closeNetwork(n *networkImpl) { engine.CloseNetwork(n) }

func newScratch(bytes int64) (*scratchImpl, error) { return scratch.New(bytes) }

func newDiskScratch(dir string, bytes int64) (*scratchImpl, error) {
	return scratch.NewOnDisk(dir, bytes)
}

func newFiles(fsys fs.FS) any { return scratch.NewFiles(fsys) }

func delegateSubgroup(name string) error {
	if err := limits.Subgroup(name); err != nil {
		return fmt.Errorf("sandbox: DelegateSubgroup: %w", err)
	}
	return nil
}
