//go:build linux

package service_test

import (
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }
