package cell

import (
	"os"
	"path/filepath"
	"sync"

	"github.com/cellkit/sandbox/internal/forkserver"
	"github.com/cellkit/sandbox/internal/program"
)

// own is this program's own file, opened when it is first asked for, for runs to execute.
var own struct {
	mu sync.Mutex
	*binary
}

// OwnFile opens this program's own file for runs to execute. Nobody can write to the file it
// returns.
func OwnFile() (*os.File, error) {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.binary == nil {
		b, err := ownBinary()
		if err != nil {
			return nil, err
		}
		own.binary = b
	}
	return forkserver.Dup(own.exe)
}

// CloseOwn closes what OwnFile keeps open.
func CloseOwn() {
	own.mu.Lock()
	defer own.mu.Unlock()
	if own.binary != nil {
		own.close()
		own.binary = nil
	}
}

// OwnLibraries maps the path that each of this program's shared libraries must have in a run to its
// file on the host. It is empty if the program is static. The run needs program.LibraryDir as its
// library search path.
func OwnLibraries() (map[string]string, error) {
	exe, err := os.Open(ownPath)
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	loader, err := interpreter(exe)
	if err != nil || loader == "" {
		return nil, err
	}
	files := map[string]string{loader: loader}
	libs, err := mappedLibraries()
	for _, l := range libs {
		if at := filepath.Join(program.LibraryDir, neededAs(l)); neededAs(l) != filepath.Base(loader) {
			files[at] = l
		}
	}
	return files, err
}
