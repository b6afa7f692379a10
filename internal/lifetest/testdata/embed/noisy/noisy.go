// Package noisy says when it is initialised.
package noisy

import "fmt"

func init() { fmt.Println("noisy") }
