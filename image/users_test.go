//go:build linux

package image

import (
	"archive/tar"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

// An image's user is the same as for container engines.
func TestRootlessUsers(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nbroken:x:a:b:c:d:e\napp:x:33:44:app:/srv:/bin/sh\nnobody:x:65534:65534::relative:/x\nhuge:x:4294967294:4294967294:::\nover:x:4294967295:0:::\n" +
		"zero\x00:x:7:7::/:/x\n44:x:55:66::/byname:/x\nlong\n::::::\napp:x:1:1:second:/second:/x\n"
	const group = "root:x:0:root\nstaff:x:50:other,app\nwheel:x:60:app,root\nbad:x:y:app\nbig:x:100000:app\n70:x:71:app\nclosed:x:0:\nstaff:x:51:app\n"
	layer := tarOf(t, file{name: "etc/"}, file{name: "etc/passwd", content: passwd}, file{name: "etc/group", content: group})
	only := func(files ...file) [][]byte { return [][]byte{layer, tarOf(t, files...)} }
	const none, noGroup = "no such user in the image's /etc/passwd", "no such group in the image's /etc/group"
	store := newStore(t)
	for _, test := range []struct {
		user     string
		layers   [][]byte
		uid, gid int
		groups   []int
		name     string
		home     string
		err      string
	}{
		{"", [][]byte{layer}, 0, 0, []int{0, 60}, "root", "/root", ""},
		{":staff", [][]byte{layer}, 0, 50, nil, "root", "/root", ""},
		{"root", [][]byte{layer}, 0, 0, []int{0, 60}, "root", "/root", ""},
		{"app", [][]byte{layer}, 33, 44, []int{50, 60, 65533, 71, 51}, "app", "/srv", ""},
		{"33", [][]byte{layer}, 33, 44, []int{50, 60, 65533, 71, 51}, "app", "/srv", ""},
		{"app:", [][]byte{layer}, 33, 44, []int{50, 60, 65533, 71, 51}, "app", "/srv", ""},
		{"app:staff", [][]byte{layer}, 33, 50, nil, "app", "/srv", ""},
		{"app:7", [][]byte{layer}, 33, 7, nil, "app", "/srv", ""},
		{"33:70", [][]byte{layer}, 33, 71, nil, "app", "/srv", ""}, // a name takes precedence over a number
		{"44", [][]byte{layer}, 55, 66, nil, "44", "/byname", ""},
		{"1234:5", [][]byte{layer}, 1234, 5, nil, "1234", "/", ""},
		{"1234", [][]byte{layer}, 1234, 0, nil, "1234", "/", ""},
		{"nobody", [][]byte{layer}, 65534, 65534, nil, "nobody", "/", ""},
		{"65535", [][]byte{layer}, 65533, 0, nil, "65535", "/", ""},
		{"huge", [][]byte{layer}, 65533, 65533, nil, "huge", "/", ""},
		{"4294967294:4294967294", [][]byte{layer}, 65533, 65533, nil, "huge", "/", ""},
		{"4294967295", [][]byte{layer}, 0, 0, nil, "", "", none},
		{"-1", [][]byte{layer}, 0, 0, nil, "", "", none},
		{"stranger", [][]byte{layer}, 0, 0, nil, "", "", none},
		{"broken", [][]byte{layer}, 0, 0, nil, "", "", none},
		{"over", [][]byte{layer}, 0, 0, nil, "", "", none},
		{"app:nogroup", [][]byte{layer}, 0, 0, nil, "", "", noGroup},
		{"app:-1", [][]byte{layer}, 0, 0, nil, "", "", noGroup},
		{"app:4294967294", [][]byte{layer}, 33, 65533, nil, "app", "/srv", ""},

		{"app", only(file{name: "etc/passwd", content: "app:x:9:9::/nine:\n"}), 9, 9, []int{50, 60, 65533, 71, 51}, "app", "/nine", ""},
		{"app", only(file{name: "usr/"}, file{name: "usr/etc/"}, file{name: "usr/etc/passwd", content: "app:x:9:9::/nine:\n"}, file{name: "etc/passwd", link: "/usr/etc/passwd"}), 9, 9, []int{50, 60, 65533, 71, 51}, "app", "/nine", ""},
		{"app", only(file{name: "usr/"}, file{name: "usr/passwd", content: "app:x:9:9::/nine:\n"}, file{name: "etc", link: "usr"}), 9, 9, nil, "app", "/nine", ""},
		{"app", only(file{name: "etc/passwd", link: "../../../../etc/group"}), 0, 0, nil, "", "", none},
		{"root", only(file{name: "etc/passwd", link: "/etc/passwd"}), 0, 0, nil, "root", "/", ""},
		{"app", only(file{name: "etc/passwd", link: "/etc/passwd"}), 0, 0, nil, "", "", none},
		{"app", only(file{name: "etc/passwd/"}), 0, 0, nil, "", "", none},
		{"", only(file{name: "etc/passwd", kind: tar.TypeFifo}), 0, 0, nil, "0", "/", ""},
		{"", [][]byte{tarOf(t, file{name: "x"})}, 0, 0, nil, "0", "/", ""},
		{"root:root", [][]byte{tarOf(t, file{name: "x"})}, 0, 0, nil, "root", "/", ""},
		{"root:wheel", [][]byte{tarOf(t, file{name: "x"})}, 0, 0, nil, "", "", noGroup},
	} {
		t.Run(test.user, func(t *testing.T) {
			var list []v1.Layer
			for _, l := range test.layers {
				list = append(list, asGzip(t, l))
			}
			u := open(t, store, layoutOf(t, imageOf(t, v1.Config{User: test.user}, list...))).user()
			if test.err != "" {
				require.ErrorContains(t, u.err, test.err)
				return
			}
			require.Equal(t, user{uid: test.uid, gid: test.gid, groups: test.groups, name: test.name, home: test.home}, u)
		})
	}
}
