package cell

import (
	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// Join asks for a clone that enters a live run by the files.
func (c *Cell) Join(p *program.Program, files []int) (*forkserver.Conn, error) {
	return c.send(&forkserver.Request{Image: p.Image()}, files)
}
