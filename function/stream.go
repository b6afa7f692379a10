package function

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/cellkit/sandbox/internal/stdio"
	"github.com/cellkit/sandbox/internal/wire"
)

// stream returns the reader for a field of the answer. It reads from a pipe that this process
// makes: a pipe made by the worker would share its open file with the worker, and with it
// O_NONBLOCK, without which Close can't end a Read that waits.
func (c *call) stream() (io.Reader, error) {
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.left, c.far = append(c.left, near, far), append(c.far, far)
	s := &answerStream{c: c, f: stdio.NewPipeReader(near)}
	c.streams, c.open = append(c.streams, s), c.open+1
	return s, nil
}

// sendPipes sends the worker its ends of the answer's streams.
func (c *call) sendPipes() error {
	err := c.w.conn.Send(wire.Message{Kind: wire.Pipes, Files: c.far})
	for _, f := range c.far {
		f.Close()
	}
	if err != nil && !isReset(err) { // after a reset, reading the streams tells why
		return fmt.Errorf("sandbox: function %s: sending pipes for the streams of its result: %w", c.w.f.name, err)
	}
	go c.watch()
	return nil
}

// watch ends the streams when nothing of the worker lives any more: another run may have their
// other ends open.
func (c *call) watch() {
	select {
	case <-c.w.process.Ended():
		for _, s := range c.streams {
			s.f.End()
		}
	case <-c.finished:
	}
}

// answerStream is a field of the answer that is a reader.
type answerStream struct {
	c   *call
	f   *stdio.PipeReader
	mu  sync.Mutex
	end error // what Read returns from now on
}

func (s *answerStream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return 0, s.end
	}
	n, err := s.f.Read(b)
	if err != nil {
		s.f.Close()
		s.end = s.c.read(err)
		return n, s.end
	}
	return n, nil
}

// Close gives up what has not been read, and with it the worker.
func (s *answerStream) Close() error {
	s.f.Close() // a Read that waits for the stream returns
	if !s.mu.TryLock() {
		s.c.abandon() // so does one that waits for the worker's Streamed message
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = os.ErrClosed
		s.c.finish(false)
	}
	return nil
}

// read takes the error that ended a stream of the answer and returns the one for the caller. When
// all streams have ended, the worker says whether they are whole. So of several streams only the
// end of the last one is confirmed.
func (c *call) read(err error) error {
	c.mu.Lock()
	c.open--
	last := c.open == 0
	c.broken = c.broken || err != io.EOF
	c.mu.Unlock()
	if err != io.EOF {
		c.finish(false)
		return err
	}
	if !last {
		return io.EOF
	}
	m, recvErr := c.w.conn.Receive(0, wire.Streamed)
	if recvErr != nil {
		err = c.fail(recvErr)
		c.finish(false)
		return err
	}
	var t wire.Trouble
	if wire.Unmarshal(m.Body, &t) != nil || t.Text != "" {
		err = c.trouble(wire.Message{Kind: wire.Failure, Body: m.Body})
	}
	c.finish(err == io.EOF && !c.broken)
	return err
}
