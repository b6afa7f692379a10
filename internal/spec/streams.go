package spec

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cellkit/sandbox/internal/fault"
)

// Streams is the open files of a run, and what their contents are copied from and to.
type Streams struct {
	Stdin          io.Reader // nil for /dev/null, as the others
	Stdout, Stderr io.Writer
	Extra          []*os.File
	Function       *FunctionFiles // nil for commands
	Lull           time.Duration  // before outputs are read: see stdio.Config
}

// FunctionFiles is what a process that serves a function has besides, as the descriptors after
// those of Extra: the connection over which it is called, and this program's own file, which is
// executed.
type FunctionFiles struct{ Conn *os.File }

var functionNames = []string{"calls of the function", "this program"}

// ExtraNames says what the descriptors from 3 on are, for Explain.
func (s *Streams) ExtraNames() (names []string) {
	for i := range s.Extra {
		names = append(names, fmt.Sprintf("extra file %d", i))
	}
	if s.Function != nil {
		names = append(names, functionNames...)
	}
	return names
}

// MaxExtraFiles keeps the descriptors of a run within one message.
const MaxExtraFiles = 100

func (s *Streams) check() (errs []error) {
	most := MaxExtraFiles
	if s.Function != nil {
		most -= len(functionNames)
	}
	if len(s.Extra) > most {
		errs = append(errs, fault.Option("WithExtraFiles", "%d files, at most %d are possible", len(s.Extra), most))
	}
	for i, f := range s.Extra {
		if f == nil {
			errs = append(errs, fault.Option("WithExtraFiles", "file %d is nil", i))
		}
	}
	for option, f := range s.standardFiles {
		if f == nil {
			errs = append(errs, fault.Option(option, "the file is nil: leave the option out for /dev/null"))
		}
	}
	return errs
}

// standardFiles yields the standard streams that are files, with their options.
func (s *Streams) standardFiles(yield func(option string, f *os.File) bool) {
	for _, std := range []struct {
		option string
		value  any
	}{{"WithStdin", s.Stdin}, {"WithStdout", s.Stdout}, {"WithStderr", s.Stderr}} {
		if f, ok := std.value.(*os.File); ok && !yield(std.option, f) {
			return
		}
	}
}

// Files yields the files that the run is to have as they are, with their options.
func (s *Streams) Files(yield func(option string, f *os.File) bool) {
	for option, f := range s.standardFiles {
		if !yield(option, f) {
			return
		}
	}
	for _, f := range s.Extra {
		if !yield("WithExtraFiles", f) {
			return
		}
	}
}
