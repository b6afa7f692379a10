//go:build unix

package stdio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeRun has the descriptors that a run would have.
type fakeRun struct {
	*Streams
	t     *testing.T
	files []*os.File
}

// openStreams opens the streams and begins to copy.
func openStreams(t *testing.T, c Config) *fakeRun {
	t.Helper()
	s, err := Open(c)
	require.NoError(t, err)
	r := &fakeRun{Streams: s, t: t}
	for _, f := range s.Child() {
		r.files = append(r.files, duplicate(t, f))
	}
	s.CloseChild()
	s.Start()
	return r
}

// duplicate is what the run gets of a file that is closed here.
func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	require.NoError(t, err)
	d := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { d.Close() })
	return d
}

func (r *fakeRun) write(fd int, text string) {
	r.t.Helper()
	_, err := r.files[fd].WriteString(text)
	require.NoError(r.t, err)
}

// end is the run's end: all that it has open is closed.
func (r *fakeRun) end() error {
	for _, f := range r.files {
		f.Close()
	}
	inTime, err := r.Finish()
	require.True(r.t, inTime)
	return err
}

func TestStreamsAreNullByDefault(t *testing.T) {
	r := openStreams(t, Config{})
	require.Len(t, r.files, 3)
	got, err := io.ReadAll(r.files[0])
	require.NoError(t, err)
	require.Empty(t, got)
	r.write(1, "nobody reads this")
	r.write(2, "nor this")
	require.NoError(t, r.end())
}

func TestStreamsAreCopied(t *testing.T) {
	var stdout, stderr bytes.Buffer
	input := strings.Repeat("input\n", 100_000) // more than a pipe holds
	r := openStreams(t, Config{Stdin: strings.NewReader(input), Stdout: &stdout, Stderr: &stderr})
	got, err := io.ReadAll(r.files[0])
	require.NoError(t, err)
	require.Equal(t, input, string(got))
	r.write(1, "out")
	r.write(2, "err")
	require.NoError(t, r.end())
	require.Equal(t, "out", stdout.String())
	require.Equal(t, "err", stderr.String())
}

// TestLull has all that is left in pipes arrive at the end, within a limit, with errors, and what
// is written longer while the run lives.
func TestLull(t *testing.T) {
	for lull, size := range map[time.Duration]int{
		time.Millisecond: 60_000,
		time.Hour:        4 << 10, // all of it is left in the pipe, which may hold no more
	} {
		var stdout, stderr bytes.Buffer
		r := openStreams(t, Config{Stdout: &stdout, Stderr: &stderr, Lull: lull})
		r.write(1, strings.Repeat("x", size))
		require.NoError(t, r.end())
		require.Equal(t, size, stdout.Len())
		require.Zero(t, stderr.Len())

		stdout.Reset()
		exceeded := 0
		r = openStreams(t, Config{Stdout: &stdout, Limit: 4, Exceeded: func() { exceeded++ }, Lull: lull})
		r.write(1, "12")
		r.write(1, "3456")
		require.NoError(t, r.end())
		require.Equal(t, "1234", stdout.String())
		require.Equal(t, 1, exceeded)

		disk := errors.New("disk full")
		r = openStreams(t, Config{Stdout: failing{disk}, Lull: lull})
		r.write(1, "x")
		require.ErrorIs(t, r.end(), disk)
	}
	read, write := io.Pipe()
	r := openStreams(t, Config{Stdout: write, Lull: 10 * time.Millisecond})
	go r.files[1].WriteString(strings.Repeat("x", 1<<20))
	_, err := io.ReadFull(read, make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, r.end())
}

func TestSameWriterSharesAPipe(t *testing.T) {
	var both bytes.Buffer
	r := openStreams(t, Config{Stdout: &both, Stderr: &both})
	for range 100 {
		r.write(1, "1")
		r.write(2, "2")
	}
	require.NoError(t, r.end())
	require.Equal(t, strings.Repeat("12", 100), both.String())
}

// uncomparable can't be compared with ==, which panics.
type uncomparable struct {
	io.Writer
	_ []int
}

func TestSameWriter(t *testing.T) {
	var a, b bytes.Buffer
	require.True(t, SameWriter(&a, &a))
	require.False(t, SameWriter(&a, &b))
	require.False(t, SameWriter(&a, nil))
	require.False(t, SameWriter(uncomparable{Writer: &a}, uncomparable{Writer: &a}))
	require.True(t, SameWriter(os.Stdout, os.Stdout))
}

// TestFilesAreHandedOver has files of the caller, which are not copied, not
// closed, and follow each other as 0, 1, 2, 3 and so on.
func TestFilesAreHandedOver(t *testing.T) {
	dir := t.TempDir()
	var files []*os.File
	for _, name := range []string{"in", "out", "err", "extra0", "extra1"} {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		defer f.Close()
		files = append(files, f)
	}
	s, err := Open(Config{Stdin: files[0], Stdout: files[1], Stderr: files[2], Extra: files[3:]})
	require.NoError(t, err)
	require.Equal(t, files, s.Child())
	require.Empty(t, s.close)
	require.Nil(t, s.in)
	require.Empty(t, s.outputs)
	s.CloseChild()
	_, err = s.Finish()
	require.NoError(t, err)
	for _, f := range files {
		_, err := f.WriteString("still open")
		require.NoError(t, err)
	}
}

func TestOutputLimitCountsBoth(t *testing.T) {
	tests := []struct {
		name     string
		out, err string
		exceeded int
		want     int // bytes that arrive
	}{
		{"below", "1234", "567", 0, 7},
		{"exactly", "12345", "678", 0, 8},
		{"above", "12345", "6789", 1, 8},
		{"far above", strings.Repeat("x", 100), strings.Repeat("y", 100), 1, 8},
		{"nothing", "", "", 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			exceeded := 0
			var mu sync.Mutex
			count := func() { mu.Lock(); exceeded++; mu.Unlock() }
			r := openStreams(t, Config{Stdout: &stdout, Stderr: &stderr, Limit: 8, Exceeded: count})
			r.write(1, test.out)
			r.write(2, test.err)
			require.NoError(t, r.end())
			require.Equal(t, test.exceeded, exceeded)
			require.Equal(t, test.want, stdout.Len()+stderr.Len())
			require.True(t, strings.HasPrefix(test.out, stdout.String()))
			require.True(t, strings.HasPrefix(test.err, stderr.String()))
		})
	}
}

// TestOutputLimitOfFilesAndNothing counts also what would need no copy.
func TestOutputLimitOfFilesAndNothing(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer file.Close()
	exceeded := make(chan struct{}, 2)
	r := openStreams(t, Config{Stdout: file, Limit: 4, Exceeded: func() { exceeded <- struct{}{} }})
	r.write(1, "12")
	r.write(2, "3456") // stderr is not set
	require.NoError(t, r.end())
	require.Len(t, exceeded, 1)
	content, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	require.Contains(t, []string{"12", ""}, string(content), "what the limit let through of both")
}

// failing is a Reader and Writer that fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestCopyErrors(t *testing.T) {
	disk := errors.New("disk full")
	r := openStreams(t, Config{Stdout: failing{disk}})
	r.write(1, "x")
	require.ErrorIs(t, r.end(), disk)

	r = openStreams(t, Config{Stdin: failing{disk}})
	_, err := io.ReadAll(r.files[0]) // returns once the copy has ended
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.err != nil
	}, time.Minute, time.Millisecond)
	require.ErrorIs(t, r.end(), disk)
}

// TestInputThatNobodyWants ends with the run, and is no error.
func TestInputThatNobodyWants(t *testing.T) {
	r := openStreams(t, Config{Stdin: strings.NewReader(strings.Repeat("x", 1<<20))})
	require.NoError(t, r.end())
}

// TestReaderThatBlocks does not keep the run's end waiting.
func TestReaderThatBlocks(t *testing.T) {
	read, write := io.Pipe()
	r := openStreams(t, Config{Stdin: read})
	require.NoError(t, r.end())
	require.NoError(t, write.Close())
}

func TestPrefixSuffix(t *testing.T) {
	tests := []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"abc"}, "abc"},
		{[]string{"abcd", "efgh"}, "abcdefgh"},
		{[]string{"a", "b", "c", "d", "e", "f", "g", "h"}, "abcdefgh"},
		{[]string{"abcdefghi"}, "abcd\n... omitting 1 bytes ...\nfghi"},
		{[]string{"abcde", "", "fghijkl"}, "abcd\n... omitting 4 bytes ...\nijkl"},
		{[]string{"abcd", strings.Repeat("x", 1000), "end!"}, "abcd\n... omitting 1000 bytes ...\nend!"},
	}
	for _, test := range tests {
		p := &PrefixSuffix{N: 4}
		for _, w := range test.writes {
			n, err := p.Write([]byte(w))
			require.NoError(t, err)
			require.Equal(t, len(w), n)
		}
		require.Equal(t, test.want, string(p.Bytes()))
		require.Equal(t, test.want, string(p.Bytes()), "the second time")
	}
}
