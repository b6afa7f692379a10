//go:build race

package program

// UsesThread reports whether clones use libc's data of the thread: the race detector finds its own
// data there.
const UsesThread = true
