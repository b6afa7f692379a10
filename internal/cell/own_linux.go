package cell

import (
	"os"
	"path/filepath"
	"sync"

	"github.com/cellkit/sandbox/internal/forkserver"
)

// own is this program's own file, to be executed in runs, once somebody has asked for it.
var own struct {
	mu sync.Mutex
	*binary
}

// OwnFile opens this program's own file for runs to execute. Nobody can write to what it opens.
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

// OwnLibraries is the files of the host that this program is loaded with, by where they have to be for a run to load it too; none if it is static.
// They need LibraryDir for a search path.
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
		if at := filepath.Join(LibraryDir, neededAs(l)); neededAs(l) != filepath.Base(loader) {
			files[at] = l
		}
	}
	return files, err
}

// LibraryDir is one that no file system of a run's own is mounted at.
const LibraryDir = "/lib"
