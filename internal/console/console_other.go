//go:build !linux

package console

// RestoreAfter fails: there is no terminal to restore.
func RestoreAfter() error { return errMisused }
