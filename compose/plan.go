package compose

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
	"github.com/cellkit/sandbox/internal/spec"
)

// plan is what a service becomes, except for what Up makes: images, volumes, the network.
type plan struct {
	name     string
	image    string // for image.Open
	platform string
	user     string // "" for the image's
	hostname string
	command  func(*image.Image) sandbox.Option
	opts     []sandbox.Option // after those of the image
	volumes  []mounted
	ports    []port
	health   *health // nil if there is to be none, also if the image has one
	// Why it must have one, if it may be the image's.
	needsHealth error
	after       []string
	signal      syscall.Signal // 0 for that of the image
	grace       time.Duration
	scale       int      // how many replicas it has
	restarts    int      // how often it is started again when it fails
	again       bool     // and when it ends
	exits       bool     // it is waited for until it has ended
	alone       bool     // it is on no network
	networks    []string // that it is on
	aliases     []string // further names there
	made        []string // directories that are made if they are missing
	binds       bool     // it can write to a directory of this machine
	stdin       bool     // its standard input stays open
}

// builder makes a plan.
type builder struct {
	*loading
	s types.ServiceConfig
	p *plan
}

// plan makes the plan of a service.
func (l *loading) plan(s types.ServiceConfig) *plan {
	b := &builder{l, s, &plan{name: s.Name, platform: s.Platform, user: s.User}}
	l.checkName(s.Name)
	b.image()
	b.scale()
	b.command()
	b.variables()
	b.privileges()
	b.limits()
	b.mounts()
	b.files()
	b.network()
	b.hosts()
	b.restart()
	b.end()
	b.healthcheck()
	return b.p
}

// wrong records what is wrong with a field of the service.
func (b *builder) wrong(field, format string, args ...any) {
	b.loading.wrong(append([]string{"services", b.s.Name}, strings.Split(field, ".")...), format, args...)
}

func (b *builder) add(opts ...sandbox.Option) { b.p.opts = append(b.p.opts, opts...) }

func (b *builder) image() {
	b.p.image = b.imagePath(b.s.Image)
	switch policy, _, err := b.s.GetPullPolicy(); {
	case err != nil || policy == types.PullPolicyNever || policy == types.PullPolicyBuild:
		b.wrong("pull_policy", "%q: a registry is asked each time, and layers are fetched that are not there: leave it out", b.s.PullPolicy)
	}
	if b.s.ContainerName != "" {
		b.alias("container_name", b.s.ContainerName)
	}
	if b.s.Deploy != nil && b.s.Deploy.Mode != "" && b.s.Deploy.Mode != "replicated" {
		b.wrong("deploy.mode", "%q: there is one machine: leave it out", b.s.Deploy.Mode)
	}
}

// imagePath returns what image.Open takes for an image: paths are from the file's directory on.
func (l *loading) imagePath(image string) string {
	if strings.HasPrefix(image, "./") || strings.HasPrefix(image, "../") {
		return filepath.Join(l.dir, image)
	}
	return image
}

// maxScale is far more than one machine has room for.
const maxScale = 1000

// scale sets how many replicas the service has.
func (b *builder) scale() {
	field := "scale"
	if b.s.Scale == nil {
		field = "deploy.replicas"
	}
	if b.p.scale = b.s.GetScale(); b.p.scale < 1 || b.p.scale > maxScale {
		b.wrong(field, "%d: must be from 1 to %d: a service that is not to be started has profiles", b.p.scale, maxScale)
		b.p.scale = 1
	}
}

// command decides what is executed. As for Docker, an entrypoint of the file's is not followed by
// the image's command.
func (b *builder) command() {
	entry, args := b.s.Entrypoint, b.s.Command
	b.p.command = func(i *image.Image) sandbox.Option { return i.Command(args...) }
	if entry != nil {
		all := slices.Concat([]string(entry), []string(args))
		if len(all) == 0 {
			b.wrong("entrypoint", "it is empty: then command must say what is executed")
			return
		}
		b.p.command = func(*image.Image) sandbox.Option { return sandbox.WithCommand(all[0], all[1:]...) }
	}
	if b.s.WorkingDir != "" {
		b.add(sandbox.WithDir(b.s.WorkingDir))
	}
	b.p.hostname = cmp.Or(b.s.Hostname, b.s.Name)
	b.add(sandbox.WithHostname(b.p.hostname))
	b.p.stdin = b.s.StdinOpen || b.s.Tty // which has a shell wait, as a terminal would
	if o := b.s.Logging; o != nil && !slices.Contains([]string{"", "json-file", "local"}, o.Driver) {
		b.wrong("logging.driver", "%q: logs are kept by this process: leave it out", o.Driver)
	}
}

// variables sets the environment: that of files, and over it what the service says.
func (b *builder) variables() {
	vars := map[string]string{}
	for i, f := range b.s.EnvFiles {
		if f.Format != "" {
			b.wrong("env_file."+strconv.Itoa(i)+".format", "%q: there is one format: leave it out", f.Format)
		}
		more, err := b.loading.variables(f.Path, readFile, vars, b.env)
		if err != nil && (bool(f.Required) || !errors.Is(err, fs.ErrNotExist)) {
			b.wrong("env_file."+strconv.Itoa(i), "%w", err)
		}
		maps.Copy(vars, more)
	}
	for k, v := range b.s.Environment {
		if v != nil {
			vars[k] = *v
		} else if value, given := b.env[k]; given {
			vars[k] = value
		} else {
			delete(vars, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		if err := b.budget.take(len(k) + len(vars[k])); err != nil {
			b.wrong("environment", "%w", err)
			return
		}
		b.add(sandbox.WithEnv(k + "=" + vars[k]))
	}
}

// rootCapabilities are those that a service has whose user is root, unless cap_drop says otherwise:
// of Docker's those without which programs that begin as root don't get far: that give their data
// away, become another user, and shut themselves in (sshd, vsftpd, dbus-daemon).
var rootCapabilities = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}

// privileges sets capabilities and groups.
func (b *builder) privileges() {
	named := func(field string, names []string) (caps []string) {
		for i, name := range names {
			name = strings.ToUpper(name)
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if name == "CAP_ALL" && field == "cap_add" {
				b.wrong(field+"."+strconv.Itoa(i), "list those that it needs")
			}
			caps = append(caps, name)
		}
		return caps
	}
	added, dropped := named("cap_add", b.s.CapAdd), named("cap_drop", b.s.CapDrop)
	b.add(func(c *spec.Spec) {
		caps := added
		for _, name := range rootCapabilities {
			if c.Namespaces.UID == 0 && !slices.Contains(dropped, name) && !slices.Contains(dropped, "CAP_ALL") && !slices.Contains(caps, name) {
				caps = append(slices.Clip(caps), name)
			}
		}
		sandbox.WithCapabilities(caps...).Apply(c)
	})
	for i, o := range b.s.SecurityOpt {
		if o = strings.ReplaceAll(o, "=", ":"); o != "no-new-privileges" && o != "no-new-privileges:true" {
			b.wrong("security_opt."+strconv.Itoa(i), "%q: every run has no-new-privileges, the default filter and nothing else: leave it out", o)
		}
	}
	var groups []int
	for i, g := range b.s.GroupAdd {
		gid, err := strconv.Atoi(g)
		if err != nil {
			b.wrong("group_add."+strconv.Itoa(i), "%q is no number: use the group's", g)
		}
		groups = append(groups, gid)
	}
	if groups != nil {
		b.add(sandbox.WithGroups(groups...))
	}
}

// limits sets those of the cgroup and of each process.
func (b *builder) limits() {
	memory, cpus, pids := int64(b.s.MemLimit), float64(b.s.CPUS), b.s.PidsLimit
	if d := b.s.Deploy; d != nil && d.Resources.Limits != nil {
		limits := d.Resources.Limits
		memory, cpus, pids = max(memory, int64(limits.MemoryBytes)), max(cpus, float64(limits.NanoCPUs)), max(pids, limits.Pids)
	}
	if pids < 0 {
		b.wrong("pids_limit", "%d: there must be a limit: leave it out for 512", pids)
	}
	for _, o := range []struct {
		given bool
		opt   sandbox.Option
	}{{memory != 0, sandbox.WithMemory(memory)}, {cpus != 0, sandbox.WithCPUs(cpus)}, {pids != 0, sandbox.WithPIDs(pids)}, {b.s.CPUSet != "", sandbox.WithCPUSet(b.s.CPUSet)}} {
		if o.given {
			b.add(o.opt)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.s.Ulimits)) {
		u := b.s.Ulimits[name]
		soft, hard := u.Soft, u.Hard
		if u.Single != 0 {
			soft, hard = u.Single, u.Single
		}
		b.add(sandbox.WithRlimit(name, rlimit(soft), rlimit(hard)))
	}
}

func rlimit(n int) uint64 {
	if n < 0 {
		return sandbox.RlimitInfinity
	}
	return uint64(n)
}

// restart sets how often the service is started again.
func (b *builder) restart() {
	field, policy, n := "restart", b.s.Restart, math.MaxInt
	if b.s.Deploy != nil && b.s.Deploy.RestartPolicy != nil {
		field = "deploy.restart_policy.condition"
		r := b.s.Deploy.RestartPolicy
		if r.MaxAttempts != nil {
			n = int(min(*r.MaxAttempts, math.MaxInt32))
		}
		switch policy = r.Condition; policy {
		case "none":
			policy = "no"
		case "any", "":
			policy = "always"
		}
	}
	if times, ok := strings.CutPrefix(policy, "on-failure:"); ok {
		count, err := strconv.Atoi(times)
		if err != nil || count < 0 {
			b.wrong(field, "%q is no number of restarts", times)
		}
		policy, n = "on-failure", count
	}
	switch policy {
	case "", "no":
	case "on-failure":
		b.p.restarts = n
	case "always", "unless-stopped":
		b.p.restarts, b.p.again = n, true
	default:
		b.wrong(field, "%q is none of no, on-failure, always and unless-stopped", policy)
	}
}

// end sets how the service is ended.
func (b *builder) end() {
	if b.p.grace = 10 * time.Second; b.s.StopSignal != "" {
		if b.p.signal = spec.SignalOf(b.s.StopSignal); b.p.signal == 0 {
			b.wrong("stop_signal", "%q is none of %s, nor a number", b.s.StopSignal, spec.SignalNames)
		}
	}
	if g := b.s.StopGracePeriod; g != nil {
		if b.p.grace = time.Duration(*g); b.p.grace <= 0 {
			b.p.signal, b.p.grace = syscall.SIGKILL, time.Second
		}
	}
}

// listens returns the TCP ports that the service listens on, as its image and its file say.
func (p *plan) listens(i *image.Image) []int {
	ports := i.Ports()
	for _, to := range p.ports {
		if to.protocol == "tcp" {
			ports = append(ports, to.target)
		}
	}
	return ports
}

// stop returns the option that ends the service: by its own signal, else by that of the image, if
// that is one, else by SIGTERM.
func (p *plan) stop(image string) sandbox.Option {
	return sandbox.WithStopSignal(cmp.Or(p.signal, spec.SignalOf(image), syscall.SIGTERM), p.grace)
}
