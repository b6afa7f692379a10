package named

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Only one of those who take a name at once has it, and it can be taken again.
func TestListen(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	for range 3 {
		got := make(chan *Listener)
		for range 8 {
			go func() {
				l, err := Listen("a")
				if err != nil {
					l = nil
				}
				got <- l
			}()
		}
		var have []*Listener
		for range 8 {
			if l := <-got; l != nil {
				have = append(have, l)
			}
		}
		require.Len(t, have, 1)
		list, err := List()
		require.NoError(t, err)
		require.Equal(t, []Holder{{"a", os.Getpid()}}, list)
		_, err = Listen("a")
		require.ErrorContains(t, err, "in use")
		require.NoError(t, have[0].Close())
		_, err = Dial("a")
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
}

// Nothing but a directory of this user, which only that may enter, is used.
func TestDirectory(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", base)
	own := filepath.Join(base, directoryName)
	for name, put := range map[string]func() error{
		"open to others": func() error { return errors.Join(os.Mkdir(own, 0o700), os.Chmod(own, 0o710)) },
		"link":           func() error { return os.Symlink(t.TempDir(), own) },
		"file":           func() error { return os.WriteFile(own, nil, 0o600) },
	} {
		require.NoError(t, put(), name)
		_, err := Listen("a")
		require.Error(t, err, name)
		require.NoError(t, os.RemoveAll(own))
	}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Mkdir(own, 0o700))
		require.NoError(t, os.Chown(own, 1, 1))
		_, err := Listen("a")
		require.ErrorContains(t, err, "another user")
	}
	// A base that others may write to is not one.
	require.NoError(t, os.RemoveAll(own))
	require.NoError(t, os.Chmod(base, 0o777))
	d, err := openDirectory()
	require.NoError(t, err)
	defer d.Close()
	defer os.Remove(d.Name()) // unless somebody else uses it
	require.NoFileExists(t, own)
	require.NotContains(t, d.Name(), base)
}

func TestCheck(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "-a", ".a", "a b", "a\n", "ä", string(make([]byte, 65))} {
		require.Error(t, Check(name), "%q", name)
	}
	require.NoError(t, Check("Box_1.x-y"))
}

// Messages are bounded, and files come only with their beginning.
func TestMessages(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	l, err := Listen("a")
	require.NoError(t, err)
	defer l.Close()
	send := func(raw []byte, files int) ([]*os.File, error) {
		c, err := Dial("a")
		require.NoError(t, err)
		at, err := l.Accept()
		require.NoError(t, err)
		defer at.Close()
		var rights []byte
		for range files {
			rights = append(rights, unix.UnixRights(1)...)
		}
		_, _, err = c.socket.WriteMsgUnix(raw, rights, nil)
		require.NoError(t, err)
		c.Close()
		var v string
		return at.Receive(&v)
	}
	files, err := send([]byte("\x00\x00\x00\x04\"ab\""), 2)
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, f := range files {
		require.NoError(t, f.Close())
	}
	for _, wrong := range []string{"\x00", "\x00\x00\x00\x05\"ab\"", "\x7f\x00\x00\x00\"ab\"", "\x00\x00\x00\x02{}"} {
		before, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		_, err = send([]byte(wrong), 2)
		require.Error(t, err, "%q", wrong)
		after, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		require.Len(t, after, len(before))
	}
	_, err = send([]byte("\x00\x00\x00\x04\"ab\""), 4)
	require.ErrorContains(t, err, "too many files")
}
