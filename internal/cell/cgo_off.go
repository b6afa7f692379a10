//go:build linux && !cgo

package cell

const cgo = false
