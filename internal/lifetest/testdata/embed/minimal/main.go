// Command minimal is a short program that uses the library.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/cellkit/sandbox"

	"example.com/embed/middle"
)

func main() {
	out, err := sandbox.New(sandbox.WithCommand("echo", "hi")).Output(context.Background())
	if err == nil {
		err = middle.Check()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("main: %s", out)
}
