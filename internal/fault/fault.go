// Package fault has what package sandbox and the command know of errors beyond their text.
package fault

// Needs is what is wrong with an option that was given without another.
type Needs struct{ Option string }

func (n Needs) Error() string { return "means nothing without " + n.Option }
