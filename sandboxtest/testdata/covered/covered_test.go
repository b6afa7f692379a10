package covered

import (
	"testing"

	"github.com/cellkit/sandbox/sandboxtest"
)

func TestOutside(t *testing.T) { Outside() }

func TestInside(t *testing.T) {
	sandboxtest.Isolate(t)
	Inside()
}

func TestInsideToo(t *testing.T) {
	sandboxtest.Isolate(t)
	Inside()
}
