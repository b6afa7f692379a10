package compose

// Files to which Compose files refer, by include and by the field file of extends. compose-go would
// read them, and those to which they refer in turn, from anywhere and without a bound. So each is
// read here, as a loading of its own, and compose-go gets its model, what it comes to: in a
// temporary file that refers to no other.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/compose-spec/compose-go/v2/loader"
)

// maxReferences is how many files those of a project refer to, each counted as often as it is read.
const maxReferences = 100

// variablesField is an extension of included configs and secrets: the variables that they name.
const variablesField = "x-sandbox-variables"

// references are what the loadings of a project's files share.
type references struct {
	dir      string   // of the project
	root     *os.Root // the same, below which all files are; nil before the first
	left     int      // how many more files are read
	included []*file  // in which errors are, too
	tempDir  string   // "" before the first temporary file
	written  int      // how many there are
}

func (r *references) close() {
	if r.root != nil {
		r.root.Close()
	}
	if r.tempDir != "" {
		_ = os.RemoveAll(r.tempDir)
	}
}

// readFile reads a regular file below the project's directory, whatever happens there meanwhile.
func (r *references) readFile(path string) ([]byte, error) {
	rel, err := filepath.Rel(r.dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fmt.Errorf("%s is not below the directory of the project: have a copy there, or give it by Override (-f)", path)
	}
	if r.root == nil {
		if r.root, err = os.OpenRoot(r.dir); err != nil {
			return nil, err
		}
	}
	content, err := readRegular(rel, r.root.Stat, r.root.OpenFile)
	// Of what leads out of the directory, the error has no number.
	var number syscall.Errno
	if errors.As(err, new(*fs.PathError)) && (!errors.As(err, &number) || number == syscall.ELOOP) {
		err = fmt.Errorf("%w: links must be relative, and lead to what is below the directory of the project", err)
	}
	return content, err
}

// reference is a file that is included, or a service that is extended, whose path is "" if it is of
// the same files.
type reference struct{ path, service string }

// models are those of the files to which the files of one loading refer. It is a
// loader.ResourceLoader, which has compose-go find them.
type models struct {
	dir      string                    // of the loading
	included []map[string]any          // in turn
	extended map[string]map[string]any // services that are extended, by path of their file
	temp     map[string]string         // temporary files with models, by path
}

// path returns the path of a file that is named in one of the loading's.
func (m models) path(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(m.dir, name)
}

func (m models) Accept(string) bool { return true }
func (m models) Dir(string) string  { return m.dir }
func (m models) Load(_ context.Context, name string) (string, error) {
	if temp := m.temp[m.path(name)]; temp != "" {
		return temp, nil
	}
	return "", fmt.Errorf("%s: the name of another file must be written where it is used", name)
}

// readReferences reads the files to which those of the loading refer.
func (l *loading) readReferences() error {
	l.models = models{l.dir, nil, map[string]map[string]any{}, map[string]string{}}
	for _, f := range l.files {
		if err := l.settleExtends(f); err != nil {
			return err
		}
	}
	for _, f := range l.files {
		if err := l.readIncluded(f); err != nil {
			return err
		}
	}
	for _, f := range l.files {
		if err := l.readExtended(f); err != nil {
			return err
		}
	}
	for path, services := range l.models.extended {
		if err := l.writeModel(path, map[string]any{"services": services}); err != nil {
			return err
		}
	}
	return nil
}

// skipsInclude reports whether nothing is included: Ignore says so, or only a service is wanted.
func (l *loading) skipsInclude() bool { return l.service != "" || l.ignored([]string{"include"}) }

// readIncluded reads what a file includes.
func (l *loading) readIncluded(f *file) error {
	if l.skipsInclude() {
		return nil
	}
	entries, _ := f.raw["include"].([]any) // compose-go refuses anything else
	for i, entry := range entries {
		at := []string{"include", strconv.Itoa(i)}
		name, field, err := includedFile(entry)
		if field != "" {
			at = append(at, field)
		}
		if err == nil {
			name, err = l.budget.substitute(name, l.lookUp)
		}
		if err == nil {
			err = l.include(name)
		}
		if err != nil {
			return f.at(at, err)
		}
	}
	return nil
}

// includedFile returns the file that an entry of include names, and the field of the entry that
// does, or that is wrong. compose-go would follow other fields than path out of the project, so
// these can't be ignored either.
func includedFile(entry any) (name, field string, err error) {
	if fields, ok := entry.(map[string]any); ok {
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			if field != "path" {
				return "", field, errors.New(cmp.Or(includeRemedies[field], "not supported here: leave it out"))
			}
		}
		entry, field = fields["path"], "path"
	}
	if list, ok := entry.([]any); ok && len(list) == 1 {
		entry = list[0]
	}
	name, ok := entry.(string)
	if !ok {
		err = errors.New("one file is included by each entry: make further entries")
	}
	return name, field, err
}

// include reads a file that is included.
func (l *loading) include(name string) error {
	sub, err := l.refer(name, "")
	if err != nil {
		return err
	}
	if err := sub.addDefaults(l.references.readFile); err != nil {
		return err
	}
	l.references.included = append(l.references.included, sub.files...)
	model, unsupported, err := sub.resolve()
	if err != nil {
		return err
	}
	l.unsupportedIncluded = append(l.unsupportedIncluded, unsupported...)
	l.models.included = append(l.models.included, model)
	return l.writeModel(l.models.path(name), model)
}

// readExtended reads the services of other files that services of a file extend. If the file is
// there for one service only, compose-go asks for what the rest extends, too, and gets a stub.
func (l *loading) readExtended(f *file) error {
	needed := l.needed()
	for _, service := range slices.Sorted(maps.Keys(f.extends)) {
		base := f.extends[service]
		switch {
		case base.path == "":
		case l.service != "" && !needed[service]:
			l.addExtended(base.path, base.service, nil)
		default:
			if err := l.extend(base.path, base.service); err != nil {
				return f.at([]string{"services", service, "extends", "file"}, err)
			}
		}
	}
	return nil
}

// settleExtends finds what the services of a file extend, with the variables of the loading.
func (l *loading) settleExtends(f *file) (err error) {
	f.extends = map[string]reference{}
	services, _ := f.raw["services"].(map[string]any)
	for _, service := range slices.Sorted(maps.Keys(services)) {
		if f.extends[service], err = l.extendedBy(f.entry("services", service)); err != nil {
			return f.at([]string{"services", service, "extends", "file"}, err)
		}
	}
	return nil
}

// extendedBy returns what a service extends.
func (l *loading) extendedBy(service map[string]any) (base reference, err error) {
	var file any
	switch v := service["extends"].(type) {
	case string:
		base.service = v
	case map[string]any:
		base.service, _ = v["service"].(string)
		file = v["file"]
	}
	if base.service, err = l.budget.substitute(base.service, l.lookUp); err != nil || file == nil {
		return base, err
	}
	name, ok := file.(string)
	if !ok { // compose-go does not check it
		return base, errors.New("this is no name of a file")
	}
	if base.path, err = l.budget.substitute(name, l.lookUp); err == nil && base.path == "" {
		err = errors.New("the name of the file is empty: leave file out for a service of the same file")
	}
	return base, err
}

// extend reads a service of another file that is extended.
func (l *loading) extend(name, service string) error {
	if service == "" {
		return errors.New("it needs the name of a service, too")
	}
	if l.models.temp[l.models.path(name)] != "" { // compose-go knows files by their names alone
		return fmt.Errorf("%s is included, too: extend its service without file", name)
	}
	sub, err := l.refer(name, service)
	if err != nil {
		return err
	}
	model, unsupported, err := sub.resolve()
	if err != nil {
		return err
	}
	if err := joined(unsupported); err != nil {
		return err
	}
	services, _ := model["services"].(map[string]any)
	if services[service] == nil {
		return fmt.Errorf("%s has no service %q", sub.files[0].path, service)
	}
	l.addExtended(name, service, services[service])
	return nil
}

// addExtended adds a service that is extended to the model of its file, or a stub in place of nil.
func (l *loading) addExtended(name, service string, base any) {
	path := l.models.path(name)
	services := l.models.extended[path]
	if services == nil {
		services = map[string]any{}
		l.models.extended[path] = services
	}
	if base == nil && services[service] == nil {
		base = map[string]any{"image": "stub"}
	}
	if base != nil {
		services[service] = base
	}
}

// refer reads a file that is included, or one that has a service that is extended. The loading it
// returns has the variables of this one.
func (l *loading) refer(name, service string) (*loading, error) {
	to := reference{l.models.path(name), service}
	if slices.Contains(l.chain, to) {
		return nil, fmt.Errorf("%s refers to itself, in a circle", name)
	}
	if l.references.left--; l.references.left < 0 {
		return nil, fmt.Errorf("more than %d files are referred to: make one of several", maxReferences)
	}
	content, err := l.read(to.path, l.references.readFile)
	if err != nil {
		return nil, err
	}
	shown := name
	if !filepath.IsAbs(name) {
		shown = filepath.Join(filepath.Dir(l.files[0].path), name)
	}
	f, err := parse(shown, content, l.budget)
	if err != nil {
		return nil, err
	}
	if err := l.budget.takeValues(f.values); err != nil {
		return nil, err
	}
	if err := l.budget.take(bytesAName * len(l.env)); err != nil {
		return nil, err
	}
	return &loading{
		conf: l.conf, budget: l.budget, dir: filepath.Dir(to.path), files: []*file{f}, env: maps.Clone(l.env),
		references: l.references, chain: append(slices.Clip(l.chain), to), service: service,
	}, nil
}

// at returns the error that something is wrong with a field of the file.
func (f *file) at(path []string, err error) error {
	if errors.As(err, new(*Error)) {
		return err // it has the place in the file that is referred to
	}
	line, _ := f.line(path)
	return &Error{f.path, line, dotted(path), err}
}

// needed returns the service that is extended, and those of the same file that it extends.
func (l *loading) needed() map[string]bool {
	needed := map[string]bool{}
	for name := l.service; name != "" && !needed[name]; name = l.files[0].base(name) {
		needed[name] = true
	}
	return needed
}

// resolve returns the model of the loading's file, or of the service that is extended: with what it
// refers to, with absolute paths, and without variables. It returns what is not supported, too.
func (l *loading) resolve() (model map[string]any, unsupported []*Error, err error) {
	unsupported, err = l.prepare()
	if err != nil {
		return nil, nil, err
	}
	all, err := loader.LoadModelWithContext(context.Background(), l.details(), l.options, func(o *loader.Options) {
		o.SetProjectName(l.env["COMPOSE_PROJECT_NAME"], true)
		o.SkipNormalization, o.SkipConsistencyCheck = true, true
		// What extends a service has the rest.
		o.SkipValidation, o.SkipDefaultValues = l.service != "", l.service != ""
	})
	if err != nil {
		return nil, nil, l.failed(unsupported, err)
	}
	model = map[string]any{}
	for _, kind := range []string{"services", "networks", "volumes", "configs", "secrets"} {
		entries, _ := all[kind].(map[string]any)
		if kind == "services" && l.service != "" {
			maps.DeleteFunc(entries, func(name string, _ any) bool { return name != l.service })
		}
		for _, entry := range entries {
			if fields, ok := entry.(map[string]any); ok {
				if err := l.complete(kind, fields); err != nil {
					return nil, nil, fmt.Errorf("%s: %w", l.files[0].path, err)
				}
			}
		}
		if len(entries) > 0 {
			model[kind] = literal(entries)
		}
	}
	size, err := l.sizeOf(model, false, l.budget)
	if err != nil {
		return nil, nil, err
	}
	return model, unsupported, l.budget.takeValues(size.values)
}

// complete gives an entry of a model what depends on the directory of its file, or on its
// variables, and what compose-go leaves.
func (l *loading) complete(kind string, entry map[string]any) (err error) {
	value := func(name string) (string, bool) {
		v, given := l.env[name]
		if given && err == nil {
			err = l.budget.take(len(v))
		}
		return v, given && err == nil
	}
	switch kind {
	case "configs", "secrets":
		name, _ := entry["environment"].(string)
		if v, given := value(name); given {
			entry[variablesField] = map[string]any{name: v}
		}
	case "services":
		if image, ok := entry["image"].(string); ok {
			entry["image"] = l.imagePath(image)
		}
		vars, _ := entry["environment"].(map[string]any)
		for name, old := range vars {
			if old != nil {
				continue
			}
			if v, given := value(name); given {
				vars[name] = v
			}
		}
		list, _ := entry["environment"].([]any)
		for i, of := range list {
			name, _ := of.(string)
			if v, given := value(name); given {
				list[i] = name + "=" + v
			}
		}
	}
	return err
}

// literal returns a value in which no variables are replaced.
func literal(of any) any {
	switch v := of.(type) {
	case map[string]any:
		for name, inside := range v {
			v[name] = literal(inside)
		}
	case []any:
		for i, inside := range v {
			v[i] = literal(inside)
		}
	case string:
		return strings.ReplaceAll(v, "$", "$$")
	}
	return of
}

// writeModel writes the model of a file to a temporary one, and has compose-go find that.
func (l *loading) writeModel(path string, model map[string]any) (err error) {
	r := l.references
	if r.tempDir == "" {
		if r.tempDir, err = os.MkdirTemp("", "sandbox-compose-"); err != nil {
			return err
		}
	}
	content, err := json.Marshal(model)
	if err == nil {
		err = l.budget.take(len(content))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r.written++
	temp := filepath.Join(r.tempDir, strconv.Itoa(r.written)+".yaml")
	l.models.temp[path] = temp
	return os.WriteFile(temp, content, 0o600)
}
