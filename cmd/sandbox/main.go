// Command sandbox runs a command in a sandbox: in namespaces of its own, under limits, on a root
// file system of its own. It is a thin layer over the package github.com/cellkit/sandbox: each flag
// of "sandbox run" is one of its options.
//
//	sandbox run [flags] [--] command [args...]
//	sandbox exec [flags] name [--] command [args...]
//	sandbox ps
//	sandbox check
//	sandbox version
//
// "sandbox exec" executes a further command in the run of "sandbox run -name", for the same user,
// and "sandbox ps" lists the names that there are.
//
// The exit status of "sandbox run" and "sandbox exec" is the command's own, or one that says what
// ended it, as with env(1) and timeout(1):
//
//	124      out of time (-timeout, -cpu-time)
//	125      bad flags, or the sandbox could not be set up
//	126      the command was found but could not be executed
//	127      the command was not found
//	128+N    signal N ended the command, or, for SIGINT, SIGTERM and SIGHUP, this program
//	137      out of memory (-memory)
//	153      too much output (-output-limit)
package main

import "github.com/cellkit/sandbox/internal/cli"

func main() { cli.Main() }
