// Package execstd runs the standard library's own tests of os/exec against this module: package
// exec has the API of os/exec, made of sandboxes, and the tests come from the toolchain at hand. It
// contains only tests and what they use.
package execstd
