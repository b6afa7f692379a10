package tested

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/function"
)

var custom = flag.String("custom", "", "must be given")

var half = function.New("half", func(_ context.Context, n int) (int, error) { return n / 2, nil })

func TestMain(m *testing.M) {
	flag.Parse()
	fmt.Println("TestMain:", *custom)
	os.Exit(m.Run())
}

func TestOutput(t *testing.T) {
	out, err := sandbox.New(sandbox.WithCommand("echo", "hi")).Output(t.Context())
	if err != nil || string(out) != "hi\n" {
		t.Fatalf("%q, %v", out, err)
	}
	if n, err := half.Call(t.Context(), 84); n != 42 || err != nil {
		t.Fatal(n, err)
	}
}
