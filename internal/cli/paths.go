package cli

// The values of flags that say what is in the root.

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cellkit/sandbox"
)

// bind parses SRC[:DST]. SRC may contain colons if DST is given.
func bind(option func(src, dst string) sandbox.Option) setter {
	return func(s *settings, value string) error {
		src, dst := value, ""
		if i := strings.LastIndexByte(value, ':'); i >= 0 {
			src, dst = value[:i], value[i+1:]
			if dst == "" {
				return fmt.Errorf("%q has nothing after its colon: it must be SRC or SRC:DST", value)
			}
		}
		abs, err := absolute(src)
		if err != nil {
			return err
		}
		if dst == "" {
			dst = abs
		}
		s.add(option(abs, dst))
		return nil
	}
}

// absolute makes a path of the caller's absolute, relative to the working directory.
func absolute(path string) (string, error) {
	if path == "" {
		return "", errors.New("the path on the host is empty")
	}
	return filepath.Abs(path)
}

func tmpfs(s *settings, value string) error {
	i := strings.LastIndexByte(value, ':')
	if i < 0 {
		return fmt.Errorf("%q is not DST:SIZE, such as /scratch:64m", value)
	}
	n, err := ParseSize(value[i+1:])
	if err != nil {
		return err
	}
	s.add(sandbox.WithTmpfs(value[:i], n))
	return nil
}

func rootfs(s *settings, value string) error {
	dir, err := absolute(value)
	if err != nil {
		return err
	}
	s.layers = append(s.layers, dir)
	if len(s.layers) == 1 {
		s.add(sandbox.WithRootfs(sandbox.DirRootfs(dir)))
	} else {
		s.add(sandbox.WithRootfs(sandbox.LayersRootfs(s.layers...)))
	}
	return nil
}

// file parses DST=SRC. The copy has SRC's permission bits.
func file(s *settings, value string) error {
	dst, src, ok := strings.Cut(value, "=")
	if !ok || src == "" {
		return fmt.Errorf("%q is not DST=SRC, such as /etc/app.conf=./app.conf", value)
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// One byte more than the library takes makes it refuse the file.
	data, err := io.ReadAll(io.LimitReader(f, sandbox.MiB+1))
	if err != nil {
		return err
	}
	s.add(sandbox.WithFile(dst, data, info.Mode().Perm()))
	return nil
}
