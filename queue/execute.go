package queue

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"time"

	"github.com/cellkit/sandbox"
)

// workDir is where the files of tasks are.
const workDir = "/task"

// options returns what the task adds to the worker's sandbox, and the files that it has. All that a
// submitter can say of a run is here.
func (a *attempt) options(ctx context.Context, l Limits) (opts []sandbox.Option, scratch *sandbox.Scratch, err error) {
	t := a.task
	opts = []sandbox.Option{sandbox.WithCommand(t.Command[0], t.Command[1:]...), sandbox.WithEnv(t.Env...)}
	opts = append(opts, l.options()...)
	if len(t.Stdin) > 0 {
		opts = append(opts, sandbox.WithStdin(bytes.NewReader(t.Stdin)))
	}
	dir := t.Dir
	if t.Inputs != nil || len(t.Outputs) > 0 {
		if scratch, err = sandbox.NewScratch(l.Files); err != nil {
			return nil, nil, err
		}
		opts = append(opts, sandbox.WithScratch(workDir, scratch))
		dir = path.Join(workDir, dir)
		if path.IsAbs(t.Dir) {
			dir = t.Dir
		}
	}
	if dir != "" {
		opts = append(opts, sandbox.WithDir(dir))
	}
	if t.Inputs != nil {
		files, err := a.w.q.unpack(ctx, t.Inputs)
		if err == nil {
			err = scratch.CopyIn(files, ".")
		}
		if err != nil {
			return nil, scratch, fmt.Errorf("inputs: %w", err)
		}
	}
	return opts, scratch, nil
}

func (l Limits) options() (opts []sandbox.Option) {
	if l.Memory > 0 {
		opts = append(opts, sandbox.WithMemory(l.Memory))
	}
	if l.CPUs > 0 {
		opts = append(opts, sandbox.WithCPUs(l.CPUs))
	}
	if l.PIDs > 0 {
		opts = append(opts, sandbox.WithPIDs(l.PIDs))
	}
	if l.CPUTime > 0 {
		opts = append(opts, sandbox.WithCPUTime(l.CPUTime))
	}
	if l.Timeout > 0 {
		opts = append(opts, sandbox.WithTimeout(l.Timeout))
	}
	if l.Output > 0 {
		opts = append(opts, sandbox.WithOutputLimit(l.Output))
	}
	return opts
}

// or returns the limits with those of other where there are none.
func (l Limits) or(other Limits) Limits {
	fill(&l.Memory, other.Memory)
	fill(&l.CPUs, other.CPUs)
	fill(&l.PIDs, other.PIDs)
	fill(&l.CPUTime, other.CPUTime)
	fill(&l.Timeout, other.Timeout)
	fill(&l.Output, other.Output)
	fill(&l.Files, other.Files)
	return l
}

func fill[T int64 | float64 | time.Duration](v *T, other T) {
	if *v == 0 {
		*v = other
	}
}

// size is a number of bytes, in the text of an error.
type size int64

func (s size) String() string { return fmt.Sprintf("%d bytes", int64(s)) }

// within returns the limits with those that have to be set, or what a worker does not give.
func (l Limits) within(most Limits) (Limits, error) {
	over := func(what string, asked, most any) error {
		return fmt.Errorf("it asks for %v of %s, and the worker gives %v (MaxLimits)", asked, what, most)
	}
	fill(&l.Files, most.Files)
	switch {
	case l.Memory > most.Memory:
		return l, over("memory", size(l.Memory), size(most.Memory))
	case l.CPUs > most.CPUs:
		return l, over("CPUs", l.CPUs, most.CPUs)
	case l.PIDs > most.PIDs:
		return l, over("processes", l.PIDs, most.PIDs)
	case l.CPUTime > most.CPUTime:
		return l, over("CPU time", l.CPUTime, most.CPUTime)
	case l.Timeout > most.Timeout:
		return l, over("time", l.Timeout, most.Timeout)
	case l.Output > most.Output:
		return l, over("output", size(l.Output), size(most.Output))
	case l.Files > most.Files:
		return l, over("files", size(l.Files), size(most.Files))
	}
	return l, nil
}
