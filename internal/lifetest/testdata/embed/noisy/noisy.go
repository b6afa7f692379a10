// Package noisy prints a message when it is initialized.
package noisy

import "fmt"

func init() { fmt.Println("noisy") }
