// Package middle is between a program and its function.
package middle

import (
	"context"
	"fmt"

	"example.com/embed/middle/deep"
)

// Check calls the function.
func Check() error {
	n, err := deep.Double.Call(context.Background(), 21)
	if err == nil && n != 42 {
		err = fmt.Errorf("twice 21 is %d", n)
	}
	return err
}
