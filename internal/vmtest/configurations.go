package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/testkit/matrix"
)

type configuration = matrix.Configuration

// defaultKernel is the default of guest.sh.
const defaultKernel = "6.12"

// chooseConfigurations returns the configurations to run: those named, or those of make test that
// make sense here. "guests" means all in the guest, "matrix" all.
func chooseConfigurations(names []string) ([]configuration, error) {
	var known []string
	for _, c := range matrix.Configurations {
		known = append(known, c.Name)
	}
	for _, name := range names {
		if name != "guests" && name != "matrix" && !slices.Contains(known, name) {
			return nil, fmt.Errorf("no configuration %q: there are %s, guests, and matrix", name, strings.Join(known, ", "))
		}
	}
	if slices.Contains(names, "host-user") && os.Getuid() != 0 {
		return nil, errors.New("the configuration host-user needs root: an ordinary user's own tests are host")
	}
	needsRoot := func(c configuration) bool { return !c.Guest() && c.As != "" }
	var chosen []configuration
	for _, c := range matrix.Configurations {
		switch {
		case !asked(c, names):
		case c.Guest() && os.Getenv("SANDBOX_VM") == "0":
			fmt.Println(c.Name + ": left out, as SANDBOX_VM=0 says")
		case needsRoot(c) && os.Getuid() != 0:
		case slices.Contains(names, "matrix"):
			chosen = append(chosen, c.Whole())
		default:
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

func asked(c configuration, names []string) bool {
	return len(names) == 0 && c.Always || slices.Contains(names, c.Name) || slices.Contains(names, "matrix") || c.Guest() && slices.Contains(names, "guests")
}
