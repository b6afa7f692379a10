package queue

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"sync"
)

var buildPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// BuildID returns the build of this program: the SHA-256 of its file, in hex. Only workers of the
// same build run its calls of functions. Reproducible builds (go build -trimpath) of the same
// source are the same build.
func BuildID() (string, error) { return buildID() }

var buildID = sync.OnceValues(func() (string, error) {
	file := "/proc/self/exe" // the file that was executed, also if it has been replaced since
	if runtime.GOOS != "linux" {
		var err error
		if file, err = os.Executable(); err != nil {
			return "", fmt.Errorf("which build this is: %w", err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("which build this is: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("which build this is: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
})
