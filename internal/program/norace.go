//go:build !race

package program

// UsesThread reports whether clones use libc's data of the thread. Go keeps a pointer there, which
// the executor reads after system calls, and does not use.
const UsesThread = false
