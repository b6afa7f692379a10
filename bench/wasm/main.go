//go:build wasip1

// Command wasm is the function for a WebAssembly runtime.
package main

import (
	"unsafe"

	"github.com/cellkit/sandbox/bench/work"
)

var buffer [1 << 20]byte

// address returns where the input goes and the output comes from.
//
//go:wasmexport address
func address() uint32 { return uint32(uintptr(unsafe.Pointer(&buffer))) }

//go:wasmexport do
func do(size uint32) uint32 { return uint32(copy(buffer[:], work.Do(buffer[:size]))) }

func main() {}
