// Package exec has the API of os/exec, as far as the tests of os/exec use it, and runs commands in
// sandboxes that see all of the host's files and its network. It is an adapter for these tests.
package exec
