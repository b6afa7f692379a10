package image

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// writableBytes is how much of an image runs may change unless an option says otherwise.
const writableBytes = 256 * sandbox.MiB

// Options returns the image's root and the environment, user and working directory that the image
// sets for its commands. Options given after them override them.
//
// Runs may change their root, as containers may: up to 256 MiB, in memory, discarded with the run.
// WithWritableRoot and WithScratchRoot change that. Before Linux 5.11 the root is read-only. The
// working directory and the image's volumes are created if the image lacks them, and belong to the
// image's user.
//
// The user is root if the image names none. HOME and USER are the user's, unless the image's
// environment sets them. Supplementary groups are those in which the image's /etc/group lists the
// user, if a run can have them (sandbox.WithGroups). An id above 65534, of the user or of files,
// becomes 65533, as runs have no such ids. A user that the image names but does not have is an
// error of Run, unless WithUser follows.
func (i *Image) Options() []sandbox.Option {
	u := i.user()
	dir := rooted(i.config.WorkingDir)
	img := spec.Image{
		Name: i.name, Layers: i.dirs(), User: i.config.User, UserErr: u.err, UID: u.uid, GID: u.gid, Groups: u.groups,
		Dir: dir, Dirs: i.ownDirs(), Writable: writableBytes,
	}
	return []sandbox.Option{
		func(c *spec.Spec) { c.SetImage(img) },
		sandbox.WithEnv("HOME="+u.home, "USER="+u.name),
		sandbox.WithEnv(i.env()...),
	}
}

// As returns the image with another user than its own, as User of a configuration names one: by
// name or number, and after a colon the group. It is open as long as the image is.
func (i *Image) As(user string) *Image {
	other := *i
	other.config.User = user
	return &other
}

// Command runs the image's entry point with the given arguments, or with the image's own if there
// are none.
func (i *Image) Command(args ...string) sandbox.Option {
	if len(args) == 0 {
		args = i.config.Cmd
	}
	args = slices.Concat(i.config.Entrypoint, args)
	if len(args) == 0 {
		err := errors.New("config fields Entrypoint and Cmd are empty: name a command")
		return func(c *spec.Spec) { c.SetNoCommand(i.name, err) }
	}
	return sandbox.WithCommand(args[0], args[1:]...)
}

// StopSignal returns the signal by which commands of the image are to be ended, as its
// configuration names it, such as "SIGQUIT", or "" if it names none. Options does not set it, but
// Sandbox does.
func (i *Image) StopSignal() string { return i.config.StopSignal }

// Ports returns the TCP ports on which commands of the image listen, as its configuration says
// (ExposedPorts), in order. Options publishes none.
func (i *Image) Ports() (ports []int) {
	for exposed := range i.config.ExposedPorts {
		number, protocol, _ := strings.Cut(exposed, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err == nil && port != 0 && (protocol == "tcp" || protocol == "") {
			ports = append(ports, int(port))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// Healthcheck is how an image has it found out whether its command works: by another one, whose
// status is 0 if it does. What is 0 the image does not say.
type Healthcheck struct {
	Command     []string      // with its arguments
	Interval    time.Duration // between two checks
	Timeout     time.Duration // of each
	StartPeriod time.Duration // in which failures don't count
	Retries     int           // after so many failures in a row the command does not work
}

// Healthcheck returns the check that the image's configuration has, or nil if it has none. Options
// does not set it. The numbers are the image's, and may be anything.
func (i *Image) Healthcheck() *Healthcheck {
	h := i.config.Healthcheck
	if h == nil || len(h.Test) < 2 || h.Test[0] == "NONE" {
		return nil
	}
	c := &Healthcheck{Command: h.Test[1:], Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
	if h.Test[0] == "CMD-SHELL" {
		shell := i.config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		c.Command = slices.Concat(shell, h.Test[1:2])
	}
	return c
}

// LeftOut lists the device nodes that the image has outside of /dev, at most a thousand for each
// layer. No run could use them, so they were left out.
func (i *Image) LeftOut() (names []string) {
	for _, l := range i.layers {
		names = append(names, l.info.LeftOut...)
	}
	return names
}

// env returns the image's environment without entries that have no value: such an entry removes a
// variable that an engine sets by default.
func (i *Image) env() (env []string) {
	for _, kv := range i.config.Env {
		if strings.IndexByte(kv, '=') > 0 {
			env = append(env, kv)
		}
	}
	return env
}

// rooted makes a directory of the configuration absolute: it may be relative to the root.
func rooted(dir string) string { return path.Join("/", dir) }

// ownDirs returns the directories that are created for the image's user.
func (i *Image) ownDirs() (dirs []string) {
	for _, dir := range append([]string{i.config.WorkingDir}, slices.Sorted(maps.Keys(i.config.Volumes))...) {
		dir = rooted(dir)
		top, _, _ := strings.Cut(dir[1:], "/")
		if top != "" && top != "proc" && top != "dev" && top != "sys" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

const (
	maxString  = 128<<10 - 1 // of arguments and environment: execve(2)
	maxStrings = 1 << 20     // of all of them together
	maxVolumes = 64
)

// checkConfig refuses settings that no run can have, and names the field.
func checkConfig(f *v1.ConfigFile) error {
	c := &f.Config
	var health []string
	if c.Healthcheck != nil {
		health = c.Healthcheck.Test
	}
	total := 0
	for _, field := range []struct {
		name   string
		values []string
		most   int
	}{
		{"Env", c.Env, maxString}, {"Entrypoint", c.Entrypoint, maxString}, {"Cmd", c.Cmd, maxString}, {"User", []string{c.User}, maxString},
		{"Healthcheck", health, maxString}, {"Shell", c.Shell, maxString},
		{"WorkingDir", []string{rooted(c.WorkingDir)}, 4095}, {"Volumes", slices.Sorted(maps.Keys(c.Volumes)), 4094},
	} {
		for _, value := range field.values {
			total += len(value)
			switch {
			case strings.IndexByte(value, 0) >= 0:
				return fmt.Errorf("config field %s: %.128q contains a zero byte", field.name, value)
			case len(value) > field.most:
				return fmt.Errorf("config field %s: %.64q...: %d bytes are more than %d", field.name, value, len(value), field.most)
			}
		}
		if total > maxStrings {
			return fmt.Errorf("config field %s: with it, strings have more than %d bytes", field.name, maxStrings)
		}
	}
	if len(c.Volumes) > maxVolumes {
		return fmt.Errorf("config field Volumes: %d directories, at most %d are possible", len(c.Volumes), maxVolumes)
	}
	return nil
}

const (
	maxKernelID = 1<<32 - 2 // user_namespaces(7): the largest value is not an id
	maxRunID    = 65534     // the second largest that a run has as root: programs take the largest for no id
	otherID     = 65533     // stands for all ids that no run has
)

// runID maps an id of an image to one that runs have.
func runID(id int) int {
	if id > maxRunID {
		return otherID
	}
	return id
}

// user is an image's user, with ids that a run can have.
type user struct {
	uid, gid   int
	groups     []int
	name, home string
	err        error // why there is no such user
}

// user finds the image's user as container engines do: in its /etc/passwd, by name or by number,
// with the groups of its /etc/group.
func (i *Image) user() user {
	spec, group, _ := strings.Cut(i.config.User, ":")
	if spec == "" {
		spec = "0"
	}
	u := user{name: spec, home: "/"}
	uid, isID := parseID(spec)
	known, named := isID || spec == "root", ""
	for fields := range i.lines("/etc/passwd", 6) {
		id, ok1 := parseID(fields[2])
		gid, ok2 := parseID(fields[3])
		if ok1 && ok2 && (fields[0] == spec || isID && id == uid) {
			uid, u.gid, u.name, named, known = id, gid, fields[0], fields[0], true
			if path.IsAbs(fields[5]) && len(fields[5]) < 4096 {
				u.home = fields[5]
			}
			break
		}
	}
	if !known {
		u.err = errors.New("there is no such user in the image's /etc/passwd")
	}
	if gid, ok := i.group(group); group != "" && ok {
		u.gid = gid
	} else if group != "" {
		u.err = errors.Join(u.err, errors.New("there is no such group in the image's /etc/group"))
	} else if named != "" {
		u.groups = i.groupsOf(named)
	}
	u.uid, u.gid = runID(uid), runID(u.gid)
	return u
}

// group finds a group by name or number.
func (i *Image) group(name string) (gid int, ok bool) {
	gid, ok = parseID(name)
	ok = ok || name == "root"
	for fields := range i.lines("/etc/group", 3) {
		if id, valid := parseID(fields[2]); valid && fields[0] == name {
			return id, true
		}
	}
	return gid, ok
}

const maxGroups = 256 // of sandbox.WithGroups

// groupsOf lists the supplementary groups of a user.
func (i *Image) groupsOf(name string) (gids []int) {
	for fields := range i.lines("/etc/group", 4) {
		gid, ok := parseID(fields[2])
		gid = runID(gid)
		if ok && slices.Contains(strings.Split(fields[3], ","), name) && !slices.Contains(gids, gid) && len(gids) < maxGroups {
			gids = append(gids, gid)
		}
	}
	return gids
}

// parseID parses a number that the kernel accepts as a user or group id.
func parseID(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return int(n), err == nil && n <= maxKernelID
}

// maxLines bounds how much is read of a file of the image.
const maxLines = 1 << 20

// lines yields the fields of each line of a file that has at least that many fields. It reads the
// file that a run sees at that place, if it is a regular file: links only lead to other files of
// the image.
func (i *Image) lines(name string, least int) func(yield func(fields []string) bool) {
	return func(yield func([]string) bool) {
		text, err := readMerged(i.dirs(), name, maxLines)
		if err != nil {
			return // the image may lack the file
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) >= least && strings.IndexByte(line, 0) < 0 && !yield(fields) {
				return
			}
		}
	}
}
