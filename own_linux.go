package sandbox

import (
	"sync"

	"github.com/cellkit/sandbox/internal/cell"
)

// ownLibraries is what this program is loaded with, by where runs have it. If it can't be told, programFile says why.
var ownLibraries = sync.OnceValue(func() map[string]string {
	files, _ := cell.OwnLibraries()
	return files
})
