// Package shim has what the tests of os/exec use of the standard library's internal packages.
package shim
