// Package compose is tests of a program that needs the services of a Compose file: the project is
// started once for all of them, without a daemon, and ends with the process. The image is one of a
// busybox, made here; a file of your own has those of a registry.
package compose
