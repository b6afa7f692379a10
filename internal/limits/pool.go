//go:build linux

package limits

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Pool makes <path>/<name>, if it does not exist yet. Its limits hold for all runs together that
// name it in their Spec.
func (c *Cell) Pool(name string, s Spec) error {
	c.mu.Lock()
	made := c.pools[name]
	c.mu.Unlock()
	if made {
		return nil
	}
	// Another process may be doing the same. The second one finds the directories with the same
	// limits.
	if err := c.makePool(name, s); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pools[name] = true
	return nil
}

func (c *Cell) makePool(name string, s Spec) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("cgroup name %w", err)
	}
	if err := s.check(); err != nil {
		return err
	}
	p := path.Join(c.path, name)
	for _, dir := range c.poolDirs(name) {
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("cgroup %s: mkdir: %w", dir, err)
		}
	}
	var err error
	if c.tree.v2 == "" {
		c.fillCPUSet(p)
		err = c.limitV1(p, s)
	} else {
		c.enableAll(p)
		r := s.resourcesV2(c.swap)
		if r.Memory != nil { // one run too many must not end all of them
			r.Memory.OOMGroup = nil
		}
		err = c.updateV2(p, r)
	}
	if err != nil {
		err = fmt.Errorf("cgroup %s: %w", p, err)
	}
	return err
}

func (c *Cell) poolDirs(name string) []string {
	p := path.Join(c.path, name)
	if c.tree.v2 != "" {
		return []string{path.Join(c.tree.v2, p)}
	}
	return c.tree.dirs(p, used...)
}

// DeletePool removes a pool whose runs have ended. It kills what is left of them.
func (c *Cell) DeletePool(name string) error {
	c.mu.Lock()
	delete(c.pools, name)
	for key := range c.enabled {
		if prefix := path.Join(c.path, name) + " "; len(key) > len(prefix) && key[:len(prefix)] == prefix {
			delete(c.enabled, key)
		}
	}
	c.mu.Unlock()
	return removeTree(mountPoints(c.tree.all), path.Join(c.path, name))
}
