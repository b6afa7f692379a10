package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/spec"
)

// check is a list of probes. Each that comes after the cell tries the thing
// itself, in a run where it takes one.
func check(ctx context.Context) *Report {
	r := &Report{}
	r.add(kernelFeature())
	options := spec.Defaults()
	c, err := findCell(&options)
	r.add(userNamespaceFeature(err), cellFeature(c, err), hostIDsFeature(ctx))
	if err != nil {
		return r
	}
	probe := New(WithCommand("true"))
	_, err = probe.Run(ctx)
	r.add(Feature{Name: "runs", Required: true, Err: err, Detail: "all namespaces, seccomp and no capabilities", Remedy: hintOf(err)})
	r.add(programsFeature())
	r.add(protections(ctx)...)
	r.add(idsFeature(c))
	r.add(cgroupFeatures(c)...)
	r.add(idmapFeature(c))
	_, err = probe.With(WithWritableRoot(MiB)).Run(ctx)
	r.add(Feature{Name: "WithWritableRoot", Err: err, Detail: writableDetail(c), Remedy: "Linux 5.11 or later with overlayfs (modprobe overlay)"})
	err = tryScratch(ctx, probe)
	r.add(Feature{Name: "WithScratch", Err: err, Detail: "writable", Remedy: hintOf(err)})
	_, err = probe.With(WithTimeOffset(time.Hour)).Run(ctx)
	r.add(Feature{Name: "WithTimeOffset", Err: err, Detail: "the monotonic and the boot clock", Remedy: hintOf(err)})
	_, err = probe.With(WithNetwork(NetworkHost)).Run(ctx)
	r.add(Feature{Name: "WithNetwork(NetworkHost)", Err: err, Detail: "in a cell of its own", Remedy: hintOf(err)})
	return r
}

func tryScratch(ctx context.Context, probe *Sandbox) error {
	s, err := NewScratch(MiB)
	if err != nil {
		return err
	}
	_, err = probe.With(WithScratch("/tmp", s)).Run(ctx)
	return errors.Join(err, s.Close())
}

func (r *Report) add(f ...Feature) { r.Features = append(r.Features, f...) }

func hintOf(err error) string {
	var setup *SetupError
	if errors.As(err, &setup) {
		return setup.Hint
	}
	return ""
}

func kernelFeature() Feature {
	m := thisMachine()
	f := Feature{Name: "kernel", Required: true, Detail: fmt.Sprintf("Linux %d.%d", m.Kernel[0], m.Kernel[1])}
	if !m.hasSetAttr() {
		f.Detail += ": HostRootfs is without what is mounted below its directories, binds can't have any or map owners (Linux 5.12)"
	}
	if !m.AtLeast(5, 10) {
		f.Err = fmt.Errorf("kernel %d.%d is older than 5.10", m.Kernel[0], m.Kernel[1])
		f.Remedy = "a newer kernel"
	}
	return f
}

// programsFeature tells what HostRootfs shows of /etc and /var.
func programsFeature() Feature {
	files := thisMachine().hostFilesNow()
	whose := files.Manager + "'s packages"
	if files.Manager == "" {
		whose = "a list of programs, as no package manager's database can be read"
	}
	f := Feature{Name: "configuration of the host's programs", Detail: fmt.Sprintf("%d files of %s", files.Count(), whose)}
	if len(files.Dirs) > 0 {
		f.Detail += ", and " + strings.Join(files.Dirs, ", ")
	}
	if len(files.Left) > 0 {
		names := slices.Sorted(maps.Keys(files.Left))
		f.Detail += fmt.Sprintf("; left out: %d, such as %s (%s)", len(names), names[0], files.Left[names[0]])
	}
	return f
}

// userNamespaceFeature knows of the switches; the cell shows whether it works.
func userNamespaceFeature(cellErr error) Feature {
	f := Feature{Name: "user namespaces", Detail: "every run has one of its own"}
	if f.Remedy, _, f.Err = noUserNamespaces("/proc/sys", os.Geteuid() == 0); cellErr == nil {
		f.Err, f.Remedy = nil, ""
	} else if f.Err == nil {
		f.Detail = "nothing switches them off"
	}
	return f
}

// hostIDsFeature makes a run, unless this process may not.
func hostIDsFeature(ctx context.Context) Feature {
	f := Feature{Name: "WithoutUserNamespace", Detail: "one wall less, for machines without user namespaces"}
	_, f.Err = New(WithCommand("true"), WithoutUserNamespace()).Run(ctx)
	f.Remedy = hintOf(f.Err)
	return f
}

func cellFeature(c *cell.Cell, err error) Feature {
	f := Feature{Name: "cell", Required: true, Err: err, Remedy: hintOf(err)}
	if err == nil {
		f.Detail = "as root"
		if c.Rootless() {
			f.Detail = "as an ordinary user"
			if os.Geteuid() == 0 {
				f.Detail = "as root without CAP_SYS_ADMIN over the mounts here, so like an ordinary user"
			}
		}
	}
	return f
}

func idsFeature(c *cell.Cell) Feature {
	f := Feature{Name: "user ids of its own for every run", Detail: fmt.Sprintf("for %d live runs on this machine", c.Blocks())}
	if !c.SingleID() {
		return f
	}
	f.Err = errors.New("all runs have the host user id of this process")
	f.Remedy = fmt.Sprintf("install newuidmap and newgidmap (package uidmap) and add a line like %d:100000:65536 to /etc/subuid and /etc/subgid", os.Geteuid())
	if os.Geteuid() == 0 {
		f.Remedy = "give this container a range of user ids"
	}
	return f
}

// cgroupFeatures asks for each limit separately.
func cgroupFeatures(c *cell.Cell) []Feature {
	t := c.Tree
	list := []Feature{{Name: "cgroups", Err: c.LimitsErr}}
	if c.Limits != nil {
		list[0].Detail = t.Version() + ", runs below " + t.Place()
	}
	add := func(name, detail string, missing func() error) {
		f := Feature{Name: name, Err: errors.New("takes cgroups")}
		if c.Limits != nil {
			f.Err = missing()
		}
		if f.Err == nil {
			f.Detail = detail
		}
		list = append(list, f)
	}
	for _, l := range []struct {
		name, detail string
		spec         limits.Spec
	}{
		{"WithMemory", "", limits.Spec{Memory: GiB}},
		{"WithSwap", "", limits.Spec{Memory: GiB, Swap: MiB}},
		{"WithCPUs", "", limits.Spec{CPUs: 1}},
		{"WithCPUWeight", "", limits.Spec{CPUWeight: 50}},
		{"WithCPUSet", "", limits.Spec{CPUSet: "0"}},
		{"WithPIDs", fmt.Sprintf("%d by default", spec.DefaultPIDs), limits.Spec{PIDs: spec.DefaultPIDs}},
		{"WithIO", "", limits.Spec{IO: []limits.IO{{}}}},
	} {
		add(l.name, l.detail, func() error { return t.Missing(l.spec) })
	}
	add("WithCPUTime", "", func() error { return t.MissingCPUTime() })
	add("Pause and Resume", "", func() error { return t.MissingFreeze() })
	return list
}

// writableDetail says whether a run may change the host's own files in its copy.
func writableDetail(c *cell.Cell) string {
	if c.Rootless() || !thisMachine().AtLeast(5, 19) || tryIDMap(c, "/usr") != nil {
		return "new files only: what belongs to the host's root stays read-only"
	}
	return "all of it"
}

// tryIDMap makes, and drops, an idmapped mount of a directory.
func tryIDMap(c *cell.Cell, dir string) error {
	b, err := c.Take(1000, 1000, false)
	if err != nil {
		return err
	}
	defer b.Give()
	tree, err := c.Open(cell.Tree{Path: dir, Writable: true, Owner: b})
	if err != nil {
		return err
	}
	return tree.Close()
}

// idmapFeature tries an idmapped mount where temporary files go.
func idmapFeature(c *cell.Cell) Feature {
	dir := os.TempDir()
	f := Feature{Name: "WithBind with owners mapped", Detail: "for " + dir}
	if c.Rootless() {
		f.Detail = "the run's user is this process's user"
		return f
	}
	f.Err, f.Remedy = tryIDMap(c, dir), noIDMapHint(tree{})
	return f
}
