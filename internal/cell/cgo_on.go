//go:build linux && cgo

package cell

// Its C code enters the cell's namespaces before the Go runtime starts.
import _ "github.com/opencontainers/runc/libcontainer/nsenter"

const cgo = true
