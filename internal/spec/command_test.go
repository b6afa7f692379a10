package spec

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEnviron(t *testing.T) {
	tests := []struct {
		set, want []string
	}{
		{nil, []string{"PATH=" + DefaultPath, "HOME=/home/sandbox", "USER=sandbox", "LANG=C.UTF-8"}},
		{[]string{"A=1", "B=2"}, []string{"PATH=" + DefaultPath, "HOME=/home/sandbox", "USER=sandbox", "LANG=C.UTF-8", "A=1", "B=2"}},
		{[]string{"HOME=/x", "A=1", "HOME=/y", "A=2"}, []string{"PATH=" + DefaultPath, "HOME=/y", "USER=sandbox", "LANG=C.UTF-8", "A=2"}},
		{[]string{"PATH=", "LANG="}, []string{"PATH=", "HOME=/home/sandbox", "USER=sandbox", "LANG="}},
		{[]string{"A=b=c", "A=d=e"}, []string{"PATH=" + DefaultPath, "HOME=/home/sandbox", "USER=sandbox", "LANG=C.UTF-8", "A=d=e"}},
		{[]string{"home=/x"}, []string{"PATH=" + DefaultPath, "HOME=/home/sandbox", "USER=sandbox", "LANG=C.UTF-8", "home=/x"}},
	}
	for _, test := range tests {
		c := Command{Env: test.set}
		require.Equal(t, test.want, c.Environ())
		require.Equal(t, test.want, c.Environ(), "the second time")
	}
}

func TestLookupList(t *testing.T) {
	tests := []struct {
		name, path string
		want       []string
	}{
		{"sh", "/usr/bin:/bin", []string{"/usr/bin/sh", "/bin/sh"}},
		{"/bin/sh", "/usr/bin", []string{"/bin/sh"}},
		{"./sh", "/usr/bin", []string{"./sh"}},
		{"dir/sh", "/usr/bin", []string{"dir/sh"}},
		{"sh", "", nil},
		{"sh", ".:bin::/a/:", []string{"/a/sh"}},
		{"..", "/a/b", []string{"/a"}},
	}
	for _, test := range tests {
		require.Equal(t, test.want, LookupList(test.name, []string{"A=/x", "PATH=" + test.path}), "%s in %s", test.name, test.path)
	}
	require.Nil(t, LookupList("sh", []string{"A=/x"}))
}
