package service

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/fault"
)

// volume is a file system of each instance.
type volume struct {
	dst    string
	create create
	nocopy bool // it stays empty
}

// create makes it for an instance, before the context ends.
type create func(context.Context, *Instance) (*sandbox.Scratch, error)

func withVolume(v volume, opts ...VolumeOption) Option {
	for _, opt := range opts {
		if opt != nil {
			opt(&v)
		}
	}
	return func(c *config) { c.volumes = append(c.volumes[:len(c.volumes):len(c.volumes)], v) }
}

// VolumeOption changes one thing of a volume.
type VolumeOption func(*volume)

// NoCopy has a volume begin empty, whatever the sandbox's image has at its place.
func NoCopy() VolumeOption { return func(v *volume) { v.nocopy = true } }

// Volume gives each instance, and each replica, a file system in memory at the directory dst, with
// up to the given number of bytes. It begins with what the sandbox's image has there, as
// sandbox.Scratch.Fill copies it, and empty without an image. It stays through restarts, and is
// gone with the instance. It needs what sandbox.NewScratch and sandbox.WithScratch need. Several
// calls add up. For data that outlives the instance, the sandbox has sandbox.WithBind.
func Volume(dst string, bytes int64, opts ...VolumeOption) Option {
	create := func(context.Context, *Instance) (*sandbox.Scratch, error) { return sandbox.NewScratch(bytes) }
	return withVolume(volume{dst: dst, create: create}, opts...)
}

// DiskVolume is Volume on disk, in a file without a name in the directory dir of the host: for what
// is too large for memory. It needs root, and what else sandbox.NewDiskScratch needs; an ordinary
// user has sandbox.WithBind.
func DiskVolume(dst, dir string, bytes int64, opts ...VolumeOption) Option {
	create := func(context.Context, *Instance) (*sandbox.Scratch, error) { return sandbox.NewDiskScratch(dir, bytes) }
	return withVolume(volume{dst: dst, create: create}, opts...)
}

// From gives each instance a copy of the snapshot, in memory and as large at most, at the directory
// where it was made. It stays through restarts, and is gone with the instance. Several calls add
// up.
func From(s *Snapshot) Option {
	if s == nil {
		return withVolume(volume{})
	}
	return withVolume(volume{dst: s.dst, create: s.copy, nocopy: true})
}

// makeVolumes makes those of an instance, before wait ends.
func (i *Instance) makeVolumes(wait context.Context) error {
	for _, v := range i.service.conf.volumes {
		made, err := v.create(wait, i)
		if err != nil {
			return err
		}
		i.volumes = append(i.volumes, made) // which release closes
		if v.nocopy {
			continue
		}
		if err := made.Fill(wait, i.service.s, v.dst); errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("%w: give service.Volume more bytes, or service.NoCopy", err)
		} else if err != nil {
			return err
		}
	}
	return nil
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
