package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/cellkit/sandbox"
)

//go:embed kernel.py
var kernel string

const maxBody, maxAnswer = 8 << 20, 1 << 20

var box = sandbox.New(sandbox.WithHold(), sandbox.WithMemory(512*sandbox.MiB), sandbox.WithCPUs(1), sandbox.WithPIDs(64), sandbox.WithTimeout(time.Hour))

// session is a run in which Python and shells are executed. Its home directory outlives none of it.
type session struct {
	*sandbox.Process
	files *sandbox.Scratch

	mu     sync.Mutex // one cell at a time
	python *sandbox.Process
	reader *bufio.Reader
}

func newSession(disk string) (in *session, err error) {
	in = new(session)
	if disk != "" {
		in.files, err = sandbox.NewDiskScratch(disk, 4*sandbox.GiB)
	} else {
		in.files, err = sandbox.NewScratch(256 * sandbox.MiB)
	}
	if err != nil {
		return nil, err
	}
	if in.Process, err = box.With(sandbox.WithScratch("/home/sandbox", in.files)).Start(context.Background()); err != nil {
		return nil, errors.Join(err, in.files.Close())
	}
	return in, nil
}

func (s *session) end(w http.ResponseWriter, _ *http.Request) {
	if err := s.Close(); err != nil {
		log.Print(err)
	}
	w.WriteHeader(http.StatusNoContent)
}

// run executes a cell and answers what it has written.
func (s *session) run(w http.ResponseWriter, r *http.Request, limit time.Duration) {
	code, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	output, err := s.execute(string(code), limit)
	if err != nil {
		output += fmt.Sprintf("[the interpreter has ended, and its names with it: %v]\n", err)
	}
	_, _ = io.WriteString(w, output)
}

func (s *session) execute(code string, limit time.Duration) (output string, err error) {
	if s.python == nil {
		s.python, err = s.Exec(context.Background(), sandbox.WithCommand("python3", "-c", kernel), sandbox.WithStdinPipe(), sandbox.WithStdoutPipe())
		if err != nil {
			return "", err
		}
		s.reader = bufio.NewReaderSize(s.python.StdoutPipe(), maxAnswer)
	}
	python := s.python
	interrupt := time.AfterFunc(limit, func() { _ = python.Signal(os.Interrupt) })
	// Close closes its pipes too, whoever has them.
	kill := time.AfterFunc(2*limit, func() { _ = python.Close() })
	defer interrupt.Stop()
	defer kill.Stop()
	line, err := json.Marshal(code)
	if err == nil {
		_, err = python.StdinPipe().Write(append(line, '\n'))
	}
	if err == nil {
		line, err = s.reader.ReadSlice('\n') // no answer is longer than the buffer
	}
	if err == nil {
		err = json.Unmarshal(line, &output)
	}
	if err != nil { // what the run did to its interpreter is its own affair
		s.python = nil
		_ = python.Close()
		if _, why := python.Wait(); why != nil {
			err = why
		}
	}
	return output, err
}

// download answers with a file, or with the names in a directory. Whatever it is, the browser is
// not to take it for a page of this server's.
func (s *session) download(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", "sandbox")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	name := path.Clean("/" + r.PathValue("name"))[1:]
	if entries, err := fs.ReadDir(s.files.FS(), cmp.Or(name, ".")); err == nil {
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		_ = json.NewEncoder(w).Encode(names)
		return
	}
	f, err := s.files.FS().Open(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Disposition", "attachment")
	http.ServeContent(w, r, name, time.Time{}, f.(io.ReadSeeker))
}

// upload copies a file into the session. One that is there is not replaced.
func (s *session) upload(w http.ResponseWriter, r *http.Request) {
	name := path.Clean("/" + r.PathValue("name"))[1:]
	dir, err := os.MkdirTemp("", "notebook-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = receive(filepath.Join(dir, path.Base(name)), http.MaxBytesReader(w, r.Body, maxBody))
	}
	if err == nil {
		err = s.files.CopyIn(os.DirFS(dir), path.Dir(name))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

func receive(file string, body io.Reader) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// terminal connects a shell of the session to a WebSocket: binary messages are what is typed and
// what is shown, and one of text is the size.
func (s *session) terminal(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	shell, err := s.Exec(r.Context(), sandbox.WithCommand("bash"), sandbox.WithTerminal(24, 80), sandbox.WithStopSignal(syscall.SIGHUP, time.Second))
	if err != nil {
		_ = conn.Close(websocket.StatusInternalError, "no shell")
		log.Print(err)
		return
	}
	defer shell.Close()
	go func() {
		_, _ = io.Copy(websocket.NetConn(r.Context(), conn, websocket.MessageBinary), shell.Terminal())
		_ = conn.Close(websocket.StatusNormalClosure, "the shell has ended")
	}()
	for {
		kind, data, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		var size struct{ Rows, Cols uint16 }
		if kind == websocket.MessageBinary {
			_, err = shell.Terminal().Write(data)
		} else if err = json.Unmarshal(data, &size); err == nil {
			err = shell.Resize(size.Rows, size.Cols)
		}
		if err != nil {
			return
		}
	}
}
