package pool

import (
	"errors"
	"log/slog"

	"github.com/cellkit/sandbox/internal/fault"
)

// Option changes one thing of a pool.
type Option func(*config)

type config struct {
	queue    int
	memory   int64   // bytes, 0 for no limit
	cpus     float64 // 0 for no limit
	observer Observer
	logger   *slog.Logger
}

const defaultQueue = 1024

// Queue limits how many runs may wait for their turn; a further one fails with ErrFull. Default:
// 1024.
func Queue(n int) Option { return func(c *config) { c.queue = n } }

// Memory limits the memory of all runs of the pool together, in bytes. Each run may have a limit of
// its own besides. If the pool reaches its limit, the kernel chooses which of the pool's processes
// to kill: sandbox.ErrOutOfMemory. A run sees the pool's limit as its own, unless its own is lower.
// It needs the memory controller. Default, and 0: none.
func Memory(bytes int64) Option { return func(c *config) { c.memory = bytes } }

// CPUs limits the CPU time of all runs of the pool together, to that of n CPUs. sandbox.WithCPUs of
// a run may not be more. It needs the cpu controller. Default, and 0: none.
func CPUs(n float64) Option { return func(c *config) { c.cpus = n } }

// Observe calls o.RunEnded for every run. Default: none.
func Observe(o Observer) Option { return func(c *config) { c.observer = o } }

// Log logs every run that has ended: its id, the command without its arguments, how it ended, and
// what it used; at level Info, or Warn if it did not start. Default: none.
func Log(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

func (c *config) check(size int) error {
	var errs []error
	if size < 1 {
		errs = append(errs, fault.Option("pool.New", "%d is not a positive number of runs", size))
	}
	if c.queue < 0 {
		errs = append(errs, fault.Option("pool.Queue", "%d is negative", c.queue))
	}
	return errors.Join(errs...)
}
