package service

import (
	"context"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// volume is a file system of each instance.
type volume struct {
	dst    string
	create create
}

// create makes it for an instance, before the context ends.
type create func(context.Context, *Instance) (*sandbox.Scratch, error)

func withVolume(dst string, create create) Option {
	return func(c *config) { c.volumes = append(c.volumes[:len(c.volumes):len(c.volumes)], volume{dst, create}) }
}

// Volume gives each instance, and each replica, an empty file system in memory at the directory
// dst, with up to the given number of bytes. It stays through restarts, and is gone with the
// instance. It needs what sandbox.NewScratch and sandbox.WithScratch need. Several calls add up.
// For data that outlives the instance, the sandbox has sandbox.WithBind.
func Volume(dst string, bytes int64) Option {
	return withVolume(dst, func(context.Context, *Instance) (*sandbox.Scratch, error) { return sandbox.NewScratch(bytes) })
}

// DiskVolume is Volume on disk, in a file without a name in the directory dir of the host: for what
// is too large for memory. It needs root, and what else sandbox.NewDiskScratch needs; an ordinary
// user has sandbox.WithBind.
func DiskVolume(dst, dir string, bytes int64) Option {
	return withVolume(dst, func(context.Context, *Instance) (*sandbox.Scratch, error) {
		return sandbox.NewDiskScratch(dir, bytes)
	})
}

// From gives each instance a copy of the snapshot, in memory and as large at most, at the directory
// where it was made. It stays through restarts, and is gone with the instance. Several calls add
// up.
func From(s *Snapshot) Option {
	if s == nil {
		return withVolume("", nil)
	}
	return withVolume(s.dst, s.copy)
}

// checkVolumes returns what is wrong with them; the rest is found when they are made.
func (c *config) checkVolumes() (errs []error) {
	for _, v := range c.volumes {
		if v.create == nil {
			errs = append(errs, fault.Option("service.From", "the snapshot is nil: make one by NewSnapshot"))
		}
	}
	return errs
}
