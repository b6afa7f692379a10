package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cellkit/sandbox/queue"
)

//go:embed project
var project embed.FS

// build compiles a project: a task for each C file, and one that links what they made and runs it.
type build struct {
	q    *queue.Queue
	pace time.Duration // that each compiler waits before it starts, so that one can watch
	out  io.Writer

	mu    sync.Mutex
	files map[string]string // by the id of the task that compiles it
}

func submit(ctx context.Context, flags *flag.FlagSet, args []string, out io.Writer) error {
	pace := flags.Duration("pace", 0, "how long each compiler waits before it starts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	q, err := open(ctx)
	if err != nil {
		return err
	}
	defer q.Close()
	return newBuild(q, *pace, out).run(ctx)
}

func newBuild(q *queue.Queue, pace time.Duration, out io.Writer) *build {
	return &build{q: q, pace: pace, out: out, files: map[string]string{}}
}

func (b *build) run(ctx context.Context) error {
	source, err := fs.Sub(project, "project")
	if err != nil {
		return err
	}
	names, err := fs.Glob(source, "*.c")
	if err != nil {
		return err
	}
	objects, err := os.MkdirTemp("", "farm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(objects)
	errs := make([]error, len(names))
	var compiling sync.WaitGroup
	for i, name := range names {
		compiling.Go(func() { errs[i] = b.compile(ctx, source, name, objects) })
	}
	compiling.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.link(ctx, objects)
}

// limits are what a task may use.
var limits = queue.Limits{Memory: 256 << 20, PIDs: 32, Timeout: time.Minute}

// compile has a file compiled, and puts the object into a directory.
func (b *build) compile(ctx context.Context, source fs.FS, name, objects string) error {
	object := strings.TrimSuffix(name, ".c") + ".o"
	id, err := b.q.Submit(ctx, queue.Task{Command: []string{"/bin/sh", "-c", `sleep "$1"; exec cc -Wall -O2 -c -o "$3" "$2"`, "sh", fmt.Sprint(b.pace.Seconds()), name, object},
		Inputs: source, Outputs: []string{object}, Limits: limits})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.files[id] = name
	b.mu.Unlock()
	r, err := b.q.Wait(ctx, id)
	if err != nil {
		return b.failed(name, r, err)
	}
	b.say("compiled %s: %s, attempt %d", name, r.Worker, r.Attempt)
	return os.CopyFS(objects, r.Outputs)
}

// link has the objects linked, and the program run.
func (b *build) link(ctx context.Context, objects string) error {
	id, err := b.q.Submit(ctx, queue.Task{Command: []string{"/bin/sh", "-c", "cc -o program *.o && exec ./program"}, Inputs: os.DirFS(objects), Limits: limits})
	if err != nil {
		return err
	}
	r, err := b.q.Wait(ctx, id)
	if err != nil {
		return b.failed("the program", r, err)
	}
	b.say("ran it: %s", strings.TrimSpace(string(r.Stdout)))
	return nil
}

func (b *build) failed(what string, r *queue.Result, err error) error {
	if r == nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w\n%s", what, err, r.Stderr)
}

// file returns what a task compiles, or "".
func (b *build) file(id string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.files[id]
}

func (b *build) say(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.out, format+"\n", args...)
}
