//go:build linux

package compile

import "github.com/cellkit/sandbox/internal/spec"

// EtcFiles returns the part of /etc that is the run's own.
func EtcFiles(c *spec.Spec, m *Machine) [][2]string {
	return newCompiler(c, m, Shape{}, Found{}).etcFiles()
}
