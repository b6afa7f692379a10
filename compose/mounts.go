package compose

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// mounted is a volume at its place in a service.
type mounted struct {
	name     string // "" for one of the service's own
	dst      string
	readOnly bool
	nocopy   bool // what the image has there is not copied
}

// mounts sets what is mounted in the service's root.
func (b *builder) mounts() {
	if b.s.ReadOnly {
		b.add(sandbox.WithWritableRoot(0))
	}
	if b.s.ShmSize > 0 {
		b.add(sandbox.WithTmpfs("/dev/shm", int64(b.s.ShmSize)))
	}
	for i, v := range b.s.Volumes {
		field := "volumes." + strconv.Itoa(i)
		if !path.IsAbs(v.Target) {
			b.wrong(field, "%q is no absolute path: name one; a single letter before a colon is taken for a drive: choose a longer name for the volume", v.Target)
		}
		switch v.Type {
		case types.VolumeTypeBind:
			if v.Bind != nil && bool(v.Bind.CreateHostPath) {
				b.p.made = append(b.p.made, v.Source)
			}
			if v.ReadOnly {
				b.add(sandbox.WithReadOnlyBind(v.Source, v.Target))
			} else {
				b.add(sandbox.WithBind(v.Source, v.Target))
				b.p.binds = true
			}
			if v.Bind != nil && (v.Bind.Propagation != "" && v.Bind.Propagation != "rprivate" || v.Bind.Recursive != "") {
				b.wrong(field+".bind", "what is mounted later on this machine is not seen: leave propagation and recursive out")
			}
		case types.VolumeTypeVolume:
			if v.Volume != nil && v.Volume.Subpath != "" {
				b.wrong(field+".volume", "a volume is mounted as a whole: leave subpath out")
			}
			if v.Source == "" && v.ReadOnly {
				b.wrong(field, "a volume of the service's own that nobody writes to is of no use: leave read_only out")
			}
			b.p.volumes = append(b.p.volumes, mounted{v.Source, v.Target, v.ReadOnly, v.Volume != nil && v.Volume.NoCopy})
		case types.VolumeTypeTmpfs:
			var size int64
			if v.Tmpfs != nil {
				size = int64(v.Tmpfs.Size)
			}
			b.add(sandbox.WithTmpfs(v.Target, size))
		default:
			b.wrong(field, "%q is none of bind, volume and tmpfs", v.Type)
		}
	}
	for i, t := range b.s.Tmpfs {
		dst, opts, _ := strings.Cut(t, ":")
		size, err := tmpfsSize(opts)
		if err != nil {
			b.wrong("tmpfs."+strconv.Itoa(i), "%w", err)
		}
		b.add(sandbox.WithTmpfs(dst, size))
	}
}

// tmpfsSize parses the options of a tmpfs. It belongs to the service's user, so that its mode does
// not matter.
func tmpfsSize(opts string) (size int64, err error) {
	for o := range strings.SplitSeq(opts, ",") {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "", "rw", "nosuid", "nodev", "mode", "uid", "gid":
		case "size":
			if size, err = units.RAMInBytes(value); err != nil || size <= 0 {
				return 0, fmt.Errorf("%q is no size", value)
			}
		default:
			return 0, fmt.Errorf("%q: a tmpfs has size alone: leave it out", o)
		}
	}
	return size, nil
}

// files puts configs and secrets into the service's root.
func (b *builder) files() {
	for i, c := range b.s.Configs {
		of := types.FileObjectConfig(b.project.Configs[c.Source])
		b.file("configs", i, types.FileReferenceConfig(c), of, path.Join("/", c.Source), "/")
	}
	for i, s := range b.s.Secrets {
		of := types.FileObjectConfig(b.project.Secrets[s.Source])
		b.file("secrets", i, types.FileReferenceConfig(s), of, path.Join("/run/secrets", s.Source), "/run/secrets")
	}
}

// file puts one into the service's root: at dst, or where it says, below dir.
func (b *builder) file(kind string, i int, r types.FileReferenceConfig, of types.FileObjectConfig, dst, dir string) {
	var content []byte
	var err error
	switch {
	case of.File != "":
		if content, err = b.read(of.File, readFile); err != nil {
			b.loading.wrong([]string{kind, r.Source, "file"}, "%w", err)
			return
		}
	case of.Environment != "":
		value, given := b.env[of.Environment]
		if vars, ok := of.Extensions[variablesField].(map[string]any); ok {
			if v, ok := vars[of.Environment].(string); ok { // where it is included
				value, given = v, true
			}
		}
		if !given {
			b.loading.wrong([]string{kind, r.Source, "environment"}, "%s is not set", of.Environment)
			return
		}
		content = []byte(value)
	default:
		content = []byte(of.Content)
	}
	if err = b.budget.take(len(content)); err != nil {
		b.loading.wrong([]string{kind, r.Source}, "%w", err)
		return
	}
	mode := fs.FileMode(0o444)
	if r.Mode != nil {
		mode = fs.FileMode(*r.Mode)
	}
	field := kind + "." + strconv.Itoa(i)
	if mode&^0o777 != 0 {
		b.wrong(field+".mode", "%#o: must be from 0 to 0777", uint32(mode))
	}
	if r.Target != "" {
		if dst = r.Target; !path.IsAbs(dst) {
			dst = path.Join(dir, dst)
		}
	}
	b.add(sandbox.WithFile(dst, content, mode&0o777))
}

// port is one that is published.
type port struct {
	host     string // address and port, port 0 for any
	target   int
	protocol string
}

// network sets what reaches the service, and what it reaches.
func (b *builder) network() {
	switch b.s.NetworkMode {
	case "", "bridge":
	case "none":
		b.p.alone = true
	default:
		b.wrong("network_mode", "%q: a service is on private networks: leave it out, and list what it reaches by Allow (-allow), and what reaches it by ports", b.s.NetworkMode)
	}
	for name, n := range b.s.Networks {
		b.p.networks = append(b.p.networks, name)
		if n != nil {
			for i, alias := range n.Aliases {
				b.alias("networks."+name+".aliases."+strconv.Itoa(i), alias)
			}
		}
	}
	if len(b.p.networks) == 0 {
		b.p.networks = []string{"default"}
	}
	slices.Sort(b.p.networks)
	if b.p.alone && len(b.s.Ports) > 0 {
		b.wrong("ports", "a service without a network has none: leave it out, or network_mode")
	}
	for i, p := range b.s.Ports {
		field := "ports"
		if len(b.raw("ports")) == len(b.s.Ports) { // no range among them
			field += "." + strconv.Itoa(i)
		}
		if p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "" {
			b.wrong(field, "%q: tcp and udp can be published", p.Protocol)
		}
		published, err := strconv.ParseUint("0"+p.Published, 10, 16)
		if err != nil {
			b.wrong(field, "%q is no port: name one, or leave it out for any", p.Published)
		}
		host := p.HostIP
		if host == "" {
			host = "127.0.0.1"
		}
		to := port{net.JoinHostPort(host, strconv.FormatUint(published, 10)), int(p.Target), "tcp"}
		if p.Protocol == "udp" {
			to.protocol = "udp"
		}
		if b.p.scale > 1 && to.protocol == "udp" && published != 0 {
			b.wrong(field, "%s/udp leads to one run alone, and the service has %d: leave the port out for any", to.host, b.p.scale)
		}
		b.p.ports = append(b.p.ports, to)
		b.add(sandbox.WithPublish(to.host+"/"+to.protocol, to.target))
	}
}

// hosts adds names to those that the service's run has in /etc/hosts: its own among them only if it
// is on no network, as others reach it at another address.
func (b *builder) hosts() {
	if len(b.s.ExtraHosts) == 0 {
		return
	}
	var content strings.Builder
	content.WriteString("127.0.0.1 localhost\n")
	if b.p.alone {
		content.WriteString("127.0.0.1 " + cmp.Or(b.s.Hostname, b.s.Name) + "\n")
	}
	content.WriteString("::1 localhost\n")
	for _, name := range slices.Sorted(maps.Keys(b.s.ExtraHosts)) {
		for _, to := range b.s.ExtraHosts[name] {
			switch address, err := netip.ParseAddr(to); {
			case to == "host-gateway":
				b.wrong("extra_hosts", "%s: nothing leads to this machine: leave it out, and list what the service reaches by Allow (-allow)", to)
			case err != nil || address.Zone() != "":
				b.wrong("extra_hosts", "%q is no address of %s", to, name)
			case !spec.IsName(strings.ToLower(name)):
				b.wrong("extra_hosts", "%q is no name, of a-z, 0-9, -, _ and dots", name)
			default:
				content.WriteString(address.String() + " " + name + "\n")
			}
		}
	}
	b.add(sandbox.WithFile("/etc/hosts", []byte(content.String()), 0o644))
}

// alias gives the service a further name.
func (b *builder) alias(field, name string) {
	if name = strings.ToLower(name); !spec.IsName(name) {
		b.wrong(field, "%q is no name by which others could find the service, of a-z, 0-9, -, _ and dots: leave it out", name)
	}
	if name != b.s.Name && !slices.Contains(b.p.aliases, name) {
		b.p.aliases = append(b.p.aliases, name)
	}
}

// raw returns a list of the service as the last file with it has it.
func (b *builder) raw(field string) (list []any) {
	for _, f := range b.loading.files {
		if l, ok := f.entry("services", b.s.Name)[field].([]any); ok {
			list = l
		}
	}
	return list
}
