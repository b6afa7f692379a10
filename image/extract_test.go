//go:build linux

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// shape is a layer and the result of unpacking it: the tree, or an error.
type shape struct {
	name   string
	files  []file
	raw    []byte // instead of files
	tree   string // entries in the order of list
	err    string
	opaque bool
	left   []string // names that were left out
	made   int64    // files counted, if not 0
}

func kinds(kind byte, names ...string) (list []file) {
	for _, name := range names {
		list = append(list, file{name: name, kind: kind})
	}
	return list
}

func wh(names ...string) []file { return kinds(tar.TypeReg, names...) }

func hard(name, to string) file { return file{name: name, link: to, kind: tar.TypeLink} }

func pax(name string, records ...string) file {
	f := file{name: name, content: "x", pax: map[string]string{}}
	for i := 0; i < len(records); i += 2 {
		f.pax[records[i]] = records[i+1]
	}
	return f
}

// changed is an archive of one entry whose header has other bytes at one place, with the right
// checksum.
func changed(t testing.TB, f file, at int, b string) []byte {
	raw := tarOf(t, f)
	copy(raw[at:], b)
	copy(raw[148:156], "        ")
	sum := 0
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

// withPAX is an archive of one entry after a pax header with records that archive/tar would not
// write.
func withPAX(t testing.TB, f file, records ...string) []byte {
	var body strings.Builder
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest)
		for n != len(rest)+len(fmt.Sprint(n)) {
			n = len(rest) + len(fmt.Sprint(n))
		}
		fmt.Fprint(&body, n, rest)
	}
	head := tarOf(t, file{name: "pax", content: body.String()})
	head = head[:len(head)-1024]
	head[156] = 'x'
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head[:512] {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(head, tarOf(t, f)...)
}

// base256 encodes a number as GNU tar does with large and negative ones.
func base256(n int64, size int) string {
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b[size-8:], uint64(n))
	for i := range size - 8 {
		b[i] = byte(n >> 63)
	}
	b[0] |= 0x80
	return string(b)
}

// shapes are layers of many kinds. Below each is a layer with the directory srv, mode 0700, which
// is opaque, and a file srv/below.
func shapes(t testing.TB) []shape {
	deep := func(n int) string { return strings.Repeat("d/", n-1) + "f" }
	long := strings.Repeat("n", 255)
	x := func(name string) file { return file{name: name, content: "x"} }
	winding := []file{{name: "d/"}} // links that a path may lead through, as long as they may be
	for i := range maxFollow {
		winding = append(winding, file{name: fmt.Sprint("l", i), link: strings.Repeat("d/../", 815) + fmt.Sprint("l", i+1)})
	}
	bottom := strings.Repeat("d/", maxDepth-1)
	below := strings.Repeat("d/", 119) // with it, whiteouts are of a directory of the layer
	sparse, err := os.ReadFile("testdata/sparse.tar")
	require.NoError(t, err)
	list := []shape{
		// Names.
		{name: "absolute", files: []file{x("/etc/x")}, tree: "etc/ etc/x=x", made: 2},
		{name: "many slashes", files: []file{x("//etc///x")}, tree: "etc/ etc/x=x"},
		{name: "dot", files: []file{x("./etc/./x")}, tree: "etc/ etc/x=x"},
		{name: "the root", files: []file{{name: "./"}, {name: "/"}, {name: "."}, x("x")}, tree: "x=x"},
		{name: "the root as a file", files: []file{x("."), {name: "/", link: "/etc", kind: tar.TypeSymlink}}, tree: ""},
		{name: "empty", files: []file{{name: "", content: "x"}, x("y")}, tree: "y=x"},
		{name: "inner dots", files: []file{x("a/../b")}, tree: "b=x"},
		{name: "back to the root", files: []file{x("a/..")}, tree: ""},
		{name: "parent", files: []file{x("a/../../x")}, err: "it is not in the root"},
		{name: "absolute parent", files: []file{x("/../x")}, tree: "x=x"},
		{name: "dots", files: []file{x("..")}, err: "it is not in the root"},
		{name: "dots and more", files: []file{x("..x"), x("...")}, tree: "...=x ..x=x"},
		{name: "spaces and newlines", files: []file{x("a b\nc")}, tree: "a b\nc=x"},
		{name: "not UTF-8", files: []file{x("\xff\xfe")}, tree: "\xff\xfe=x"},
		{name: "longest name", files: []file{x(long)}, tree: long + "=x"},
		{name: "name too long", files: []file{x(long + "n")}, err: "the name is too long"},
		{name: "directory's name too long", files: []file{x(long + "n/x")}, err: "the name is too long"},
		{name: "long path", files: []file{x(strings.Repeat(long+"/", 8) + "x")}, made: 9, tree: "..."},
		{name: "longest path", files: []file{x(strings.Repeat(long+"/", 15) + long)}, err: "the name is too long"},
		{name: "endless path", files: []file{x(strings.Repeat("a/", 100_000) + "x")}, err: "the name is too long"},
		{name: "deep", files: []file{x(deep(256))}, made: 256, tree: "..."},
		{name: "too deep", files: []file{x(deep(257))}, err: "more than 256 directories within each other"},
		{name: "too deep directory", files: []file{{name: strings.Repeat("d/", 257)}}, err: "more than 256 directories within each other"},
		{name: "too deep by a link", files: []file{{name: "l", link: strings.Repeat("d/", 200)}, x("l/" + deep(100))}, err: "more than 256 directories within each other"},
		{name: "name of a zero byte", raw: withPAX(t, x("y"), "path", "a\x00b"), err: "invalid tar header"},
		{name: "name in pax", raw: withPAX(t, x("y"), "path", "/p/../q"), tree: "q=x"},
		{name: "name in pax that leads out", raw: withPAX(t, x("y"), "path", "../q"), err: "it is not in the root"},
		{name: "regular file with a slash", raw: changed(t, x("y"), 0, "y/"), tree: "y=x"},

		// The same path more than once: the last counts.
		{name: "file twice", files: []file{x("a"), {name: "./a", content: "y"}}, tree: "a=y"},
		{name: "file, directory", files: []file{x("a"), {name: "a/"}, x("a/b")}, tree: "a/ a/b=x"},
		{name: "file, file in it", files: []file{x("a"), x("a/b")}, tree: "a/ a/b=x"},
		{name: "directory, file", files: []file{x("a/b"), x("a")}, tree: "a=x"},
		{name: "directory, link, file in it", files: []file{x("a/b"), {name: "a", link: "c"}, x("a/d")}, tree: "a>c c/ c/d=x"},
		{name: "link, directory", files: []file{{name: "a", link: "b"}, {name: "b/"}, {name: "a/"}, x("a/c")}, tree: "a/ a/c=x b/"},
		{name: "link, file", files: []file{{name: "a", link: "b"}, x("a")}, tree: "a=x"},
		{name: "link out, file", files: []file{{name: "a", link: "../../outside"}, x("a")}, tree: "a=x"},
		{name: "directory twice", files: []file{{name: "a/", mode: 0o700}, x("a/b"), {name: "a/", mode: 0o711}}, tree: "a/711 a/b=x"},
		{name: "pipe, file", files: []file{{name: "a", kind: tar.TypeFifo}, x("a")}, tree: "a=x"},
		{name: "file, pipe", files: []file{x("a"), {name: "a", kind: tar.TypeFifo}}, tree: "a|"},
		{name: "file, device", files: []file{x("a"), {name: "a", kind: tar.TypeChar}}, tree: "a!", left: []string{"/a"}},
		{name: "device, file", files: []file{{name: "a", kind: tar.TypeChar}, x("a")}, tree: "a=x", left: []string{"/a"}},

		// Hard links.
		{name: "hard link", files: []file{x("a"), hard("b", "a")}, tree: "a=x*2 b=x*2"},
		{name: "absolute hard link", files: []file{x("/a"), hard("/b", "/a"), hard("./c", "./a")}, tree: "a=x*3 b=x*3 c=x*3"},
		{name: "hard link to what is replaced", files: []file{x("a"), hard("b", "a"), {name: "a", content: "y"}}, tree: "a=y b=x"},
		{name: "hard link that is replaced", files: []file{x("a"), hard("b", "a"), {name: "b", content: "y"}}, tree: "a=x b=y"},
		{name: "hard link to itself", files: []file{x("a"), hard("a", "./a")}, tree: "a=x"},
		{name: "hard link twice", files: []file{x("a"), hard("b", "a"), hard("b", "a")}, tree: "a=x*2 b=x*2"},
		{name: "hard link to a link", files: []file{{name: "out", link: "/etc/passwd"}, hard("x", "out"), {name: "x", content: "y"}}, tree: "out>/etc/passwd x=y"},
		{name: "hard link with a mode to a link out", files: []file{{name: "out", link: "../../outside"}, {name: "x", link: "out", kind: tar.TypeLink, mode: 0o4777}}, tree: "out>../../outside*2 x>../../outside*2"},
		{name: "hard link by a link", files: []file{x("d/a"), {name: "l", link: "/d"}, hard("b", "l/a")}, tree: "b=x*2 d/ d/a=x*2 l>/d"},
		{name: "hard link by a link out", files: []file{{name: "l", link: "/../.."}, hard("b", "l/outside")}, err: "which the layer does not have before it"},
		{name: "hard link out", files: []file{hard("x", "../x")}, err: `a hard link to "../x", which is not in the root`},
		{name: "hard link to nothing", files: []file{hard("x", "/etc/passwd")}, err: "which the layer does not have before it"},
		{name: "hard link to what comes", files: []file{hard("b", "a"), x("a")}, err: "which the layer does not have before it"},
		{name: "hard link to a directory", files: []file{{name: "a/"}, hard("b", "a")}, err: "which is a directory"},
		{name: "hard link to the root", files: []file{hard("b", "/")}, err: "which is a directory"},
		{name: "hard link to what it replaces", files: []file{x("a/b"), hard("a", "a/b")}, err: "no such file"},

		// Symbolic links.
		{name: "links out", files: []file{{name: "a", link: "../../../outside"}, {name: "b", link: "/outside"}, {name: "c", link: "a"}}, tree: "a>../../../outside b>/outside c>a"},
		{name: "file below a link out", files: []file{{name: "out", link: "../../.."}, x("out/outside")}, tree: "out>../../.. outside=x"},
		{name: "file below an absolute link", files: []file{{name: "out", link: "/tmp"}, x("out/x")}, tree: "out>/tmp tmp/ tmp/x=x"},
		{name: "link in a link", files: []file{{name: "d/"}, {name: "l", link: "d"}, {name: "l/up", link: ".."}, x("l/up/l/up/x")}, tree: "d/ d/up>.. l>d x=x"},
		{name: "merged /usr", files: []file{{name: "bin", link: "usr/bin"}, x("bin/sh")}, tree: "bin>usr/bin usr/ usr/bin/ usr/bin/sh=x"},
		{name: "loop", files: []file{{name: "a", link: "b"}, {name: "b", link: "a"}, x("a/x")}, err: "too many symbolic links"},
		{name: "link to itself", files: []file{{name: "a", link: "a"}, x("a/x")}, err: "too many symbolic links"},
		{name: "link that grows", files: []file{{name: "a", link: "a/a/a"}, x("a/x")}, err: "too many symbolic links"},
		{name: "target too long", files: []file{{name: "a", link: strings.Repeat("t", 5000)}}, err: "the name is too long"},
		{name: "longest target", files: []file{{name: "a", link: strings.Repeat("t", 4095)}}, tree: "a>" + strings.Repeat("t", 4095)},

		// Devices and pipes.
		{name: "devices", files: []file{{name: "dev/"}, {name: "dev/null", kind: tar.TypeChar}, {name: "dev/sda", kind: tar.TypeBlock}, {name: "dev/log", kind: tar.TypeFifo}}, tree: "dev/ dev/log|"},
		{name: "device elsewhere", files: []file{{name: "opt/sda", kind: tar.TypeBlock}, {name: "null", kind: tar.TypeChar}}, tree: "null! opt/ opt/sda!", left: []string{"/opt/sda", "/null"}},
		{name: "devices by a link", files: []file{{name: "dev/"}, {name: "d", link: "dev"}, {name: "d/null", kind: tar.TypeChar}}, tree: "d>dev dev/"},
		{name: "whiteout by hand", files: []file{{name: "srv", kind: tar.TypeChar}}, tree: "srv!", left: []string{"/srv"}},
		{name: "device with a large number", raw: changed(t, file{name: "sda", kind: tar.TypeBlock}, 329, base256(1<<40, 8)), tree: "sda!", left: []string{"/sda"}},
		{name: "pipe", files: []file{{name: "p", kind: tar.TypeFifo, mode: 0o600}}, tree: "p|"},

		// Whiteouts.
		{name: "whiteout", files: wh("srv/.wh.below"), tree: "srv/700 srv/below!", made: 2},
		{name: "whiteout of what is not there", files: wh("a/.wh.b"), tree: "a/ a/b!"},
		{name: "whiteout twice", files: wh(".wh.srv", ".wh.srv"), tree: "srv!"},
		{name: "whiteout, file", files: append(wh(".wh.a"), x("a")), tree: "a=x"},
		{name: "file, whiteout", files: append([]file{x("a")}, wh(".wh.a")...), tree: "a=x"},
		{name: "whiteout, directory", files: append(wh(".wh.a"), file{name: "a/"}, x("a/b")), tree: "a/# a/b=x"},
		{name: "directory, whiteout", files: append([]file{x("a/b")}, wh(".wh.a")...), tree: "a/# a/b=x"},
		{name: "whiteout of a parent", files: append(wh(".wh.a"), x("a/b/c")), tree: "a/# a/b/ a/b/c=x"},
		{name: "whiteout below a whiteout", files: wh(".wh.a", "a/.wh.b"), tree: "a/# a/b!"},
		{name: "whiteout, link, file in it", files: append(wh("a/.wh.x"), file{name: "a", link: "b"}, x("b/y")), tree: "a>b b/ b/y=x"},
		{name: "whiteout, link out", files: append(wh("a/.wh.outside"), file{name: "a", link: "../.."}), tree: "a>../.."},
		{name: "whiteout by a link out", files: append([]file{{name: "a", link: "/../.."}}, wh("a/.wh.outside")...), tree: "a>/../.. outside!"},
		{name: "whiteout as a directory", files: []file{{name: ".wh.srv/"}}, tree: "srv!"},
		{name: "whiteout as a device", files: kinds(tar.TypeChar, ".wh.srv"), tree: "srv!"},
		{name: "whiteout as a hard link", files: []file{hard(".wh.srv", "../out")}, tree: "srv!"},
		{name: "whiteout of a whiteout", files: wh(".wh.x/.wh.y"), tree: ".wh.x/ .wh.x/y!"},
		{name: "whiteout of nothing", files: wh(".wh."), err: "a whiteout of no file"},
		{name: "whiteout of a dot", files: wh("a/.wh.."), err: "a whiteout of no file"},
		{name: "whiteout of dots", files: wh("a/.wh..."), err: "a whiteout of no file"},
		{name: "whiteout of the name of dots", files: wh("a/../.wh.b/.."), tree: ""},
		{name: "opaque root", files: append([]file{x("a")}, wh(".wh..wh..opq")...), tree: "a=x", opaque: true},
		{name: "opaque absolute root", files: wh("/.wh..wh..opq"), tree: "", opaque: true},
		{name: "opaque", files: append([]file{x("srv/a")}, wh("srv/.wh..wh..opq", "srv/.wh..wh..opq")...), tree: "srv/700# srv/a=x"},
		{name: "opaque by a link to the root", files: append([]file{{name: "l", link: "/"}}, wh("l/.wh..wh..opq")...), tree: "l>/", opaque: true},
		{name: "opaque below a file", files: append([]file{x("a")}, wh("a/.wh..wh..opq")...), tree: "a/#"},
		{name: "opaque, then no directory", files: append(wh("a/.wh..wh..opq"), x("a")), tree: "a=x"},
		{name: "aufs's own", files: wh(".wh..wh.aufs", ".wh..wh.orph/1", ".wh..wh.plnk/1.2", "a/.wh..wh.x"), tree: ""},
		{name: "parent of a lower opaque one", files: []file{x("srv/a")}, tree: "srv/700 srv/a=x"},

		// Attributes.
		{name: "attributes", files: []file{pax("a", "SCHILY.xattr.user.a", "1", "SCHILY.xattr.user.overlay.opaque", "y", "SCHILY.xattr.trusted.overlay.opaque", "y",
			"SCHILY.xattr.security.capability", "\x01\x00\x00\x02", "SCHILY.xattr.system.posix_acl_access", "\x02\x00\x00\x00")}, tree: "a=x@user.a=1"},
		{name: "opaque attribute", files: []file{{name: "a/", pax: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.overlay.redirect": "/etc"}}}, tree: "a/"},
		{name: "attribute of a link", files: []file{{name: "a", link: "b", pax: map[string]string{"SCHILY.xattr.user.a": "1"}}}, tree: "a>b"},
		{name: "bytes of attributes", files: []file{{name: "a", content: string(make([]byte, 2<<20-1000)), pax: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 1000)}}}, err: "bytes: raise WithLimits"},
		{name: "large comment", files: []file{pax("a", "comment", strings.Repeat("v", 900_000))}, tree: "a=x"},
		{name: "set-uid", files: []file{{name: "a", content: "x", mode: 0o6755}}, tree: "a=x"},
		{name: "no permissions", files: []file{{name: "a/", mode: 0o40000}, x("a/b"), {name: "a/c/"}, {name: "d", content: "y", mode: 0o100000}}, tree: "..."},
		{name: "odd mode", raw: changed(t, x("a"), 100, "7777777\x00"), tree: "a=x"},
		{name: "large owner", raw: changed(t, x("a"), 108, base256(4294967294, 8)), tree: "a=x"},
		{name: "owner larger than any", raw: changed(t, x("a"), 108, base256(4294967295, 8)), err: "ids go from 0 to 4294967294"},
		{name: "negative owner", raw: changed(t, x("a"), 108, base256(-1, 8)), err: "ids go from 0 to 4294967294"},
		{name: "group larger than any", raw: withPAX(t, x("a"), "gid", "99999999999"), err: "ids go from 0 to 4294967294"},
		{name: "times out of range", raw: withPAX(t, x("a"), "mtime", "99999999999999", "atime", "-99999999999999"), tree: "a=x"},
		{name: "times that are none", raw: withPAX(t, x("a"), "mtime", "soon"), err: "invalid tar header"},

		// Sizes.
		{name: "negative size", raw: changed(t, x("a"), 124, base256(-1, 12)), err: "invalid tar header"},
		{name: "endless size", raw: changed(t, x("a"), 124, base256(1<<62, 12)), err: "bytes: raise WithLimits"},
		{name: "size of a directory", raw: changed(t, file{name: "a/"}, 124, "77777777777\x00"), tree: "a/"},
		{name: "pax size is negative", raw: withPAX(t, x("a"), "size", "-1"), err: "invalid tar header"},
		{name: "pax size is larger", raw: withPAX(t, x("a"), "size", "513"), tree: "..."},
		{name: "pax size is smaller", raw: withPAX(t, x("a"), "size", "0"), err: "invalid tar header"},
		{name: "pax size is no number", raw: withPAX(t, x("a"), "size", "1e9"), err: "invalid tar header"},
		{name: "pax record that looks like two", raw: withPAX(t, x("a"), "comment", "v\n9999999 path=y"), tree: "a=x"},
		{name: "sparse", raw: sparse, err: "bytes: raise WithLimits"},
		{name: "large", files: []file{{name: "x", content: string(make([]byte, 3<<20))}}, err: "bytes: raise WithLimits"},
		{name: "bomb after the end", raw: append(tarOf(t, x("x")), make([]byte, 3<<20)...), err: "bytes: raise WithLimits"},
		{name: "truncated", raw: tarOf(t, file{name: "x", content: "0123456789"})[:515], err: "unexpected EOF"},
		{name: "truncated header", raw: tarOf(t, x("x"))[:100], err: "unexpected EOF"},
		{name: "no end", raw: tarOf(t, x("x"))[:1024], tree: "x=x"},
		{name: "nothing", raw: nil, tree: ""},
		{name: "nothing but an end", raw: make([]byte, 1024), tree: ""},
		{name: "no archive", raw: bytes.Repeat([]byte("x"), 2048), err: "invalid tar header"},
		{name: "compressed once more", raw: gzipped(t, tarOf(t, x("x"))), err: "its content has the digest"},
		{name: "wrong checksum", raw: append([]byte("y"), tarOf(t, x("x"))[1:]...), err: "invalid tar header"},

		// Numbers.
		{name: "many", files: slices.Repeat([]file{{name: "x/"}}, 301), err: "more than 300 files"},
		{name: "many parents", files: []file{x("0/" + deep(200)), x("1/" + deep(200))}, err: "more than 300 files"},
		{name: "many whiteouts", files: slices.Repeat(wh(".wh.a"), 301), err: "more than 300 files"},
		{name: "many devices", files: slices.Repeat(kinds(tar.TypeChar, "dev/a"), 301), err: "more than 300 files"},
		{name: "many names", files: slices.Repeat([]file{{name: "l", link: strings.Repeat("t", 4000)}}, 280), err: "bytes of names"},
		{name: "many names through a link", files: append([]file{{name: "l", link: strings.Repeat(strings.Repeat("n", 250)+"/", 15)}}, slices.Repeat([]file{{name: "l/d/"}}, 280)...), err: "bytes of names"},
		{name: "a way of many links, often", files: append(slices.Clone(winding), slices.Repeat([]file{x("l0/x")}, 10)...), err: "paths lead through more than 65536 directories and links"},
		{name: "a way of many links, once", files: append(slices.Clone(winding), x("l0/x")), tree: "..."},
		// 32,640 looks at what is below the directories, and 767 for each whiteout, 512 of them at the end.
		{name: "deep whiteouts", files: slices.Repeat(wh(bottom+".wh.x"), 40), tree: "..."},
		{name: "more deep whiteouts", files: slices.Repeat(wh(bottom+".wh.x"), 44), err: "paths lead through more than 65536 directories and links"},
		// 7,260, and 479 for each, 120 of them to have the directory hide what is below.
		{name: "deep whiteouts of a directory", files: append([]file{{name: below + "d/"}}, slices.Repeat(wh(below+".wh.d"), 115)...), tree: "..."},
		{name: "more deep whiteouts of a directory", files: append([]file{{name: below + "d/"}}, slices.Repeat(wh(below+".wh.d"), 140)...), err: "paths lead through more than 65536 directories and links"},
		{name: "directory and file in turns", files: slices.Repeat([]file{{name: "a/b/c", content: "x"}, {name: "a", content: "y"}}, 60), tree: "a=y", made: 240},

		// Types.
		{name: "global header", raw: append(changed(t, file{name: "pax", content: "16 path=../../x\n"}, 156, "g")[:1024], tarOf(t, x("a"))...), tree: "a=x"},
		{name: "contiguous file", files: []file{{name: "a", content: "x", kind: tar.TypeCont}}, tree: "a=x"},
		{name: "old file", raw: changed(t, x("a"), 156, "\x00"), tree: "a=x"},
		{name: "volume's name", raw: changed(t, x("a"), 156, "V"), err: "a file of type 'V'"},
		{name: "unknown type", raw: changed(t, x("a"), 156, "Z"), err: "a file of type 'Z'"},
	}
	return list
}

// list lists what is below a directory, in order: a directory's mode if it is not 0755, # if it is
// opaque, content, target, | for a pipe, ! for a whiteout, the number of links if there are
// several, and attributes.
func list(t testing.TB, dir string) (names []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		name, _ := filepath.Rel(dir, p)
		value := make([]byte, 100)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			name += "/"
			if st.Mode&0o7777 != 0o755 {
				name += fmt.Sprintf("%o", st.Mode&0o7777)
			}
			if _, err := unix.Lgetxattr(p, "user.overlay.opaque", value); err == nil {
				name += "#"
			}
			st.Nlink = 1
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			name += "=" + string(b)
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			require.NoError(t, err)
			name += ">" + to
		case unix.S_IFIFO:
			name += "|"
		case unix.S_IFCHR:
			require.Zero(t, st.Rdev, p)
			name += "!"
		default:
			require.Fail(t, "a file of another kind", p)
		}
		if st.Nlink > 1 {
			name += fmt.Sprint("*", st.Nlink)
		}
		n, _ := unix.Llistxattr(p, value)
		for _, attr := range strings.FieldsFunc(string(value[:max(n, 0)]), func(r rune) bool { return r == 0 }) {
			if strings.HasPrefix(attr, "user.") && attr != "user.overlay.opaque" || strings.HasPrefix(attr, "trusted.") || attr == "security.capability" {
				of := make([]byte, 100)
				n, _ := unix.Lgetxattr(p, attr, of)
				name += "@" + attr + "=" + string(of[:max(n, 0)])
			}
		}
		names = append(names, name)
		return nil
	}))
	return names
}

// unpackTo unpacks a layer below dir, on top of a layer with an opaque directory, and requires that
// nothing else changes.
func unpackTo(t testing.TB, dir string, raw []byte, most limits) ([]string, info, error) {
	t.Helper()
	store := &Store{dir}
	below := &layer{store: store, hash: "below"}
	require.NoError(t, os.MkdirAll(filepath.Join(below.files(), "srv"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(below.files(), "srv"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(below.files(), "srv", "below"), nil, 0o600))
	_ = unix.Lsetxattr(filepath.Join(below.files(), "srv"), "user.overlay.opaque", []byte("y"), 0) // fails where there are no such attributes
	files := store.path("temp", "files")
	require.NoError(t, os.MkdirAll(files, 0o755))
	outside := filepath.Join(dir, "outside")
	require.NoError(t, os.WriteFile(outside, []byte("outside"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "temp", "outside"), []byte("outside"), 0o600))
	before := list(t, dir)
	content, _, err := v1.SHA256(bytes.NewReader(raw))
	require.NoError(t, err)
	j := &job{src: &source{plain: true}, from: asPlain(t, raw), content: content, limits: most, parents: []*layer{below}}
	made, err := j.unpack(context.Background(), files)
	tree := list(t, files)
	require.LessOrEqual(t, int64(len(tree)), most.files)
	require.NoError(t, removeAll(files))
	require.NoError(t, os.Mkdir(files, 0o755))
	require.Equal(t, before, list(t, dir), "something changed outside")
	st, statErr := os.Stat(outside)
	require.NoError(t, statErr)
	require.Equal(t, fs.FileMode(0o600), st.Mode())
	return tree, made, err
}

// Layers become what container engines make of them, or are refused. Whatever is in one, it stays
// within bounds and changes nothing else.
func TestAttackLayers(t *testing.T) {
	needWhiteouts(t)
	most := limits{2 << 20, 300}
	list := shapes(t)
	require.Greater(t, len(list), 100)
	for _, s := range list {
		t.Run(s.name, func(t *testing.T) {
			raw := s.raw
			if s.files != nil {
				raw = tarOf(t, s.files...)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			tree, made, err := unpackTo(t, t.TempDir(), raw, most)
			runtime.ReadMemStats(&after)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(256<<20)) // the layer itself has 3 MiB, and each part of a long path is looked up
			if s.err != "" {
				require.ErrorContains(t, err, s.err)
				require.Less(t, len(err.Error()), 1000)
				return
			}
			require.NoError(t, err)
			require.Equal(t, s.opaque, made.Opaque)
			require.Equal(t, s.left, made.LeftOut)
			if s.tree != "..." {
				require.Equal(t, s.tree, strings.Join(tree, " "))
			}
			if s.made != 0 {
				require.Equal(t, s.made, made.Files)
			}
		})
	}
}

// Open refuses the same layers, compressed or not, and leaves nothing behind.
func TestAttackOpen(t *testing.T) {
	store := newStore(t)
	for _, s := range shapes(t) {
		if s.err != "it is not in the root" && s.err != "bytes: raise WithLimits" && !strings.Contains(s.err, "files") {
			continue
		}
		raw := s.raw
		if s.files != nil {
			raw = tarOf(t, s.files...)
		}
		for _, as := range []func(testing.TB, []byte) v1.Layer{asGzip, asZstd, asPlain} {
			_, err := Open(t.Context(), layoutOf(t, imageOf(t, v1.Config{}, as(t, raw))), WithStore(store), WithLimits(2<<20, 300))
			require.ErrorContains(t, err, s.err, s.name)
			requireEmpty(t, store)
		}
	}
	archive := filepath.Join(t.TempDir(), "sparse.tar")
	sparse, err := os.ReadFile("testdata/sparse.tar")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(archive, sparse, 0o600))
	_, err = Open(t.Context(), archive, WithStore(store))
	require.ErrorContains(t, err, "larger than itself")
}

// The decompressed size of a bomb is counted, and reading one ends with ctx.
func TestAttackLongBomb(t *testing.T) {
	bomb := append(tarOf(t, file{name: "x"}), make([]byte, 64<<20)...)
	for _, as := range []func(testing.TB, []byte) v1.Layer{asGzip, asZstd} {
		dir := layoutOf(t, imageOf(t, v1.Config{}, as(t, bomb)))
		_, err := Open(t.Context(), dir, WithStore(newStore(t)), WithLimits(1<<20, 10))
		require.ErrorContains(t, err, "more than 1048576 bytes: raise WithLimits")
		ctx, cancel := context.WithCancel(t.Context())
		store := newStore(t)
		_, err = Open(ctx, dir, WithStore(store), WithProgress(func(p Progress) {
			if p.Bytes > 0 {
				cancel()
			}
		}))
		require.ErrorIs(t, err, context.Canceled)
		requireEmpty(t, store)
	}
}
