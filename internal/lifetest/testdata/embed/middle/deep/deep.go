// Package deep has a function that runs in a process of its own.
package deep

import (
	"context"
	"fmt"
	"os"

	"github.com/cellkit/sandbox/function"
)

var factor = func() int { return len(os.Args[:1]) + 1 }()

// Double doubles a number.
var Double = function.New("double", func(_ context.Context, n int) (int, error) {
	if _, err := os.Stat("/usr/bin"); err == nil {
		return 0, fmt.Errorf("it sees the host")
	}
	return factor * n, nil
})
