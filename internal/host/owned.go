//go:build linux

package host

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// owned is what of /etc a package manager installed. Its databases are read as they are: its
// commands take longer than a run.
type owned struct {
	looks
	manager string
	paths   map[string]bool
	sums    map[string]string // of files as packages have them: MD5 or SHA-1, in hex
}

// Databases of package managers, which change when packages do.
const (
	dpkgInfo   = "/var/lib/dpkg/info"
	dpkgStatus = "/var/lib/dpkg/status"
	ucfHashes  = "/var/lib/ucf/hashfile"
	apkOld     = "/lib/apk/db/installed"
	apkNew     = "/usr/lib/apk/db/installed"
	pacmanDB   = "/var/lib/pacman/local"
)

func readOwned(root string) *owned {
	o := &owned{paths: map[string]bool{}, sums: map[string]string{}}
	switch {
	case o.readDpkg(root):
		o.manager = "dpkg"
	case o.readApk(root + apkOld), o.readApk(root + apkNew):
		o.manager = "apk"
	case o.readPacman(root + pacmanDB):
		o.manager = "pacman"
	}
	return o
}

// has reports whether a package installed what is at p.
func (o *owned) has(p string) bool { return o.paths[p] || generatedEtc.has(p) }

// all reports whether all that is below p is a program's.
func (o *owned) all(p string) bool {
	return generatedEtc.has(p) || o.manager == "" && isProgram(p)
}

// isOriginal reports whether a file is as its package has it. Of some that is not known.
func (o *owned) isOriginal(p string, data []byte) bool {
	sum := o.sums[p]
	switch len(sum) {
	case 2 * md5.Size:
		have := md5.Sum(data)
		return hex.EncodeToString(have[:]) == sum
	case 2 * sha1.Size:
		have := sha1.Sum(data)
		return hex.EncodeToString(have[:]) == sum
	}
	return false
}

// readDpkg reads the lists of files, and the sums of configuration: dpkg(1), "FILES", and ucf(1).
func (o *owned) readDpkg(root string) bool {
	status, err := os.Open(root + dpkgStatus)
	if !o.opened(err) {
		return false
	}
	defer status.Close()
	o.readSums(status)
	if hashes, err := os.Open(root + ucfHashes); o.opened(err) {
		defer hashes.Close()
		o.readHashes(hashes)
	}
	info, err := os.Open(root + dpkgInfo)
	if !o.opened(err) {
		return true
	}
	defer info.Close()
	names, _ := info.Readdirnames(-1)
	buf := make([]byte, 64<<10)
	for _, name := range names {
		if strings.HasSuffix(name, ".list") {
			o.readList(int(info.Fd()), name, buf)
		}
	}
	return true
}

// readSums reads the Conffiles of a status file.
func (o *owned) readSums(status *os.File) {
	in, files := bufio.NewScanner(status), false
	in.Buffer(make([]byte, 0, 64<<10), maxFile)
	for in.Scan() {
		line := in.Bytes()
		if len(line) == 0 || line[0] != ' ' {
			files = bytes.HasPrefix(line, []byte("Conffiles:"))
		} else if files {
			if f := strings.Fields(string(line)); len(f) >= 2 && strings.HasPrefix(f[0], "/etc/") {
				o.paths[f[0]], o.sums[f[0]] = true, f[1]
			}
		}
	}
}

// readHashes reads what ucf knows: files that a package's scripts put there in place of dpkg.
func (o *owned) readHashes(hashes *os.File) {
	for in := bufio.NewScanner(hashes); in.Scan(); {
		if f := strings.Fields(in.Text()); len(f) == 2 && strings.HasPrefix(f[1], "/etc/") {
			o.paths[f[1]], o.sums[f[1]] = true, f[0]
		}
	}
}

// readList reads a list of paths in a directory, one path a line. Most lists are short and have
// nothing of /etc: so there is no more to it than reading.
func (o *owned) readList(dir int, name string, buf []byte) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if !o.opened(err) {
		return
	}
	defer unix.Close(fd)
	buf[0] = '\n' // of a line before the first
	kept := 1
	for {
		n, err := unix.Read(fd, buf[kept:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		rest := buf[:kept+n]
		for {
			at := bytes.Index(rest, []byte("\n/etc/"))
			if at < 0 {
				break
			}
			end := bytes.IndexByte(rest[at+1:], '\n')
			if end < 0 {
				break
			}
			o.paths[string(rest[at+1:at+1+end])] = true
			rest = rest[at+1+end:]
		}
		if kept+n < len(buf) {
			return // that was the end
		}
		last := max(bytes.LastIndexByte(rest, '\n'), 0)
		if kept = copy(buf, rest[last:]); kept == len(buf) {
			return // no list of dpkg's
		}
	}
}

// readApk reads apk's database: for each package F:directory, R:file in it, Z:Q1 and its SHA-1.
func (o *owned) readApk(name string) bool {
	db, err := os.Open(name)
	if !o.opened(err) {
		return false
	}
	defer db.Close()
	dir, file := "", ""
	in := bufio.NewScanner(db)
	in.Buffer(make([]byte, 0, 64<<10), maxFile)
	for in.Scan() {
		kind, value, _ := strings.Cut(in.Text(), ":")
		switch kind {
		case "F":
			dir, file = "/"+value, ""
			o.add(dir)
		case "R":
			file = dir + "/" + value
			o.add(file)
		case "Z":
			if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "Q1")); err == nil && o.paths[file] {
				o.sums[file] = hex.EncodeToString(sum)
			}
		}
	}
	return true
}

// readPacman reads a file for each package, which has a line for each path after one that says
// %FILES%, relative to the root.
func (o *owned) readPacman(dir string) bool {
	lists, _ := filepath.Glob(dir + "/*/files")
	for _, list := range lists {
		f, err := os.Open(list)
		if !o.opened(err) {
			continue
		}
		for in := bufio.NewScanner(f); in.Scan(); {
			o.add("/" + strings.TrimSuffix(in.Text(), "/"))
		}
		f.Close()
	}
	return len(lists) > 0
}

func (o *owned) add(p string) {
	if strings.HasPrefix(p, "/etc/") {
		o.paths[p] = true
	}
}
