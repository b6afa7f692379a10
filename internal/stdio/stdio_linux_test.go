package stdio

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// finishes fails the test if the end of the streams is waited for in vain.
func (r *fakeRun) finishes() {
	r.t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.end() }()
	select {
	case err := <-done:
		require.NoError(r.t, err)
	case <-time.After(time.Minute):
		r.t.Fatal("Finish waits for a writer that is not of the run")
	}
}

// slow is a Writer that others are faster than.
type slow struct{ bytes.Buffer }

func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(100 * time.Microsecond)
	return s.Buffer.Write(b)
}

// TestForeignWriter has another run hold the writing ends: all that this one has written arrives
// all the same.
func TestForeignWriter(t *testing.T) {
	for _, lull := range []time.Duration{0, time.Hour} {
		var stdout, stderr bytes.Buffer
		r := openStreams(t, Config{Stdout: &stdout, Stderr: &stderr, Lull: lull})
		duplicate(t, r.files[1])
		duplicate(t, r.files[2])
		r.write(1, "out")
		r.finishes()
		require.Equal(t, "out", stdout.String())
		require.Empty(t, stderr.String())
	}
}

func TestForeignWriterOfMuch(t *testing.T) {
	want := make([]byte, 64<<20)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	for name, to := range map[string]interface {
		io.Writer
		Bytes() []byte
	}{"slow": &slow{}, "fast": &bytes.Buffer{}} {
		t.Run(name, func(t *testing.T) {
			r := openStreams(t, Config{Stdout: struct{ io.Writer }{to}})
			duplicate(t, r.files[1])
			_, err := r.files[1].Write(want)
			require.NoError(t, err)
			r.finishes()
			require.True(t, bytes.Equal(want, to.Bytes()))
		})
	}
}

// TestBusyForeigner has others write to the pipe, and read from it, without end.
func TestBusyForeigner(t *testing.T) {
	for name, flag := range map[string]int{"writer": os.O_WRONLY, "reader": os.O_RDONLY} {
		t.Run(name, func(t *testing.T) {
			r := openStreams(t, Config{Stdout: &slow{}})
			held := duplicate(t, r.files[1])
			foreigner, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", held.Fd()), flag, 0)
			require.NoError(t, err)
			var busy sync.WaitGroup
			busy.Go(func() {
				for b := make([]byte, 4<<10); err == nil; {
					if flag == os.O_WRONLY {
						_, err = foreigner.Write(b)
					} else {
						_, err = foreigner.Read(b)
					}
				}
			})
			if flag == os.O_RDONLY {
				r.write(1, string(make([]byte, 1<<20)))
			}
			r.finishes()
			foreigner.Close()
			busy.Wait()
		})
	}
}
