//go:build !linux

package stdio

import "os"

// PipeReader reads a pipe to its end.
type PipeReader struct{ *os.File }

// NewPipeReader returns a reader of the pipe.
func NewPipeReader(pipe *os.File) *PipeReader { return &PipeReader{pipe} }

// End does nothing: there are no runs.
func (p *PipeReader) End() {}

func openPipe() (*PipeReader, *os.File, error) {
	r, w, err := os.Pipe()
	return NewPipeReader(r), w, err
}

// Begin does nothing: the pipe is polled already, if at all.
func (p *PipeReader) Begin() {}

// Holds reports whether there may be something to read.
func (p *PipeReader) Holds() bool { return true }

func openNull(flag int) (*os.File, error) { return os.OpenFile(os.DevNull, flag, 0) }

func letReopen(*os.File) {}
