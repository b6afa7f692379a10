package sandbox

import "github.com/cellkit/sandbox/internal/hook"

func init() {
	hook.ReadMerged = func(layers []string, name string, limit int64) ([]byte, error) {
		m, err := openMerged(layers)
		if err != nil {
			return nil, err
		}
		defer m.close()
		return m.read(name, limit)
	}
}
