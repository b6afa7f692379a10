// Package hook is what package sandbox lets only the other packages of this module do. Its variables are set by package sandbox, whose
// types they name only in comments, as package sandbox imports this one.
package hook

import "io"

var (
	// OwnProgram returns a sandbox.Option after which the root shows nothing but what this program needs to be executed in it.
	OwnProgram func() (option any)

	// Outputs returns where a *sandbox.Sandbox writes its outputs, and whether both are one.
	Outputs func(s any) (stdout, stderr io.Writer, same bool)
)
