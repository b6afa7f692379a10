//go:build linux

// Package probe tries what this machine can do. Each probe that comes after the cell tries the
// feature itself, in a run if it takes one.
package probe

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
	"github.com/cellkit/sandbox/internal/compile"
	"github.com/cellkit/sandbox/internal/fault"
	"github.com/cellkit/sandbox/internal/gateway"
	"github.com/cellkit/sandbox/internal/hint"
	"github.com/cellkit/sandbox/internal/limits"
	"github.com/cellkit/sandbox/internal/run"
	"github.com/cellkit/sandbox/internal/scratch"
	"github.com/cellkit/sandbox/internal/spec"
)

// Feature is sandbox.Feature, which has its documentation.
type Feature struct {
	Name     string
	Required bool
	Err      error
	Detail   string
	Remedy   string
}

// prober tries features with an engine.
type prober struct {
	ctx    context.Context
	engine *run.Engine
	wait   func(*run.Run) error
}

// All returns the features in the order in which a reader wants them. wait returns the error of a
// run, once it has ended.
func All(ctx context.Context, e *run.Engine, wait func(*run.Run) error) (list []Feature) {
	p := &prober{ctx, e, wait}
	list = append(list, kernelFeature(e.Machine()))
	options := spec.Defaults()
	c, err := e.Cell(&options)
	list = append(list, userNamespaceFeature(err), cellFeature(c, err),
		p.run("WithoutUserNamespace", "one wall less, for machines without user namespaces", func(c *spec.Spec) { c.Namespaces.HostIDs = true }))
	if err != nil {
		return list
	}
	runs := p.run("runs", "all namespaces, seccomp and no capabilities", nil)
	runs.Required = true
	list = append(list, runs, programsFeature(e.HostFiles()))
	list = append(list, p.protections()...)
	list = append(list, idsFeature(c), networkFeature(c), p.private(),
		p.privateWith("ping from private networks", "of what Ping lists", gateway.Ports{Ping: true}),
		p.privateWith("all ports on private networks", "TCP() and long ranges, by nft_tproxy", gateway.Ports{TCP: []gateway.Span{gateway.AllPorts}}))
	list = append(list, cgroupFeatures(c)...)
	list = append(list, idmapFeature(c, e.Machine()))
	writable := p.run("WithWritableRoot", writableDetail(c, e.Machine()), func(c *spec.Spec) { c.Root.SetWritable(mib) })
	writable.Remedy = "Linux 5.11 or later with overlayfs (modprobe overlay)"
	list = append(list, p.runtimes()...)
	return append(list, writable, p.scratch(),
		p.run("WithTimeOffset", "the monotonic and the boot clock", func(c *spec.Spec) { c.Namespaces.Clocks = time.Hour }),
		p.run("WithNetwork(NetworkHost)", "in a cell of its own", func(c *spec.Spec) { c.Namespaces.Network = spec.NetworkHost }))
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

// start starts the command called name, with the options as set changes them.
func (p *prober) start(name string, set func(*spec.Spec)) (*run.Run, error) {
	c := spec.Defaults()
	c.Command.Argv = []string{name}
	if set != nil {
		set(&c)
	}
	return p.engine.New(c).Start(p.ctx)
}

// run returns a feature that works if a run with changed options does.
func (p *prober) run(name, detail string, set func(*spec.Spec)) Feature {
	err := p.try(set)
	return Feature{Name: name, Err: err, Detail: detail, Remedy: hintOf(err)}
}

func (p *prober) try(set func(*spec.Spec)) error {
	r, err := p.start("true", set)
	if err != nil {
		return err
	}
	return p.wait(r)
}

func (p *prober) scratch() Feature {
	f := Feature{Name: "WithScratch", Detail: "writable"}
	s, err := scratch.New(mib)
	if err == nil {
		err = errors.Join(p.try(func(c *spec.Spec) {
			c.Root.Mounts = append(c.Root.Mounts, spec.Mount{Dst: "/tmp", Source: spec.Scratch{From: s}})
		}), s.Close())
	}
	f.Err, f.Remedy = err, hintOf(err)
	return f
}

func hintOf(err error) string {
	var setup *fault.SetupError
	if errors.As(err, &setup) {
		return setup.Hint
	}
	return ""
}

func kernelFeature(m *compile.Machine) Feature {
	f := Feature{Name: "kernel", Required: true, Detail: fmt.Sprintf("Linux %d.%d", m.Kernel[0], m.Kernel[1])}
	if !m.HasSetAttr() {
		f.Detail += ": HostRootfs is without what is mounted below its directories, binds can't have any or map owners (Linux 5.12)"
	}
	if !m.AtLeast(5, 10) {
		f.Err = fmt.Errorf("kernel %d.%d is older than 5.10", m.Kernel[0], m.Kernel[1])
		f.Remedy = "a newer kernel"
	}
	return f
}

// programsFeature returns a feature that says what HostRootfs shows of /etc and /var.
func programsFeature(files *compile.HostFiles) Feature {
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

// userNamespaceFeature looks at the switches for user namespaces; the cell shows whether these
// work.
func userNamespaceFeature(cellErr error) Feature {
	f := Feature{Name: "user namespaces", Detail: "every run has one of its own"}
	if f.Remedy, _, f.Err = hint.NoUserNamespaces(); cellErr == nil {
		f.Err, f.Remedy = nil, ""
	} else if f.Err == nil {
		f.Detail = "nothing switches them off"
	}
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
		f.Detail += ", made by " + c.Wall()
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

// networkFeature reports whether runs can take turns in network namespaces.
func networkFeature(c *cell.Cell) Feature {
	return Feature{Name: "network namespaces that are used again", Detail: "if they are as they were when they were new (docs/NETWORK.md)", Err: c.TryNetwork(),
		Remedy: "none is needed: each run gets a new one, which takes longer"}
}

// private reports whether runs can be on private networks.
func (p *prober) private() Feature {
	const name = "private networks"
	n, err := gateway.New(gateway.Config{MaxConns: 1, MaxNewConns: 1})
	if err != nil {
		return Feature{Name: name, Err: err}
	}
	defer p.engine.CloseNetwork(n)
	f := p.run(name, "what is listed by name or address, each other, published (docs/PRIVATE_NETWORKS.md)", func(c *spec.Spec) {
		c.Namespaces.Network, c.Place.Member = spec.NetworkPrivate, spec.Member{Of: n, Name: "check"}
	})
	if err := n.IPv6(); f.Err == nil && err != nil {
		f.Detail += ", by IPv4 alone: " + err.Error()
	}
	return f
}

// privateWith reports whether runs can be on a private network that allows some ports.
func (p *prober) privateWith(name, detail string, ports gateway.Ports) Feature {
	c := gateway.Config{MaxConns: 1, MaxNewConns: 1}
	c.AllowHost("check.test", ports)
	n, err := gateway.New(c)
	if err != nil {
		return Feature{Name: name, Err: err}
	}
	defer p.engine.CloseNetwork(n)
	return p.run(name, detail, func(c *spec.Spec) {
		c.Namespaces.Network, c.Place.Member = spec.NetworkPrivate, spec.Member{Of: n, Name: "check"}
	})
}

// cgroupFeatures returns a feature for each limit.
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
		{"WithMemory", "", limits.Spec{Memory: gib}},
		{"WithSwap", "", limits.Spec{Memory: gib, Swap: mib}},
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

// writableDetail returns a text about whether a run may change the host's own files in its copy.
func writableDetail(c *cell.Cell, m *compile.Machine) string {
	if c.Rootless() || !m.AtLeast(5, 19) || tryIDMap(c, "/usr") != nil {
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
func idmapFeature(c *cell.Cell, m *compile.Machine) Feature {
	dir := os.TempDir()
	f := Feature{Name: "WithBind with owners mapped", Detail: "for " + dir}
	if c.Rootless() {
		f.Detail = "the run's user is this process's user"
		return f
	}
	f.Err, f.Remedy = tryIDMap(c, dir), run.NoIDMapHint(compile.Tree{}, m)
	return f
}
