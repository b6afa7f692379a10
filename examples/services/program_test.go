//go:build linux

package services

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/service"
)

// program is what a package of Debian's has installed on this machine.
type program struct {
	command []string
	env     []string
	stop    syscall.Signal // 0 for SIGTERM
	// What else an image has, files and directories, besides the command and all libraries.
	files []string
	with  []sandbox.Option
}

// describe makes a service of a program.
type describe func(name string, p program, opts ...service.Option) *service.Service

// fromBoth runs a test with a program of this machine, and with images that are made of it.
func fromBoth(t *testing.T, needs string, test func(*testing.T, describe)) {
	testkit.Need(t, needs)
	t.Run("package", func(t *testing.T) { test(t, ofPackage) })
	t.Run("image", func(t *testing.T) {
		dir := testkit.OpenDir(t)
		store, err := image.OpenStore(filepath.Join(dir, "store"))
		require.NoError(t, err)
		test(t, func(name string, p program, opts ...service.Option) *service.Service {
			archive := filepath.Join(dir, name+".tar")
			l := newLayer(t)
			for _, name := range append(p.files, p.command[0]) {
				l.add(os.DirFS("/"), real(t, name), "", 0)
			}
			config := map[string]any{"User": "app", "Cmd": p.command, "Env": append(p.env, "PATH=/usr/sbin:/usr/bin")}
			if p.stop != 0 {
				config["StopSignal"] = strconv.Itoa(int(p.stop))
			}
			l.write(archive, name, config)
			return service.Open(name, image.Sandbox(archive, image.WithStore(store)), append(opts, service.With(p.with...))...)
		})
	})
}

func ofPackage(name string, p program, opts ...service.Option) *service.Service {
	s := sandbox.New(sandbox.WithCommand(p.command[0], p.command[1:]...), sandbox.WithEnv(p.env...)).With(p.with...)
	if p.stop != 0 {
		s = s.With(sandbox.WithStopSignal(p.stop, 10*time.Second))
	}
	return service.New(name, s, opts...)
}

// layer is one of an image, with a user app (1000), whose home is /tmp.
type layer struct {
	t       testing.TB
	content bytes.Buffer
	w       *tar.Writer
	linked  []string        // programs and libraries, whose libraries are added in the end
	has     map[string]bool // names
}

func newLayer(t testing.TB) *layer {
	l := &layer{t: t, has: map[string]bool{}}
	l.w = tar.NewWriter(&l.content)
	l.dir("tmp", 0o1777, 0)
	for _, name := range []string{"bin", "lib", "lib64"} {
		l.header(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: "usr/" + name})
	}
	l.file("etc/passwd", "root:x:0:0::/:\napp:x:1000:1000::/tmp:/bin/sh\n")
	l.file("etc/group", "root:x:0:\napp:x:1000:\n")
	return l
}

func (l *layer) header(h *tar.Header) { require.NoError(l.t, l.w.WriteHeader(h)) }

func (l *layer) dir(name string, mode int64, uid int) {
	l.header(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: uid, Gid: uid})
}

func (l *layer) file(name, content string) {
	l.header(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	_, err := io.WriteString(l.w, content)
	require.NoError(l.t, err)
}

// add adds a file, or a directory and all that is in it; a link with what it leads to.
func (l *layer) add(fsys fs.FS, name, below string, uid int) {
	if info, err := fs.Lstat(fsys, name); err == nil && info.Mode().Type() == fs.ModeSymlink {
		require.NoError(l.t, l.entry(fsys, name, below, uid)) // which WalkDir would follow
		return
	}
	require.NoError(l.t, fs.WalkDir(fsys, name, func(name string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a link leads to nothing
		}
		if err != nil {
			return err
		}
		return l.entry(fsys, name, below, uid)
	}))
}

func (l *layer) entry(fsys fs.FS, name, below string, uid int) error {
	info, err := fs.Lstat(fsys, name)
	if err != nil || l.has[below+name] {
		return err
	}
	l.has[below+name] = true
	h := &tar.Header{Name: below + name, Mode: int64(info.Mode().Perm()), Uid: uid, Gid: uid}
	switch {
	case info.IsDir():
		l.dir(below+name, h.Mode, uid)
		return nil
	case info.Mode().Type() == fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = fs.ReadLink(fsys, name); err != nil {
			return err
		}
		l.header(h)
		to := h.Linkname
		if !filepath.IsAbs(to) {
			to = filepath.Join("/", filepath.Dir(name), to)
		}
		l.add(fsys, real(l.t, to), below, uid)
		return nil
	}
	content, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	if below == "" && bytes.HasPrefix(content, []byte("\x7fELF")) {
		l.linked = append(l.linked, "/"+name)
	}
	h.Size = int64(len(content))
	l.header(h)
	_, err = l.w.Write(content)
	return err
}

// real returns the name of a file in a directory that is none by way of a link, as /lib is, from /
// on.
func real(t testing.TB, path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return path[1:]
	}
	require.NoError(t, err)
	return filepath.Join(dir, filepath.Base(path))[1:]
}

// write writes an image of the layer, and of the libraries with which its programs are linked, as
// an archive of docker save.
func (l *layer) write(archive, tag string, config map[string]any) {
	out, err := exec.Command("ldd", l.linked...).Output()
	exit, status := errors.AsType[*exec.ExitError](err)
	require.True(l.t, err == nil || status && exit.ExitCode() == 1, "%v", err) // one of them is static
	for field := range strings.FieldsSeq(string(out)) {
		if field[0] == '/' && !strings.HasSuffix(field, ":") {
			l.add(os.DirFS("/"), real(l.t, field), "", 0)
		}
	}
	require.NoError(l.t, l.w.Close())
	testkit.DockerArchive(l.t, archive, tag, l.content.Bytes(), config)
}
