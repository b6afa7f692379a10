//go:build linux

package compile_test

import (
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// generator makes up options: correct ones if it is tame, else any.
type generator struct {
	next func(n int) int // a choice of n
	rest *[]byte         // where wild strings come from
	tame bool
}

func (g *generator) options() (opts []sandbox.Option) {
	for range g.next(12) {
		opts = append(opts, g.option())
	}
	return opts
}

func (g *generator) pick(from ...string) string { return from[g.next(len(from))] }

// text returns one of the given strings, or, half of the time if wild, anything.
func (g *generator) text(from ...string) string {
	if g.tame || g.next(2) == 0 {
		return g.pick(from...)
	}
	n := min(g.next(16), len(*g.rest))
	s := string((*g.rest)[:n])
	*g.rest = (*g.rest)[n:]
	return s
}

func (g *generator) path() string {
	parts := []string{"/a", "/b", "/tmp", "/usr", "/etc", "/home", "/opt"}
	p := g.text(parts...)
	for range g.next(3) {
		p += g.text("/x", "/y", "/sandbox")
	}
	return p
}

func (g *generator) number() int64 {
	if g.tame {
		return int64(1+g.next(100)) * sandbox.MiB
	}
	return []int64{-1 << 63, -1, 0, 1, 4096, sandbox.MiB, sandbox.GiB, 1<<63 - 1}[g.next(8)]
}

func (g *generator) option() sandbox.Option {
	switch g.next(27) {
	case 0:
		return sandbox.WithCommand(g.text("true", "/bin/true", "./run"), g.text("a", "b c", ""))
	case 1:
		return sandbox.WithEnv(g.text("A=1", "PATH=/x:/y", "PATH=", "HOME=/"))
	case 2:
		return sandbox.WithDir(g.path())
	case 3:
		return sandbox.WithExtraFiles(slices.Repeat([]*os.File{os.Stdin}, g.next(5))...)
	case 4:
		return sandbox.WithTimeout(time.Duration(g.number()))
	case 5:
		return sandbox.WithOutputLimit(g.number())
	case 6:
		return sandbox.WithMemory(g.number())
	case 7:
		return func(c *spec.Spec) {
			sandbox.WithMemory(sandbox.MiB)(c)
			sandbox.WithSwap(g.number())(c)
		}
	case 8:
		return sandbox.WithCPUs(float64(1+g.next(100)) / 100)
	case 9:
		return sandbox.WithCPUWeight(uint64(1 + g.next(10000)))
	case 10:
		return sandbox.WithCPUSet(g.text("0", "0-3", "1,2"))
	case 11:
		return sandbox.WithPIDs(g.number())
	case 12:
		return sandbox.WithCPUTime(time.Duration(g.number()))
	case 13:
		return sandbox.WithIO(sandbox.IOLimit{Path: g.text("/", "/dev/sda"), ReadBytes: uint64(g.number())})
	case 14:
		return sandbox.WithRlimit(g.text("core", "nofile", "as"), uint64(g.next(10)), uint64(10+g.next(10)))
	case 15:
		return sandbox.WithCgroupParent(g.text("/a", "/a/b"))
	case 16:
		return []sandbox.Option{sandbox.WithHostname(g.text("a", "host.example")), sandbox.WithTimeOffset(time.Duration(g.number()))}[g.next(2)]
	case 17:
		return sandbox.WithUser(g.next(3)*1000, g.next(3)*100)
	case 18:
		return sandbox.WithNetwork([]sandbox.Network{sandbox.NetworkNone, sandbox.NetworkHost}[g.next(2)])
	case 19:
		return sandbox.WithRootfs([]sandbox.Rootfs{sandbox.HostRootfs(), sandbox.DirRootfs(g.path()), sandbox.LayersRootfs(g.path(), g.path())}[g.next(3)])
	case 20:
		return sandbox.WithBind(g.path(), g.path())
	case 21:
		return sandbox.WithReadOnlyBind(g.path(), g.path())
	case 22:
		return sandbox.WithTmpfs(g.path(), g.number())
	case 23:
		return sandbox.WithFile(g.path(), make([]byte, g.next(3)*g.next(256)), 0o644)
	case 24:
		return sandbox.WithWritableRoot(g.number())
	case 25:
		return sandbox.WithCapabilities(g.text("CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"))
	default:
		if g.next(2) == 0 {
			return []sandbox.Option{sandbox.WithoutSeccomp(), sandbox.WithSetID(), sandbox.WithRefusals(func(sandbox.Refusal) {})}[g.next(3)]
		}
		return sandbox.WithSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(g.text("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"))})
	}
}
