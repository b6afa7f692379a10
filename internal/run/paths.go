//go:build linux

package run

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/seccomp"
	"github.com/cellkit/sandbox/internal/spec"
)

// What a call will find at the path that it names, looked up while it waits. The process can
// change its memory and its files meanwhile, so this is for people to read: nothing depends on it.

// errand is what a call is about to do at a path.
type errand struct {
	path    string // absolute, as the process names it
	through bool   // a link at its end is followed
	access  uint32 // R_OK, W_OK and X_OK
	makes   bool   // the file, where it is missing
	removes bool
}

// outcome is the errno that an errand will end with, 0 if none is foreseen, and at which path.
type outcome struct {
	path  string
	errno unix.Errno
}

// foresee returns what a call of a thread will end with. No path that is kept is longer than a path
// may be: links can lengthen it.
func foresee(thread uint32, c seccomp.Call) (o outcome) {
	e, ok := errandOf(thread, c)
	if !ok {
		return o
	}
	w := way{as: &credentials{thread: thread}, proc: procFile(thread, "")}
	defer w.backTo(0)
	if w.follow(e.path, e.through) != nil || max(len(w.missing), len(w.denied), len(w.end().name)) >= unix.PathMax {
		return o
	}
	switch at := w.end(); {
	case w.denied != "":
		return outcome{w.denied, unix.EACCES}
	case w.missing != "" && e.makes && w.last:
		return w.changes(at, w.missing)
	case w.missing != "" && !e.removes:
		return outcome{w.missing, unix.ENOENT}
	case w.missing != "":
		return o
	case e.removes && len(w.steps) > 1:
		return w.changes(w.steps[len(w.steps)-2], at.name)
	case e.access&unix.W_OK != 0 && (at.is(unix.S_IFREG) || at.is(unix.S_IFDIR)) && at.isReadOnly():
		return outcome{at.name, unix.EROFS}
	case w.as.denied(at, e.access), e.access&unix.X_OK != 0 && at.is(unix.S_IFREG) && has(at.mount.Options, "noexec"):
		return outcome{at.name, unix.EACCES}
	}
	return o
}

// changes returns what a change of a directory at a path in it ends with.
func (w *way) changes(dir *step, p string) outcome {
	switch {
	case dir.isReadOnly():
		return outcome{p, unix.EROFS}
	case w.as.denied(dir, unix.W_OK|unix.X_OK):
		return outcome{dir.name, unix.EACCES}
	}
	return outcome{}
}

func procFile(thread uint32, name string) string { return fmt.Sprintf("/proc/%d/%s", thread, name) }

// errandOf reads what a call of a thread is about to do. It reports false if that can't be told.
func errandOf(thread uint32, c seccomp.Call) (e errand, ok bool) {
	call, ok := seccomp.PathCalls[c.Name()]
	if !ok {
		return e, false
	}
	// Paths that the kernel prints are relative to the mount namespace's root.
	if root, err := os.Readlink(procFile(thread, "root")); err != nil || root != "/" {
		return e, false
	}
	if e.path, ok = textAt(thread, c.Args[call.Path]); !ok || e.path == "" {
		return e, false
	}
	if !path.IsAbs(e.path) {
		from := "cwd"
		if call.Dir >= 0 && int32(c.Args[call.Dir]) != unix.AT_FDCWD {
			from = fmt.Sprintf("fd/%d", int32(c.Args[call.Dir]))
		}
		dir, err := os.Readlink(procFile(thread, from))
		if err != nil || !path.IsAbs(dir) || strings.HasSuffix(dir, " (deleted)") {
			return e, false
		}
		e.path = dir + "/" + e.path
	}
	var flags uint64
	if call.Flags >= 0 {
		flags = c.Args[call.Flags]
	}
	e.through = true
	switch call.Use {
	case seccomp.Open:
		return e.opens(flags)
	case seccomp.OpenHow:
		how, ok := memory(thread, flags, 8)
		if !ok || len(how) < 8 {
			return e, false
		}
		return e.opens(binary.NativeEndian.Uint64(how))
	case seccomp.Create:
		return e.opens(unix.O_CREAT | unix.O_WRONLY)
	case seccomp.Look:
		e.through = flags&unix.AT_SYMLINK_NOFOLLOW == 0
		if call.Mode >= 0 {
			e.access = uint32(c.Args[call.Mode]) & (unix.R_OK | unix.W_OK | unix.X_OK)
		}
	case seccomp.Link:
		e.through = false
	case seccomp.Write:
		e.access = unix.W_OK
	case seccomp.Enter, seccomp.Execute:
		e.access = unix.X_OK
	case seccomp.Add:
		e.through, e.makes = false, true
	case seccomp.Remove:
		e.through, e.removes = false, true
	}
	return e, true
}

// opens is what open(2) with these flags does.
func (e errand) opens(flags uint64) (errand, bool) {
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		return e, false
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		e.access = unix.R_OK
	case unix.O_WRONLY:
		e.access = unix.W_OK
	case unix.O_RDWR:
		e.access = unix.R_OK | unix.W_OK
	}
	if flags&unix.O_TRUNC != 0 {
		e.access |= unix.W_OK
	}
	if flags&unix.O_PATH != 0 {
		e.access = 0
	}
	e.makes = flags&unix.O_CREAT != 0
	e.through = flags&(unix.O_NOFOLLOW) == 0 && flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL
	return e, true
}

// textAt reads a string that ends with a zero byte, as long as a path may be.
func textAt(thread uint32, at uint64) (string, bool) {
	var text []byte
	for len(text) < unix.PathMax {
		// Most paths are short, and what follows may not be readable.
		part, ok := memory(thread, at+uint64(len(text)), min(256, unix.PathMax-len(text)))
		if !ok {
			return "", false
		}
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(text, part[:end]...)), true
		}
		text = append(text, part...)
	}
	return "", false
}

// memory reads at most n bytes of a thread's memory, and no more than to the end of a page.
func memory(thread uint32, at uint64, n int) ([]byte, bool) {
	const page = 4096 // or larger
	b := make([]byte, min(n, page-int(at%page)))
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	got, err := unix.ProcessVMReadv(int(thread), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil || got <= 0 {
		return nil, false
	}
	return b[:got], true
}

// optionFor returns the option with which an errand at a path would not end with an errno, "" if
// there is none, and whether it is worth telling.
func optionFor(r *spec.Root, o outcome) (option string, worth bool) {
	switch o.errno {
	case unix.ENOENT:
		// What this machine does not have either is missing for another reason, and most
		// programs look for much that is nowhere.
		show := spec.Mount{Dst: o.path, Source: spec.Bind{Path: o.path, ReadOnly: true}}
		return show.Source.Option(), show.Check() == nil && isThere(o.path)
	case unix.EROFS:
		return writable(r, o.path), true
	}
	return "", true
}

// writable returns the option with which what is read-only at a path could be written.
func writable(r *spec.Root, p string) string {
	var at spec.Mount
	links := r.Links()
	for _, m := range r.Mounts {
		if dst := links.Place(m); spec.IsIn(p, dst) && len(dst) > len(at.Dst) {
			at = spec.Mount{Dst: dst, Source: m.Source}
		}
	}
	switch at.Source.(type) {
	case nil:
		if r.Writable == 0 && !r.HasUpper {
			return "WithWritableRoot"
		}
		return ""
	case spec.Scratch:
		return "WithScratch"
	default:
		return "WithBind"
	}
}
