package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// loading is a project that is being read.
type loading struct {
	conf    *config
	dir     string
	files   []*file
	env     types.Mapping
	project *types.Project
	plans   map[string]*plan
	errs    []error
}

// Load reads a Compose file, or the one that a directory has: compose.yaml, compose.yml,
// docker-compose.yaml or docker-compose.yml. It fetches and starts nothing.
//
// All that is wrong with the file's fields is reported at once, as joined *Errors. A file of more
// than 1 MiB, and such a one that it refers to, is an error.
func Load(path string, opts ...Option) (*Project, error) {
	conf := &config{volumes: volumes{bytes: 256 * sandbox.MiB}}
	for _, opt := range opts {
		if opt != nil {
			opt(conf)
		}
	}
	l := &loading{conf: conf, plans: map[string]*plan{}}
	if err := l.read(path); err != nil {
		return nil, err
	}
	if err := l.model(); err != nil {
		return nil, err
	}
	l.networks()
	for _, name := range slices.Sorted(maps.Keys(l.project.Services)) {
		l.plans[name] = l.plan(l.project.Services[name])
	}
	l.dependencies()
	if len(l.plans) == 0 && l.errs == nil {
		return nil, fmt.Errorf("%s: no service is enabled: name one, or its profile", l.files[0].path)
	}
	if l.errs != nil {
		return nil, errors.Join(l.errs...)
	}
	p := &Project{name: l.project.Name, conf: *conf}
	for _, name := range slices.Sorted(maps.Keys(l.plans)) {
		p.services = append(p.services, l.plans[name])
	}
	return p, nil
}

// names are those of Compose files, the preferred one first.
var names = []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}

// read reads the files, and the variables that they may refer to.
func (l *loading) read(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		n := slices.IndexFunc(names, func(name string) bool {
			_, err := os.Stat(filepath.Join(path, name))
			return err == nil
		})
		if n < 0 {
			return fmt.Errorf("compose: there is no %s in %s", names[0], path)
		}
		path = filepath.Join(path, names[n])
	}
	for _, name := range append([]string{path}, l.conf.files...) {
		content, err := readFile(name)
		if err != nil {
			return fmt.Errorf("compose: %w", err)
		}
		f, err := parse(name, content)
		if err != nil {
			return fmt.Errorf("compose: %w", err)
		}
		l.files = append(l.files, f)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	l.dir = filepath.Dir(abs)
	return l.environment()
}

// environment gathers the variables that files may refer to.
func (l *loading) environment() error {
	vars := l.conf.environ
	if vars == nil {
		vars = os.Environ()
	}
	l.env = types.Mapping{}
	for _, kv := range vars {
		if k, v, ok := strings.Cut(kv, "="); ok {
			l.env[k] = v
		}
	}
	vars2, err := l.variables(filepath.Join(l.dir, ".env"), l.env)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for k, v := range vars2 {
		if _, given := l.env[k]; !given {
			l.env[k] = v
		}
	}
	return err
}

// variables reads a file of them, in which they may refer to others.
func (l *loading) variables(path string, known map[string]string) (map[string]string, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, err
	}
	vars, err := dotenv.ParseWithLookup(bytes.NewReader(content), func(name string) (string, bool) {
		v, ok := known[name]
		return v, ok
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return vars, nil
}

// model has compose-go make one project of the files, after what is not supported was looked for.
func (l *loading) model() error {
	var unsupported []error
	details := types.ConfigDetails{WorkingDir: l.dir, Environment: l.env}
	for _, f := range l.files {
		w := &walk{file: f, left: maxNodes, skipped: l.ignored}
		w.node(f.root, rules, nil, nil)
		unsupported = append(unsupported, w.errs...)
		raw := maps.Clone(f.raw)
		// compose-go would write a warning about it to the standard error.
		delete(raw, "version")
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: f.path, Config: raw})
	}
	for _, err := range unsupported {
		// Nothing is read that is not going to be used.
		if e := err.(*Error); strings.HasSuffix(e.Field, ".extends.file") || e.Field == "include" {
			return errors.Join(unsupported...)
		}
	}
	project, err := loader.LoadWithContext(context.Background(), details, func(o *loader.Options) {
		o.SetProjectName(l.projectName(), true)
		o.SkipInclude, o.SkipResolveEnvironment, o.SkipResolveLabels = true, true, true
		o.Profiles, o.SelectedServices, o.PruneUnnecessaryResources = l.conf.profiles, l.conf.only, true
	})
	if err != nil {
		if unsupported != nil {
			return errors.Join(unsupported...)
		}
		return fmt.Errorf("%s: %w", l.files[0].path, err)
	}
	l.project = project
	used := l.used()
	for _, err := range unsupported {
		if path := strings.SplitN(err.(*Error).Field, ".", 3); path[0] != "services" || used[path[1]] {
			l.errs = append(l.errs, err)
		}
	}
	return nil
}

// projectName returns the name that the option, the file or the directory says.
func (l *loading) projectName() string {
	name := l.conf.name
	for _, f := range l.files {
		if given, ok := f.raw["name"].(string); ok && l.conf.name == "" {
			name = given
		}
	}
	if name == "" {
		name = filepath.Base(l.dir)
	}
	if name = loader.NormalizeProjectName(name); name == "" {
		return "project"
	}
	return name
}

// used returns the names of the services that are enabled, and of those that they extend.
func (l *loading) used() map[string]bool {
	used := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		if used[name] {
			return
		}
		used[name] = true
		for _, f := range l.files {
			services, _ := f.raw["services"].(map[string]any)
			service, _ := services[name].(map[string]any)
			switch base := service["extends"].(type) {
			case string:
				add(base)
			case map[string]any:
				of, _ := base["service"].(string)
				add(of)
			}
		}
	}
	for name := range l.project.Services {
		add(name)
	}
	return used
}

// ignored reports whether Ignore names the field.
func (l *loading) ignored(path []string) bool {
	return len(path) >= 3 && path[0] == "services" && slices.Contains(l.conf.ignored, strings.Join(path[2:], ".")) ||
		len(path) > 0 && slices.Contains(l.conf.ignored, dotted(path))
}

// wrong records what is wrong with a field, unless it is to be ignored.
func (l *loading) wrong(path []string, format string, args ...any) {
	for n := range path {
		if l.ignored(path[:n+1]) {
			return
		}
	}
	name, line := position(l.files, path)
	l.errs = append(l.errs, &Error{name, line, dotted(path), fmt.Errorf(format, args...)})
}

// networks checks the project's networks.
func (l *loading) networks() {
	for name, n := range l.project.Networks {
		if n.Driver != "" && n.Driver != "bridge" {
			l.wrong([]string{"networks", name, "driver"}, "%q: there is one kind of network here: leave it out", n.Driver)
		}
		if n.Internal && l.conf.network != nil {
			l.wrong([]string{"networks", name, "internal"}, "what Allow (-allow) lists is reached from all networks of a project: leave one of them out")
		}
	}
	for name, v := range l.project.Volumes {
		if v.Driver != "" && v.Driver != "local" {
			l.wrong([]string{"volumes", name, "driver"}, "%q: volumes have no drivers: leave it out", v.Driver)
		}
		if name == "." || name == ".." {
			l.wrong([]string{"volumes", name}, "this is no name of a volume: choose another one")
		}
	}
}

// dependencies connects the plans.
func (l *loading) dependencies() {
	for name, p := range l.plans {
		for on, d := range l.project.Services[name].DependsOn {
			other := l.plans[on]
			if other == nil {
				continue // it need not be there: compose-go has checked that
			}
			path := []string{"services", name, "depends_on", on, "condition"}
			switch d.Condition {
			case types.ServiceConditionStarted, "":
			case types.ServiceConditionHealthy:
				if other.health == nil {
					l.wrong(path, "%s has no healthcheck: add one, or use %s", on, types.ServiceConditionStarted)
				}
			case types.ServiceConditionCompletedSuccessfully:
				other.exits = true
			default:
				l.wrong(path, "%q is no condition", d.Condition)
			}
			p.after = append(p.after, on)
		}
		slices.Sort(p.after)
	}
}

// checkName reports whether a service can have its name.
func (l *loading) checkName(name string) {
	if !spec.IsLabel(name) {
		l.wrong([]string{"services", name}, "others find the service by its name, which must be 1 to 63 of a-z, 0-9 and -, the first and last no -: rename it")
	}
}
