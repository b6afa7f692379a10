// Package e2e contains black-box tests of package sandbox, which use it as its users do. The
// attacks on it are in the package below.
package e2e
