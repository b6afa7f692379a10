package sandbox

import (
	"github.com/cellkit/sandbox/internal/hook"
	"github.com/cellkit/sandbox/internal/overlay"
)

func init() {
	hook.ReadMerged = func(layers []string, name string, limit int64) ([]byte, error) {
		m, err := overlay.Open(layers)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		return m.Read(name, limit)
	}
}
