// Package compose starts the services of a Compose file, compose.yaml, as sandboxes, with package
// service, images from module image, and no daemon:
//
//	project, err := compose.Load("compose.yaml")
//	if err != nil { ... } // compose.yaml:12: services.web.privileged: ...
//	up := project.Up(ctx)
//	defer up.Close()
//	if err := up.Ready(); err != nil { ... }
//	conn, err := net.Dial("tcp", up.Addr("db", 5432))
//
// What a file says is done, or is an error with its field and line: docs/COMPOSE.md has the table.
// Nothing of a project outlives this process.
package compose

import (
	"fmt"
	"slices"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/image"
)

// Project is what a Compose file describes. It is immutable and safe for concurrent use: each Up
// starts its services anew.
type Project struct {
	name     string
	services []*plan // sorted by name
	conf     config
}

// Name returns the project's name: that of the option Name or of the file's field name, or that of
// the file's directory.
func (p *Project) Name() string { return p.name }

// Services returns the names of the services that Up starts, sorted.
func (p *Project) Services() (names []string) {
	for _, s := range p.services {
		names = append(names, s.name)
	}
	return names
}

// Error is what is wrong with a field of a Compose file.
type Error struct {
	File  string
	Line  int    // from 1
	Field string // such as "services.web.ports"
	Err   error
}

func (e *Error) Error() string { return fmt.Sprintf("%s:%d: %s: %v", e.File, e.Line, e.Field, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Option changes how Load reads a file, or how Up starts it.
type Option func(*config)

type config struct {
	name      string
	files     []string // besides the first
	profiles  []string
	only      []string
	environ   []string // nil for this process's
	ignored   []string
	network   []sandbox.NetworkOption
	images    []image.Option
	volumes   volumes
	observers []func(Event)
}

// volumes says where named volumes are.
type volumes struct {
	dir    string // of directories that stay, or with disk of files that don't
	onDisk bool
	bytes  int64
}

// inDir reports whether they are directories of this machine.
func (v volumes) inDir() bool { return v.dir != "" && !v.onDisk }

// Name sets the project's name, of a-z, 0-9, - and _.
func Name(name string) Option { return func(c *config) { c.name = name } }

// Override adds files that are merged into the first, in turn, as by docker compose -f.
func Override(paths ...string) Option {
	return func(c *config) { c.files = append(slices.Clip(c.files), paths...) }
}

// Profiles enables services that have one of these profiles. Default: those without a profile.
func Profiles(names ...string) Option {
	return func(c *config) { c.profiles = append(slices.Clip(c.profiles), names...) }
}

// Only restricts the project to these services and those that they depend on. Default: all.
func Only(services ...string) Option {
	return func(c *config) { c.only = append(slices.Clip(c.only), services...) }
}

// Environ sets the variables, KEY=value, that the file may refer to, in place of this process's
// environment. Those of the file .env beside the Compose file come after them in either case.
func Environ(vars ...string) Option {
	return func(c *config) { c.environ = append(append([]string{}, c.environ...), vars...) }
}

// Ignore leaves fields out that are not supported, or have values that are not, in place of an
// error: a name that services have, such as "logging", or a whole one, such as
// "services.web.deploy.replicas". Only what the file says of such a field is left out: the rest
// must make sense without. The field "jobs", and those of entries of include, can't be left out.
func Ignore(fields ...string) Option {
	return func(c *config) { c.ignored = append(slices.Clip(c.ignored), fields...) }
}

// Allow sets what services reach besides each other, by options of sandbox.NewNetwork such as
// sandbox.AllowHost("*.example.org", 443). Default: nothing.
func Allow(opts ...sandbox.NetworkOption) Option {
	return func(c *config) { c.network = append(slices.Clip(c.network), opts...) }
}

// Images passes options on to image.Open, such as image.WithStore.
func Images(opts ...image.Option) Option {
	return func(c *config) { c.images = append(slices.Clip(c.images), opts...) }
}

// VolumeMemory has each named volume in memory, with room for that many bytes, until the project
// ends: sandbox.NewScratch says what that needs. Default: 256 MiB.
func VolumeMemory(bytes int64) Option {
	return func(c *config) { c.volumes = volumes{bytes: bytes} }
}

// VolumeDisk has each named volume on disk, in a file without a name in the directory dir, with
// room for that many bytes, until the project ends. It takes root, and what sandbox.NewDiskScratch
// needs.
func VolumeDisk(dir string, bytes int64) Option {
	return func(c *config) { c.volumes = volumes{dir: dir, onDisk: true, bytes: bytes} }
}

// VolumeDir has each named volume in a directory of its name in dir, made if it is missing, which
// stays when the project has ended. What services leave there is hostile, and not limited in size.
// While an empty one is filled with what an image has at its place, there is a file NAME~ beside
// it.
// Those without a name stay in memory, as by VolumeMemory.
func VolumeDir(dir string) Option {
	return func(c *config) { c.volumes.dir, c.volumes.onDisk = dir, false }
}

// Observe calls f for each Event, from several goroutines, one at a time. What happens waits for
// it, so f must not wait for the project.
func Observe(f func(Event)) Option {
	return func(c *config) {
		if f != nil {
			c.observers = append(slices.Clip(c.observers), f)
		}
	}
}
