package image

import (
	"bufio"
	"cmp"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cellkit/sandbox"
)

// Options are the image's root and what it says of how to run a command in it: its environment, working directory and user, who is
// root where the image names none. Options given after them change that.
func (i *Image) Options() []sandbox.Option {
	uid, gid, home := i.user()
	return []sandbox.Option{
		sandbox.WithRootfs(i.Rootfs()),
		sandbox.WithUser(uid, gid),
		sandbox.WithDir(cmp.Or(i.config.WorkingDir, "/")),
		sandbox.WithEnv("HOME=" + home),
		sandbox.WithEnv(i.config.Env...),
	}
}

// Command is the image's entry point with the arguments given, or else with those that the image has for it.
func (i *Image) Command(args ...string) sandbox.Option {
	if len(args) == 0 {
		args = i.config.Cmd
	}
	args = slices.Concat(i.config.Entrypoint, args)
	if len(args) == 0 {
		args = []string{""} // refused, as no command
	}
	return sandbox.WithCommand(args[0], args[1:]...)
}

// user is the ids and the home directory of the image's user. A name that the image does not know is one that no run can have.
func (i *Image) user() (uid, gid int, home string) {
	name, group, hasGroup := strings.Cut(i.config.User, ":")
	name = cmp.Or(name, "0")
	uid, err := strconv.Atoi(name)
	known := err == nil
	home = "/"
	i.lines("etc/passwd", func(fields []string) bool {
		if len(fields) < 6 || fields[0] != name && fields[2] != name {
			return false
		}
		u, uErr := strconv.Atoi(fields[2])
		g, gErr := strconv.Atoi(fields[3])
		if uErr != nil || gErr != nil {
			return false
		}
		uid, gid, home, known = u, g, cmp.Or(fields[5], "/"), true
		return true
	})
	if hasGroup {
		if g, err := strconv.Atoi(group); err == nil {
			gid = g
		} else {
			known = i.lines("etc/group", func(fields []string) bool {
				if len(fields) < 3 || fields[0] != group {
					return false
				}
				g, err := strconv.Atoi(fields[2])
				gid = g
				return err == nil
			}) && known
		}
	}
	if !known {
		return -1, -1, home
	}
	return uid, gid, home
}

// maxLines bounds what is read of a file of the image.
const maxLines = 1 << 20

// lines gives f the fields of a file's lines until it wants no more, and tells whether it did. The file is that of the highest layer that has it. Links out of a layer are
// not followed, and nothing but a regular file is read.
func (i *Image) lines(name string, f func(fields []string) bool) bool {
	for _, l := range slices.Backward(i.layers) {
		root, err := os.OpenRoot(l.files())
		if err != nil {
			return false
		}
		info, err := root.Lstat(name)
		if err != nil {
			root.Close()
			if l.info.Opaque {
				return false
			}
			continue
		}
		var file *os.File
		if info.Mode().IsRegular() {
			file, err = root.Open(name)
		}
		root.Close()
		if file == nil || err != nil {
			return false
		}
		defer file.Close()
		for scan := bufio.NewScanner(io.LimitReader(file, maxLines)); scan.Scan(); {
			if f(strings.Split(scan.Text(), ":")) {
				return true
			}
		}
		return false
	}
	return false
}
