package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// addWall has the black-box tests import the wall that makes their cells, if it is a module of this
// repository. This module's go.mod must not require that, so no file of it may import that: the go
// command sees one that is not there.
func (s *stage) addWall(name string) error {
	if _, err := os.Stat(filepath.Join(s.root, name, "go.mod")); name == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	file := s.path("wall.go")
	replace := map[string]map[string]string{"Replace": {filepath.Join(s.root, "internal/testkit/runs/wall.go"): file}}
	overlay, err := json.Marshal(replace)
	if err != nil {
		return err
	}
	s.overlay = s.path("overlay.json")
	source := fmt.Sprintf("package runs\n\nimport _ %q\n", "github.com/cellkit/sandbox/"+name)
	return errors.Join(os.WriteFile(file, []byte(source), 0o644), os.WriteFile(s.overlay, overlay, 0o644))
}
