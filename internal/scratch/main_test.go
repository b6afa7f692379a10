//go:build linux

package scratch

import (
	"testing"

	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
