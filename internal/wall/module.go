//go:build linux

package wall

// Runtime is the Wall of a container runtime that is installed on this machine. Finish makes a
// cell's container of what it has started.
type Runtime interface {
	Wall

	// OneExtent reports whether it maps ids by a single extent.
	OneExtent() bool

	// Version returns what it says about its version, in a line.
	Version() (string, error)
}

// Module is what a module of its own has of a runtime whose client is large.
type Module struct {
	// Open returns the Wall. The error is a *MissingError if the runtime does not answer.
	Open func() (Runtime, error)

	// Clean is what the function Clean does for the runtime.
	Clean func(id, dir string) error
}

var modules = map[string]Module{}

// Register makes a runtime known whose module is in this program. It is called by that module's
// init function.
func Register(name string, m Module) { modules[name] = m }

// registered returns what the runtime's module has registered. The error is a *MissingError.
func (r *commandLine) registered() (Module, error) {
	m, ok := modules[r.name]
	if !ok {
		return m, &MissingError{Runtime: r.name, Module: r.module}
	}
	return m, nil
}
