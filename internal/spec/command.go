package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/fault"
)

// Command is what is executed, and how.
type Command struct {
	Argv    []string
	Env     []string // added to the defaults, as "KEY=value"
	Dir     string   // "" for the home directory
	DirOf   string   // the image whose working directory that is
	Missing error    // of an image: why there is no command
	Hold    bool     // there is no command, and the run lives on without
	Rlimits map[string]Rlimit

	Terminal Terminal
}

// Terminal is the command's own terminal.
type Terminal struct {
	On         bool // there is one
	Rows, Cols uint16
}

// Rlimit is a resource limit of getrlimit(2).
type Rlimit struct{ Soft, Hard uint64 }

// Equal reports whether both are executed alike.
func (c *Command) Equal(o *Command) bool {
	return slices.Equal(c.Argv, o.Argv) && slices.Equal(c.Env, o.Env) && c.Dir == o.Dir && c.DirOf == o.DirOf &&
		c.Missing == o.Missing && c.Hold == o.Hold && c.Terminal == o.Terminal && maps.Equal(c.Rlimits, o.Rlimits)
}

func (c *Command) check() (errs []error) {
	bad := func(option, format string, args ...any) {
		errs = append(errs, fault.Option(option, format, args...))
	}
	if c.Hold {
		// WithCommand undoes it
	} else if c.Missing != nil {
		errs = append(errs, c.Missing)
	} else if len(c.Argv) == 0 || c.Argv[0] == "" {
		bad("WithCommand", "no command is set")
	}
	for _, s := range c.Argv {
		if strings.IndexByte(s, 0) >= 0 {
			bad("WithCommand", "%q contains a zero byte", s)
		}
	}
	for _, kv := range c.Env {
		if strings.IndexByte(kv, 0) >= 0 {
			bad("WithEnv", "%q contains a zero byte", kv)
		} else if strings.IndexByte(kv, '=') < 1 {
			bad("WithEnv", "%q does not have the form KEY=value", kv)
		}
	}
	if c.Dir != "" {
		if err := CheckPath(c.Dir); err != nil {
			bad("WithDir", "%w", err)
		}
	}
	return errs
}

// rlimits by name, with their numbers on amd64 and arm64: asm-generic/resource.h.
var rlimits = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7,
	"memlock": 8, "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}

// RlimitNumber returns the number of a resource limit that exists.
func RlimitNumber(name string) int { return rlimits[name] }

func (c *Command) checkRlimits() (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(c.Rlimits)) {
		l := c.Rlimits[name]
		if _, ok := rlimits[name]; !ok {
			errs = append(errs, fault.Option("WithRlimit", "%q is unknown: use one of %s", name,
				strings.Join(slices.Sorted(maps.Keys(rlimits)), ", ")))
		} else if l.Soft > l.Hard {
			errs = append(errs, fault.Option("WithRlimit", "%s: the soft limit %d is above the hard limit %d", name, l.Soft, l.Hard))
		}
	}
	return errs
}

// CheckPath accepts absolute paths that the kernel takes.
func CheckPath(p string) error {
	switch {
	case strings.IndexByte(p, 0) >= 0:
		return fmt.Errorf("%q contains a zero byte", p)
	case !path.IsAbs(p):
		return fmt.Errorf("%q is not an absolute path", p)
	case len(p) > 4095: // PATH_MAX
		return fmt.Errorf("a path of %d bytes is longer than 4095", len(p))
	}
	return nil
}

// checkHostPath is CheckPath for a path of this machine.
func checkHostPath(p string) error {
	err := CheckPath(p)
	if err != nil && p != "" && strings.IndexByte(p, 0) < 0 && !path.IsAbs(p) {
		return fmt.Errorf("%w: filepath.Abs returns one of this machine", err)
	}
	return err
}

// What a run has without asking.
const (
	UserName    = "sandbox"
	HomeDir     = "/home/sandbox"
	DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Environ is the run's environment: the defaults, overridden by Env.
func (c *Command) Environ() []string {
	env := []string{"PATH=" + DefaultPath, "HOME=" + HomeDir, "USER=" + UserName, "LANG=C.UTF-8"}
	if c.Terminal.On {
		env = append(env, "TERM=xterm")
	}
	at := map[string]int{}
	for i, kv := range env {
		at[kv[:strings.IndexByte(kv, '=')]] = i
	}
	for _, kv := range c.Env {
		key := kv[:strings.IndexByte(kv, '=')]
		if i, ok := at[key]; ok {
			env[i] = kv
		} else {
			at[key] = len(env)
			env = append(env, kv)
		}
	}
	return env
}

// LookupList is the places where a command may be that is executed with the environment, in order.
func LookupList(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, kv := range env {
		if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
			for _, dir := range strings.Split(dirs, ":") {
				if !path.IsAbs(dir) {
					continue // as os/exec: the current directory is never searched
				}
				list = append(list, path.Join(dir, name))
			}
		}
	}
	return list
}
