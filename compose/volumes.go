package compose

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/service"
)

// mountVolumes returns the options that mount a service's named volumes, and those of the service
// that make its own.
func (r *Running) mountVolumes(p *plan) (named []sandbox.Option, own []service.Option, err error) {
	for _, m := range p.volumes {
		if m.name == "" {
			own = append(own, r.ownVolume(m))
			continue
		}
		mount, err := r.volume(m)
		if err != nil {
			return nil, nil, fmt.Errorf("volume at %s: %w", m.dst, err)
		}
		named = append(named, mount)
	}
	return named, own, nil
}

// volume returns the option that mounts a volume. It is made for the first service that has it.
func (r *Running) volume(m mounted) (sandbox.Option, error) {
	v := r.project.conf.volumes
	if v.inDir() {
		dir := r.volumeDir(m)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if m.readOnly {
			return sandbox.WithReadOnlyBind(dir, m.dst), nil
		}
		return sandbox.WithBind(dir, m.dst), nil
	}
	s := r.scratch[m.name]
	if s == nil {
		var err error
		if v.onDisk {
			s, err = sandbox.NewDiskScratch(v.dir, v.bytes)
		} else {
			s, err = sandbox.NewScratch(v.bytes)
		}
		if err != nil {
			return nil, err
		}
		r.scratch[m.name] = s
	}
	if m.readOnly {
		return sandbox.WithReadOnlyScratch(m.dst, s), nil
	}
	return sandbox.WithScratch(m.dst, s), nil
}

// ownVolume returns the option that makes a volume of each replica's own.
func (r *Running) ownVolume(m mounted) service.Option {
	v := r.project.conf.volumes
	var opts []service.VolumeOption
	if m.nocopy {
		opts = append(opts, service.NoCopy())
	}
	if v.onDisk {
		return service.DiskVolume(m.dst, v.dir, v.bytes, opts...)
	}
	return service.Volume(m.dst, v.bytes, opts...)
}

// fillVolumes copies what the service's image has at the places of its named volumes into those
// that are empty.
func (r *Running) fillVolumes(p *plan, box *sandbox.Sandbox) error {
	for _, m := range p.volumes {
		if m.name == "" || m.nocopy {
			continue
		}
		if err := r.fill(m, box); err != nil {
			return fmt.Errorf("volume %s: %w", m.name, err)
		}
	}
	return nil
}

// fill copies what the sandbox's image has at the place of a volume into it, unless the volume has
// files. It must be called before anything of the project runs.
func (r *Running) fill(m mounted, box *sandbox.Sandbox) error {
	if s := r.scratch[m.name]; s != nil {
		err := s.Fill(r.over, box, m.dst)
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%w: make volumes larger (VolumeMemory, VolumeDisk), or say nocopy of it", err)
		}
		return err
	}
	if err := fillDir(r.over, box, m.dst, r.volumeDir(m)); err != nil {
		return fmt.Errorf("%w (nocopy leaves the volume as it is)", err)
	}
	return nil
}

// volumeDir returns the directory of a volume that stays: Load has refused names that lead
// elsewhere.
func (r *Running) volumeDir(m mounted) string {
	return filepath.Join(r.project.conf.volumes.dir, m.name)
}

// writesHere reports whether a service can write to a directory of this machine. Services can pass
// each other its files, as descriptors, so that then none may give files set-uid bits.
func (p *Project) writesHere() bool {
	return slices.ContainsFunc(p.services, func(s *plan) bool {
		return s.binds || p.conf.volumes.inDir() && slices.ContainsFunc(s.volumes, func(m mounted) bool { return m.name != "" && !m.readOnly })
	})
}
