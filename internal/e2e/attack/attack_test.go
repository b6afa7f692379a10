//go:build linux

package attack

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

// An attack is what hostile code in a run may try. It is written as if it succeeded, and does
// succeed where the wall that it meets is missing: on the host, or in a run without the protection.
type attack struct {
	name string
	// try returns nil if the attack succeeded, otherwise what stopped it.
	try func(args []string) error
	// onHost says that the attack must succeed on the host, as root of a whole machine, which
	// proves that it works.
	onHost bool
}

// attacks by kind; SECURITY.md says what they are about.
var attacks = map[string][]attack{}

func TestMain(m *testing.M) { testkit.Main(m, sandbox.Shutdown) }

func init() {
	testkit.AddHelper("alloc", testkit.Alloc)
	testkit.AddHelper("spin", testkit.Spin)
	testkit.AddHelper("attack", attackHelper)
	testkit.AddHelper("hoard", hoardHelper)
	testkit.AddHelper("sockets", socketsHelper)
	testkit.AddHelper("send", sendHelper)
}

// attackHelper tries the attacks of a kind one after the other, each on a thread that ends with it,
// and prints a line for each.
func attackHelper(args []string) error {
	for _, a := range attacks[args[0]] {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			defer func() {
				if r := recover(); r != nil {
					done <- fmt.Errorf("panic: %v", r)
				}
			}()
			done <- a.try(args[1:])
		}()
		if err := <-done; err != nil {
			fmt.Printf("%s\theld\t%s\n", a.name, strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Printf("%s\tgot through\tnothing\n", a.name)
		}
	}
	fmt.Println("end\theld\tthe end")
	return nil
}

// requireHeld has a sandbox's run try a kind of attacks. None may succeed except those named.
func requireHeld(t *testing.T, kind string, s *sandbox.Sandbox, but ...string) {
	t.Helper()
	result := tried(t, kind, runs.Output(t, s))
	for _, a := range attacks[kind] {
		t.Run(a.name, func(t *testing.T) {
			outcome := result[a.name]
			require.Equal(t, slices.Contains(but, a.name), outcome.through, "%s", outcome.by)
			require.NotContains(t, outcome.by, "panic:")
			t.Log("held by:", outcome.by)
		})
	}
}

type outcome struct {
	through bool
	by      string
}

func tried(t *testing.T, kind, out string) map[string]outcome {
	t.Helper()
	result := map[string]outcome{}
	for line := range strings.Lines(out) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		require.Len(t, f, 3, "%q of %q", line, out)
		result[f[0]] = outcome{f[1] == "got through", f[2]}
	}
	require.Contains(t, result, "end", "the attacker was cut short: %s", out)
	require.Len(t, result, len(attacks[kind])+1)
	return result
}

// attacker returns a sandbox whose run tries a kind of attacks.
func attacker(kind string, args ...string) *sandbox.Sandbox {
	return runs.Helper("attack", append([]string{kind}, args...)...)
}

// requireControl tries the attacks on the host, where those with onHost must succeed.
func requireControl(t *testing.T, kind string, args ...string) {
	t.Helper()
	if !testkit.WholeMachine() {
		return
	}
	cmd := testkit.HelperCommand(testkit.Deadline(t), "attack", append([]string{kind + " on the host"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	result := tried(t, kind+" on the host", string(out))
	for _, a := range attacks[kind+" on the host"] {
		require.True(t, result[a.name].through, "%s on the host: %s", a.name, result[a.name].by)
	}
}

// addAttacks adds a kind of attacks and, as a kind of their own, those with onHost.
func addAttacks(kind string, list []attack) {
	attacks[kind] = list
	attacks[kind+" on the host"] = slices.DeleteFunc(slices.Clone(list), func(a attack) bool { return !a.onHost })
}

// rawCall makes a system call with any arguments, as hostile code does.
func rawCall(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

var errNothing = errors.New("nothing was there")
