// Command notes keeps notes in the user's home directory. It is an example for its tests, which are
// hermetic.
package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	home, err := os.UserHomeDir()
	if err == nil {
		err = run(home, os.Args[1:], os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

// run runs the command in the arguments: "add TEXT...", "list" or "fetch URL".
func run(home string, args []string, out io.Writer) error {
	file := filepath.Join(home, ".notes")
	switch {
	case len(args) > 1 && args[0] == "add":
		return add(file, strings.Join(args[1:], " "))
	case len(args) == 1 && args[0] == "list":
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		fmt.Fprint(out, string(b))
		return err
	case len(args) == 2 && args[0] == "fetch":
		return fetch(file, args[1])
	}
	return errors.New("usage: notes add TEXT... | list | fetch URL")
}

func add(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, text)
	return errors.Join(err, f.Close())
}

func fetch(file, url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	return add(file, string(b))
}
