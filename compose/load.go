package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/tree"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/spec"
)

// loading is a project that is being read, or a file to which one refers, by include or extends.
type loading struct {
	conf    *config
	budget  *budget
	dir     string        // in which paths begin
	files   []*file       // one, or those that are merged, in turn
	env     types.Mapping // the variables
	project *types.Project
	plans   map[string]*plan
	errs    []error

	service             string      // that is extended, "" if all of the file counts
	chain               []reference // from the project to this file
	references          *references
	models              models   // of the files to which these refer
	unsupportedIncluded []*Error // in those that are included
}

// Load reads a Compose file, or the one that a directory has: compose.yaml, compose.yml,
// docker-compose.yaml or docker-compose.yml, with compose.override.yaml, or such a one, if a
// directory is named and no file by Override. It fetches and starts nothing.
//
// All that is wrong with the file's fields is reported at once, as joined *Errors. A file of more
// than 1 MiB, and such a one that it refers to, is an error, and so are files that have more than
// 64 MiB in all with what aliases and variables make of them. Files that include and extends name
// must be below the file's directory.
func Load(path string, opts ...Option) (*Project, error) {
	l := newLoading(opts)
	defer l.references.close()
	if err := l.readProject(path); err != nil {
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
	l.links()
	if len(l.plans) == 0 && l.errs == nil {
		return nil, fmt.Errorf("%s: no service is enabled: name one, or its profile", l.files[0].path)
	}
	if l.errs != nil {
		return nil, errors.Join(l.errs...)
	}
	p := &Project{name: l.project.Name, conf: *l.conf}
	for _, name := range slices.Sorted(maps.Keys(l.plans)) {
		p.services = append(p.services, l.plans[name])
	}
	return p, nil
}

// ProjectName returns the name that the project has if Load loads it with the same options. It does
// not look at the file's other fields: what is wrong with them, or not supported, is no error. If
// the field name has no value, as with a variable that is required and not set, that is an error.
func ProjectName(path string, opts ...Option) (string, error) {
	l := newLoading(opts)
	defer l.references.close()
	if err := l.readProject(path); err != nil {
		return "", err
	}
	return l.projectName()
}

func newLoading(opts []Option) *loading {
	conf := &config{volumes: volumes{bytes: 256 * sandbox.MiB}}
	for _, opt := range opts {
		if opt != nil {
			opt(conf)
		}
	}
	return &loading{conf: conf, budget: newBudget(), plans: map[string]*plan{}, references: &references{left: maxReferences}}
}

// names are those of Compose files, the preferred one first, and of what is merged into them if a
// directory is named alone.
var (
	names     = []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}
	overrides = []string{"compose.override.yaml", "compose.override.yml", "docker-compose.override.yaml", "docker-compose.override.yml"}
)

// firstOf returns the path of the first of the names that there is in a directory, or "".
func firstOf(dir string, names []string) string {
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return ""
}

// readProject reads the files, and the variables that they may refer to.
func (l *loading) readProject(path string) error {
	files := l.conf.files
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		dir := path
		if path = firstOf(dir, names); path == "" {
			return fmt.Errorf("compose: there is no %s in %s", names[0], dir)
		}
		if further := firstOf(dir, overrides); further != "" && l.conf.files == nil {
			files = []string{further}
		}
	}
	for _, name := range append([]string{path}, files...) {
		content, err := l.read(name, readFile)
		if err != nil {
			return fmt.Errorf("compose: %w", err)
		}
		f, err := parse(name, content, l.budget)
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
	for _, f := range l.files {
		if abs, err := filepath.Abs(f.path); err == nil {
			l.chain = append(l.chain, reference{path: abs})
		}
	}
	l.references.dir = l.dir
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
	return l.addDefaults(readFile)
}

// addDefaults adds the variables of the file .env in the directory that are not set yet.
func (l *loading) addDefaults(read func(path string) ([]byte, error)) error {
	fromFile, err := l.variables(filepath.Join(l.dir, ".env"), read, l.env)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for k, v := range fromFile {
		if _, given := l.env[k]; !given {
			l.env[k] = v
		}
	}
	return err
}

// read reads a file by a function, within the budget.
func (l *loading) read(path string, by func(path string) ([]byte, error)) ([]byte, error) {
	if err := l.budget.take(0); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	content, err := by(path)
	if err != nil {
		return nil, err
	}
	if err := l.budget.take(len(content)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return content, nil
}

// variables reads a file of variables, which may refer to known ones.
func (l *loading) variables(path string, read func(path string) ([]byte, error), known ...map[string]string) (map[string]string, error) {
	content, err := l.read(path, read)
	if err != nil {
		return nil, err
	}
	vars, err := l.budget.variables(content, known...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return vars, nil
}

// model has compose-go make one project of the files, after what is not supported was looked for.
func (l *loading) model() error {
	name, err := l.projectName()
	if err != nil {
		return err
	}
	l.env["COMPOSE_PROJECT_NAME"] = name
	unsupported, err := l.prepare()
	if err != nil {
		return err
	}
	details := l.details()
	options := []func(*loader.Options){l.options, func(o *loader.Options) {
		o.SetProjectName(name, true)
		o.Profiles, o.SelectedServices, o.PruneUnnecessaryResources = l.profiles(), l.conf.only, true
	}}
	var project *types.Project
	model, err := loader.LoadModelWithContext(context.Background(), details, options...)
	if err == nil {
		project, err = bind(model, details, options)
	}
	if err != nil {
		return l.failed(unsupported, err)
	}
	l.project = project
	used := l.used()
	for _, e := range unsupported {
		if path := strings.SplitN(e.Field, ".", 3); path[0] != "services" || used[path[1]] {
			l.errs = append(l.errs, e)
		}
	}
	return nil
}

// prepare reads what the files refer to, finds what is not supported, and makes sure that what
// compose-go does is within bounds.
func (l *loading) prepare() (unsupported []*Error, err error) {
	for _, f := range l.files {
		if _, has := f.raw["jobs"]; has {
			return nil, f.at([]string{"jobs"}, errJobs)
		}
	}
	err = l.readReferences()
	unsupported = l.unsupported()
	if err != nil {
		return nil, errors.Join(joined(unsupported), err)
	}
	return unsupported, l.checkExtended()
}

// failed returns why compose-go has failed: something that is not supported, if there is such.
func (l *loading) failed(unsupported []*Error, err error) error {
	if errs := joined(unsupported); errs != nil {
		return errs
	}
	return fmt.Errorf("%s: %w", l.files[0].path, err)
}

// details returns the files for compose-go, without the environment, which it would put into
// services, without a bound.
func (l *loading) details() types.ConfigDetails {
	details := types.ConfigDetails{WorkingDir: l.dir, Environment: types.Mapping{}}
	for _, f := range l.files {
		content := f.content
		if l.skipsInclude() {
			// Its form would be checked, though it is skipped.
			content = withoutField(content, f.root, "include")
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: f.path, Content: content})
	}
	return details
}

// options are those of compose-go that keep it within bounds.
func (l *loading) options(o *loader.Options) {
	o.ResourceLoaders = []loader.ResourceLoader{l.models}
	o.SkipInclude = l.skipsInclude()
	o.SkipResolveEnvironment, o.SkipResolveLabels = true, true
	o.Interpolate.Substitute, o.Interpolate.LookupValue = l.budget.substitute, l.lookUp
	casts := maps.Clone(o.Interpolate.TypeCastMapping)
	casts[tree.NewPath("services", tree.PathMatchAll, "ports", tree.PathMatchList)] = l.budget.portRange
	o.Interpolate.TypeCastMapping = casts
}

// unsupported returns what is not supported of the files, except what a later one takes back, or
// only what is not of the service that is extended.
func (l *loading) unsupported() (found []*Error) {
	found = slices.Clone(l.unsupportedIncluded)
	for _, f := range l.files {
		w := &walk{file: f, left: 3 * maxNodes, skipped: l.ignored} // with what is merged
		w.node(f.root, rules, nil, nil)
		for _, field := range w.replaced {
			found = slices.DeleteFunc(found, func(e *Error) bool {
				rest, inside := strings.CutPrefix(e.Field, field)
				return inside && (rest == "" || rest[0] == '.' || rest[0] == '[')
			})
		}
		found = append(found, w.found...)
	}
	if l.service != "" {
		needed := l.needed()
		found = slices.DeleteFunc(found, func(e *Error) bool {
			path := strings.SplitN(e.Field, ".", 3)
			return path[0] != "services" || len(path) > 1 && !needed[path[1]]
		})
	}
	return found
}

func joined(all []*Error) error {
	errs := make([]error, len(all))
	for i, e := range all {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// projectName returns the name that the option, the environment, the file or the directory says.
func (l *loading) projectName() (name string, err error) {
	given := cmp.Or(l.conf.name, l.env["COMPOSE_PROJECT_NAME"])
	name = given
	for _, f := range l.files {
		value, has := f.raw["name"]
		if !has || given != "" {
			continue
		}
		if of, ok := value.(string); ok {
			name, err = l.budget.substitute(of, l.lookUp)
		} else {
			err = errors.New("must be a string")
		}
		if err != nil {
			return "", f.at([]string{"name"}, err)
		}
	}
	if name == "" {
		name = filepath.Base(l.dir)
	}
	if name = loader.NormalizeProjectName(name); name == "" {
		return "project", nil
	}
	return name, nil
}

// profiles returns those that the option or the environment says.
func (l *loading) profiles() []string {
	if l.conf.profiles != nil {
		return l.conf.profiles
	}
	return strings.FieldsFunc(l.env["COMPOSE_PROFILES"], func(c rune) bool { return c == ',' || c == ' ' })
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
		for _, f := range l.all() {
			if base := f.base(name); base != "" {
				add(base)
			}
		}
	}
	for name := range l.project.Services {
		add(name)
	}
	return used
}

// all returns the files, after those that are included.
func (l *loading) all() []*file { return slices.Concat(l.references.included, l.files) }

// base returns the name of the service of the same files that a service extends, or "".
func (f *file) base(service string) string {
	if to := f.extends[service]; to.path == "" {
		return to.service
	}
	return ""
}

func (l *loading) lookUp(name string) (string, bool) {
	v, given := l.env[name]
	return v, given
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
	l.errs = append(l.errs, l.at(path, format, args...))
}

// at returns the error that something is wrong with a field.
func (l *loading) at(path []string, format string, args ...any) *Error {
	name, line := position(l.all(), path)
	return &Error{name, line, dotted(path), fmt.Errorf(format, args...)}
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

// links gives services the further names by which others link them. Such a name is known to all, so
// it must lead to one service alone.
func (l *loading) links() {
	of := map[string]string{}
	for _, p := range l.plans {
		for _, alias := range append(slices.Clip(p.aliases), p.name) {
			of[alias] = p.name
		}
	}
	for _, from := range slices.Sorted(maps.Keys(l.plans)) {
		for i, link := range l.project.Services[from].Links {
			name, alias, _ := strings.Cut(link, ":")
			to, path := l.plans[name], []string{"services", from, "links", strconv.Itoa(i)}
			switch alias = strings.ToLower(alias); {
			case to == nil || alias == "" || of[alias] == name:
			case of[alias] != "":
				l.wrong(path, "%s is a name of %s, too: choose another one", alias, of[alias])
			case !spec.IsName(alias):
				l.wrong(path, "%q is no name by which a service could be found, of a-z, 0-9, -, _ and dots", alias)
			default:
				of[alias] = name
				to.aliases = append(to.aliases, alias)
			}
		}
	}
}

// checkName reports whether a service can have its name.
func (l *loading) checkName(name string) {
	if !spec.IsLabel(name) {
		l.wrong([]string{"services", name}, "others find the service by its name, which must be 1 to 63 of a-z, 0-9, - and _, the first and last no -: rename it")
	}
}
