package cli

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

// printVersion prints the version.
func printVersion(asJSON bool) {
	v, commit := built()
	if asJSON {
		writeJSON(os.Stdout, map[string]string{"version": v, "commit": commit, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		return
	}
	if commit != "" {
		commit = ", commit " + commit
	}
	fmt.Printf("sandbox %s%s, %s %s/%s\n", v, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// built returns what the go command recorded in this program: the module's version, or the commit
// it was built from.
func built() (v, commit string) {
	v = "(devel)"
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	return v, commit
}
