package main

// up -d: a process in a session of its own holds the project, and says what happens until all
// services are ready.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// news is what the process in the background says on its descriptor 3.
type news struct {
	Say   string `json:",omitempty"` // for the standard error
	Ready bool   `json:",omitempty"`
	Error string `json:",omitempty"`
}

// background is the end of up -d that holds the project.
type background struct {
	f *os.File
	e *json.Encoder
}

// inBackground returns the descriptor that detach has passed.
func inBackground() (*background, error) {
	const fd = 3
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil, errors.New("held is for up -d itself: use that")
	}
	syscall.CloseOnExec(fd) // nothing that this process executes has it
	f := os.NewFile(fd, "held")
	return &background{f, json.NewEncoder(f)}, nil
}

// Write passes on what is for the standard error. Once the services are ready, nobody reads it.
func (b *background) Write(text []byte) (int, error) {
	_ = b.e.Encode(news{Say: string(text)})
	return len(text), nil
}

// ready says that the services are ready, or why not.
func (b *background) ready(err error) {
	n := news{Ready: err == nil}
	if err != nil {
		n.Error = err.Error()
	}
	_ = b.e.Encode(n) // if nobody waits, the services go on all the same
	_ = b.f.Close()
}

// detach starts a process that holds the project, and waits until all services are ready.
func detach(e *env, args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, append([]string{held}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	w.Close()
	stop := context.AfterFunc(e.ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	d := json.NewDecoder(io.LimitReader(r, 16<<20))
	for {
		var n news
		switch err := d.Decode(&n); {
		case err != nil && e.ctx.Err() != nil:
			_ = cmd.Wait()
			return errors.New("interrupted: nothing was left running")
		case err != nil:
			return fmt.Errorf("the process in the background has ended: %v", cmd.Wait())
		case n.Error != "":
			_ = cmd.Wait()
			return errors.New(n.Error)
		case n.Ready:
			return cmd.Process.Release()
		}
		fmt.Fprint(e.err, n.Say)
	}
}
