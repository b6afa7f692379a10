//go:build linux

package function_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
)

// A package-level variable: New is called while packages are initialised.
var parse = function.New("parse", func(_ context.Context, text string) (map[string]string, error) {
	out := map[string]string{}
	for _, field := range strings.Fields(text) {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return nil, fmt.Errorf("%q has no value", field)
		}
		out[key] = value
	}
	return out, nil
}, sandbox.WithMemory(128*sandbox.MiB), sandbox.WithTimeout(20*time.Second))

// A function of this program is called in a process of its own, where it can do nothing but compute
// its result.
func ExampleNew() {
	out, err := parse.Call(context.Background(), "a=1 b=2")
	fmt.Println(out, err)
	_, err = parse.Call(context.Background(), "a=1 b")
	fmt.Println(err)
	// Output:
	// map[a:1 b:2] <nil>
	// "b" has no value
}

// Workers serve many calls without a new process for each.
func ExampleFunc_Workers() {
	workers := parse.Workers(2, function.MaxCalls(1000))
	defer workers.Close()
	for _, text := range []string{"a=1", "b=2"} {
		fmt.Println(workers.Call(context.Background(), text))
	}
	// Output:
	// map[a:1] <nil>
	// map[b:2] <nil>
}

// With adds options for some calls: those of a sandbox, and those of functions.
func ExampleFunc_With() {
	short := parse.With(sandbox.WithPIDs(64), function.MessageLimit(1000))
	_, err := short.Call(context.Background(), strings.Repeat("a=1 ", 1000))
	fmt.Println(errors.Is(err, function.ErrMessageLimit))
	// Output: true
}
