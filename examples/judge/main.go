// Command judge compiles a submitted C program, runs it with the given input, and prints a verdict.
// The compiler and the program see nothing of this machine except its compiler and libraries, and
// can't exceed their limits.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/cellkit/sandbox"
)

var base = sandbox.New(sandbox.WithMemory(256*sandbox.MiB), sandbox.WithPIDs(32), sandbox.WithOutputLimit(16*sandbox.MiB), sandbox.WithDir("/tmp"))

// judge returns the verdict and its details.
func judge(ctx context.Context, source, input, want []byte) (verdict, detail string, err error) {
	dir, err := os.MkdirTemp("", "judge")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "main.c"), source, 0o644); err != nil {
		return "", "", err
	}
	messages, err := base.With(
		sandbox.WithCommand("gcc", "-O2", "-static", "-o", "main", "main.c", "-lm"),
		sandbox.WithBind(dir, "/submission"), sandbox.WithDir("/submission"),
		sandbox.WithTimeout(20*time.Second), sandbox.WithEnv("TMPDIR=/tmp"),
	).CombinedOutput(ctx)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		return "compilation error", exit.Error() + "\n" + string(messages), nil
	} else if err != nil {
		return "", "", err
	}
	output, err := base.With(
		sandbox.WithRootfs(sandbox.EmptyRootfs()), // the program is statically linked
		sandbox.WithReadOnlyBind(filepath.Join(dir, "main"), "/submission/main"),
		sandbox.WithCommand("/submission/main"), sandbox.WithStdin(bytes.NewReader(input)),
		sandbox.WithCPUTime(2*time.Second), sandbox.WithTimeout(10*time.Second), sandbox.WithMemory(64*sandbox.MiB),
	).Output(ctx)
	switch {
	case errors.Is(err, sandbox.ErrCPUTime), errors.Is(err, sandbox.ErrTimeout):
		return "time limit exceeded", err.Error(), nil
	case errors.Is(err, sandbox.ErrOutOfMemory):
		return "memory limit exceeded", err.Error(), nil
	case errors.Is(err, sandbox.ErrOutputLimit):
		return "output limit exceeded", err.Error(), nil
	case errors.As(err, &exit):
		return "runtime error", exit.Error() + "\n" + string(exit.Stderr), nil
	case err != nil:
		return "", "", err
	case !sameWords(output, want):
		return "wrong answer", fmt.Sprintf("%.200q", output), nil
	}
	return "accepted", "", nil
}

// sameWords reports whether outputs are the same except for the space between words.
func sameWords(a, b []byte) bool {
	return bytes.Equal(bytes.Join(bytes.Fields(a), []byte(" ")), bytes.Join(bytes.Fields(b), []byte(" ")))
}

func main() {
	flag.Usage = func() { fmt.Fprintln(flag.CommandLine.Output(), "usage: judge PROGRAM.c INPUT EXPECTED") }
	flag.Parse()
	var files [3][]byte
	for i := range files {
		b, err := os.ReadFile(flag.Arg(i))
		if err != nil {
			flag.Usage()
			log.Fatal(err)
		}
		files[i] = b
	}
	verdict, detail, err := judge(context.Background(), files[0], files[1], files[2])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(verdict)
	fmt.Fprint(os.Stderr, detail)
}
