package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain makes this test binary the command sandbox of the scripts. The library's cells start it
// too, but the library recognizes those starts before TestMain.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sandbox": Main})
}

// TestScripts tests what users see. A script that needs root says so in its first line.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 scriptDir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"status": status},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			if name == "ipv6" {
				_, err := os.Stat("/proc/sys/net/ipv6")
				return err == nil, nil
			}
			return false, errors.New("unknown condition")
		},
	})
}

const scriptDir = "testdata/script"

// status N command [args...] is a script command that requires the command to end with exit status
// N.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [args...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, not %d", got, want)
	}
}

func TestEveryFlagHasAScript(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(scriptDir, "*.txtar"))
	require.NoError(t, err)
	var scripts strings.Builder
	for _, name := range names {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		scripts.Write(data)
	}
	for _, group := range flagGroups {
		for _, f := range group.flags {
			assert.Contains(t, scripts.String(), " -"+f.name+" ")
		}
	}
}
