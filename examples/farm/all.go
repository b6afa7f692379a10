package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cellkit/sandbox/queue"
)

// all starts a queue and workers as processes on this machine, submits the project, and kills a
// worker that compiles.
func all(ctx context.Context, flags *flag.FlagSet, args []string, out io.Writer) (err error) {
	count := flags.Int("workers", 3, "how many workers, 2 or more")
	pace := flags.Duration("pace", time.Second, "how long each compiler waits before it starts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "farm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, end := context.WithCancel(ctx)
	var processes sync.WaitGroup
	defer processes.Wait()
	defer end()
	url, err := startServer(ctx, &processes, dir)
	if err != nil {
		return err
	}
	if err := os.Setenv("SANDBOX_QUEUE_URL", url); err != nil {
		return err
	}
	workers := map[string]*os.Process{}
	for i := range max(*count, 2) {
		name := fmt.Sprintf("worker-%d", i+1)
		cmd := command(ctx, "work", "-name", name)
		if err := start(cmd, &processes); err != nil {
			return err
		}
		workers[name] = cmd.Process
		fmt.Fprintf(out, "%s is process %d\n", name, cmd.Process.Pid)
	}
	q, err := open(ctx)
	if err != nil {
		return err
	}
	defer q.Close()
	b := newBuild(q, *pace, out)
	watch, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { b.killOne(watch, workers) })
	err = b.run(ctx)
	stop()
	watching.Wait()
	return err
}

// killOne kills the first worker that has a file to compile.
func (b *build) killOne(ctx context.Context, workers map[string]*os.Process) {
	for s, err := range b.q.Changes(ctx) {
		if err != nil {
			b.say("nobody is killed: %v", err)
			return
		}
		if file, worker := b.file(s.ID), workers[s.Worker]; s.State == queue.Running && file != "" && worker != nil {
			if err := worker.Kill(); err != nil {
				b.say("%s could not be killed: %v", s.Worker, err)
				return
			}
			b.say("killed %s while it compiled %s", s.Worker, file)
			return
		}
	}
}

// command returns a command of this program, which is asked to end when ctx does.
func command(ctx context.Context, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// start starts a command, and waits for its end behind the caller's back.
func start(cmd *exec.Cmd, processes *sync.WaitGroup) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	processes.Go(func() { _ = cmd.Wait() }) // it is killed, or asked to end
	return nil
}

// startServer starts the queue as a process, and returns its URL.
func startServer(ctx context.Context, processes *sync.WaitGroup, dir string) (string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	cmd := command(ctx, "serve", "-dir", dir, "-listen", "127.0.0.1:0")
	cmd.Stdout = w
	err = start(cmd, processes)
	w.Close()
	if err != nil {
		return "", err
	}
	url, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the queue did not start: %w", err)
	}
	return strings.TrimSpace(url), nil
}
