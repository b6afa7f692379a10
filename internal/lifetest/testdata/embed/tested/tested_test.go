package tested

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/cellkit/sandbox"
)

var custom = flag.String("custom", "", "must be given")

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
}
