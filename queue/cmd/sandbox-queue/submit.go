package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cellkit/sandbox/queue"
)

// words is a flag that may be repeated.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func submit(e *env, args []string) error {
	var t queue.Task
	var outputs words
	e.flags.StringVar(&t.Class, "class", "", "what the worker must offer")
	e.flags.StringVar(&t.Tenant, "tenant", "", "on whose behalf: many tasks of one tenant do not hold back another's")
	e.flags.StringVar(&t.Key, "key", "", "tasks with the same key are one")
	e.flags.StringVar(&t.Dir, "dir", "", "the working directory")
	e.sizeFlag(&t.Limits.Memory, "memory", "limit of memory, a `SIZE` such as 64m")
	e.flags.Float64Var(&t.Limits.CPUs, "cpus", 0, "limit of CPUs, such as 0.5")
	e.flags.Int64Var(&t.Limits.PIDs, "pids", 0, "limit of processes and threads")
	e.flags.DurationVar(&t.Limits.Timeout, "timeout", 0, "limit of time")
	e.flags.DurationVar(&t.Delay, "delay", 0, "wait so long at least")
	deadline := e.flags.Duration("deadline", 0, "give it up if it has not started in so long; 0: never")
	e.flags.IntVar(&t.Retry.Attempts, "attempts", 0, "try so often; default: 3")
	e.flags.DurationVar(&t.Retry.Backoff, "backoff", 0, "wait so long before the second attempt, twice as long before the third, and so on; default: 1s")
	e.flags.BoolVar(&t.Retry.Failures, "retry-failures", false, "also when the command fails")
	priority := e.flags.String("priority", "normal", "high, normal or low")
	in := e.flags.String("in", "", "a `directory`, whose files are the inputs")
	stdin := e.flags.Bool("stdin", false, "read the standard input")
	e.envFlag(&t.Env)
	e.flags.Var(&outputs, "out", "a file or directory of the result; may be repeated")
	waits := e.flags.Bool("wait", false, "wait for it, as wait does")
	to, progress, replicas := e.toFlag(), e.progressFlag(), e.replicasFlag()
	rest, err := e.parse(args, 1, anyNumber, "[--] COMMAND...")
	if err != nil {
		return err
	}
	t.Command, t.Outputs = rest, outputs
	known := map[string]queue.Priority{"high": queue.High, "normal": queue.Normal, "low": queue.Low}
	p, ok := known[*priority]
	if !ok {
		return misuse("-priority: %q: must be high, normal or low", *priority)
	}
	t.Priority = p
	if *to != "" && !*waits {
		return misuse("-to: means nothing without -wait: add that, or give -to to wait later")
	}
	l := &t.Limits
	if err := errors.Join(free(*to), inputs(&t, *in), positive("-deadline", *deadline), positive("-cpus", l.CPUs), positive("-pids", l.PIDs),
		positive("-timeout", l.Timeout)); err != nil {
		return err
	}
	if *stdin {
		if t.Stdin, err = io.ReadAll(io.LimitReader(e.in, maxStdin)); err != nil {
			return err
		}
	}
	q, err := e.open(append(progress(), replicas())...)
	if err != nil {
		return err
	}
	if *deadline != 0 {
		t.Deadline = time.Now().Add(*deadline)
	}
	id, err := q.Submit(e.ctx, t)
	if err != nil {
		return err
	}
	if *waits {
		return e.show(q, id, *to)
	}
	if e.json {
		return e.print(map[string]string{"id": id})
	}
	_, err = fmt.Fprintln(e.out, id)
	return err
}

func wait(e *env, args []string) error {
	to, progress := e.toFlag(), e.progressFlag()
	rest, err := e.parse(args, 1, 1, "ID")
	if err != nil {
		return err
	}
	if err := free(*to); err != nil {
		return err
	}
	q, err := e.open(progress()...)
	if err != nil {
		return err
	}
	return e.show(q, rest[0], *to)
}

// toFlag adds -to.
func (e *env) toFlag() *string {
	return e.flags.String("to", "", "a new `directory` for the result's files, when the task has ended")
}

// free is the error of a directory that is to be new, and is there. It is found before the task is
// waited for, not after.
func free(dir string) error {
	if dir == "" {
		return nil
	}
	if _, err := os.Lstat(dir); err == nil {
		return misuse("-to: %s is there: name a directory that is not", dir)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Clean(dir))); err != nil {
		return misuse("-to: %w: make that first", err)
	}
	return nil
}

// inputs has a task have the files of a directory, if there is one.
func inputs(t *queue.Task, dir string) error {
	if dir == "" {
		return nil
	}
	if info, err := os.Stat(dir); err != nil {
		return misuse("-in: %w", err)
	} else if !info.IsDir() {
		return misuse("-in: %s is a file: name a directory, whose files are the inputs", dir)
	}
	t.Inputs = os.DirFS(dir)
	return nil
}

// progressFlag adds -progress, and returns the option that it asks for.
func (e *env) progressFlag() func() []queue.Option {
	shown := e.flags.Bool("progress", false, "say on the standard error how far large files are, each second")
	return func() []queue.Option {
		if !*shown {
			return nil
		}
		var mu sync.Mutex
		var last time.Time
		return []queue.Option{queue.Progress(func(t queue.Transfer) {
			mu.Lock()
			defer mu.Unlock()
			if t.Done < t.Size && time.Since(last) < time.Second {
				return
			}
			last = time.Now()
			fmt.Fprintf(e.err, "%s: %d of %d MiB\n", plain(t.Name), t.Done>>20, t.Size>>20)
		})}
	}
}

// shown is a result as -json prints it.
type shown struct {
	ID       string        `json:"id"`
	State    queue.State   `json:"state"`
	Why      string        `json:"why,omitempty"`
	Attempt  int           `json:"attempt"`
	Worker   string        `json:"worker"`
	ExitCode int           `json:"exit_code"`
	Reason   string        `json:"reason"`
	Wall     time.Duration `json:"wall_ns"`
	Memory   uint64        `json:"memory_peak"`
	Stdout   string        `json:"stdout"`
	Stderr   string        `json:"stderr"`
	Cut      int64         `json:"cut,omitempty"`
	Missing  []string      `json:"missing,omitempty"`
}

// show waits for a task and prints its output.
func (e *env) show(q *queue.Queue, id, to string) error {
	r, err := q.Wait(e.ctx, id)
	var end *queue.EndError
	if r == nil && errors.As(err, &end) && e.json {
		return errors.Join(err, e.print(map[string]any{"id": id, "attempt": end.Attempt, "state": end.State, "why": end.Text}))
	}
	if r == nil {
		return err
	}
	state, why := queue.Done, ""
	if errors.As(err, &end) {
		state, why = end.State, end.Text
	}
	if e.json {
		if err := e.print(shown{ID: id, State: state, Why: why, Attempt: r.Attempt, Worker: r.Worker, ExitCode: r.ExitCode, Reason: r.Reason.String(), Wall: r.Usage.Wall, Memory: r.Usage.MemoryPeak,
			Stdout: string(r.Stdout), Stderr: string(r.Stderr), Cut: r.Cut, Missing: r.Missing}); err != nil {
			return err
		}
	} else {
		if _, err := e.out.Write(r.Stdout); err != nil {
			return err
		}
		if _, err := e.err.Write(r.Stderr); err != nil {
			return err
		}
	}
	if to != "" {
		if err := copyOut(to, r); err != nil {
			return err
		}
	}
	return err
}

// copyOut copies the files of a result into a directory that is made for them. They are hostile:
// links among them do not lead out, and no file is there that one could go through.
func copyOut(to string, r *queue.Result) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return os.CopyFS(filepath.Clean(to), r.Outputs)
}
