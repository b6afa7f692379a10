package stdio

import (
	"errors"
	"io"
	"os"
)

// Pipe, as the reader or writer of a standard stream, asks for a pipe whose other end is the
// caller's. Those of a run are different values.
type Pipe struct{ Stream int }

func (Pipe) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (Pipe) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// OfProcess is what spec.Spec knows a Pipe by.
func (Pipe) OfProcess() {}

// Ends are the caller's ends of pipes that Pipe asked for, nil if it did not.
type Ends struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Ends returns the caller's ends.
func (s *Streams) Ends() Ends { return s.ends }

// Close closes all of them.
func (e *Ends) Close() {
	for _, end := range []io.Closer{e.Stdin, e.Stdout, e.Stderr} {
		if end != nil {
			_ = end.Close()
		}
	}
}

// inputPipe makes the pipe of an input that is Pipe.
func (s *Streams) inputPipe() error {
	r, w, err := os.Pipe()
	if err == nil {
		s.give(r)
		s.ends.Stdin = w
	}
	return err
}

// outputPipe makes the pipe of an output that is Pipe.
func (s *Streams) outputPipe(p Pipe) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	s.give(w)
	var end io.ReadCloser = r
	if s.limit != nil {
		end = &limitedReader{r, s.limit}
	}
	if p.Stream == 1 {
		s.ends.Stdout = end
	} else {
		s.ends.Stderr = end
	}
	return nil
}
