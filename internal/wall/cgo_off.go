//go:build linux && !cgo

package wall

const cgo = false
