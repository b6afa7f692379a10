//go:build linux

package run

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// What options name must exist on this machine. It is looked for before each start, while package
// spec checks what is wrong on every machine. What spec has refused is left out here.

// checkOpen returns errors for files that the run is to have and that can't be used, such as closed
// ones.
func checkOpen(s *spec.Streams) (errs []error) {
	for option, f := range s.Files {
		if f == nil {
			continue
		}
		if _, err := f.Stat(); err != nil {
			errs = append(errs, fault.Option(option, "the file can't be used: %w", err))
		}
	}
	return errs
}

// checkSources returns what is wrong on this machine with the sources of mounts and with the root's
// directories.
func checkSources(r *spec.Root) (errs []error) {
	for _, m := range r.Mounts {
		if !m.IsGiven() || m.Check() != nil {
			continue
		}
		if err := checkSource(m.Source); err != nil {
			errs = append(errs, fault.Option(m.Source.Option(), "the source can't be used: %w", err))
		}
	}
	if upper := scratch.UpperOf(r); upper != nil {
		if _, err := upper.Get(); err != nil {
			errs = append(errs, fault.Option("WithScratchRoot", "the source can't be used: %w", err))
		}
	}
	for _, dir := range r.Rootfs.Layers {
		if spec.CheckPath(dir) != nil {
			continue
		}
		if info, err := os.Stat(dir); err != nil {
			errs = append(errs, r.Subject().Wrong("%w", err))
		} else if !info.IsDir() {
			errs = append(errs, r.Subject().Wrong("%s is not a directory", dir))
		}
	}
	return errs
}

func checkSource(m spec.Source) (err error) {
	if bind, ok := m.(spec.Bind); ok {
		_, err = os.Stat(bind.Path)
	} else {
		_, err = scratch.SourceOf(m).Get()
	}
	return err
}

// checkOnline returns an error if the machine lacks one of the CPUs, as far as it says.
func checkOnline(l *spec.Limits) error {
	if l.CPUSet == nil {
		return nil
	}
	asked, err := spec.ParseCPUSet(*l.CPUSet)
	if err != nil {
		return nil
	}
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	online := strings.TrimSpace(string(b))
	have, parseErr := spec.ParseCPUSet(online)
	if err != nil || parseErr != nil {
		return nil
	}
	for _, cpu := range slices.Sorted(maps.Keys(asked)) {
		if !have[cpu] {
			return fault.Option("WithCPUSet", "%q: there is no CPU %d: use some of %s", *l.CPUSet, cpu, online)
		}
	}
	return nil
}

// checkDevices returns errors for paths of WithIO whose block devices can't be found.
func checkDevices(l *spec.Limits) (errs []error) {
	for _, io := range l.IO {
		if spec.CheckPath(io.Path) == nil {
			_, err := ioLimit(io)
			errs = append(errs, err)
		}
	}
	return errs
}
