//go:build linux

package compose

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/testkit"
)

// A project that includes another one is that one, with its files, variables and paths.
func TestInclude(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*/compose.yaml")
	require.NoError(t, err)
	for _, file := range files {
		name := filepath.Base(filepath.Dir(file))
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(filepath.Join(dir, "part"), os.DirFS(filepath.Dir(file))))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte("include: [{path: [part/compose.yaml]}]\n"), 0o644))
			opts := []Option{Name("same"), Environ("TAG=1.2", "TOKEN=from the environment", "PASSED=on"), Profiles("debug")}
			alone, wrong := Load(filepath.Join(dir, "part", "compose.yaml"), opts...)
			included, err := Load(dir, opts...)
			if wrong != nil {
				require.EqualError(t, err, wrong.Error())
				return
			}
			require.NoError(t, err)
			require.Equal(t, describe(alone), describe(included))
		})
	}
}

// A service has what the one of another file has, from where that file is, and what it says itself.
func TestExtendsFile(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": `
services:
  web: {extends: {file: common/base.yaml, service: web}, command: [sh, -c, 'echo $$HOME'], environment: {B: own}}
  job: {extends: {file: common/base.yaml, service: job}}
  apart: {extends: {file: "common/${WHICH}.yaml", service: web}, image: other}
include: [common/more.yaml]
`,
		".env":             "WHICH=base\nFROM=the project\n",
		"common/base.yaml": "services:\n  web: {extends: {service: plain}, environment: {A: $FROM, B: base, C: 'a$$b'}, volumes: ['./data:/data']}\n  plain: {image: ./x.tar, env_file: x.env, stop_signal: INT}\n  job: {image: job, extends: {file: deep/one.yaml, service: one}}\n  off: {image: x, privileged: true}\ninclude: [missing.yaml]\n",
		"common/x.env":     "D=file\n", "common/data/x": "",
		"common/deep/one.yaml": "services: {one: {build: ., working_dir: /deep}}\n",
		"common/more.yaml":     "services: {more: {image: \"$FROM$OWN\", depends_on: [job], environment: [OWN]}}\nvolumes: {vol: {}}\n",
		"common/.env":          "OWN=1\nFROM=the part\n",
	})
	_, err := Load(dir, Environ())
	require.ErrorContains(t, err, filepath.Join(dir, "common/deep/one.yaml")+":1: services.one.build: images are not built here")
	p, err := Load(dir, Environ(), Name("x"), Ignore("build"))
	require.NoError(t, err)
	require.Equal(t, []string{"apart", "job", "more", "web"}, p.Services())
	got := strings.ReplaceAll(describe(p), dir, "DIR")
	for _, want := range []string{
		`web: image "DIR/common/x.tar"`, `env ["A=the project" "B=own" "C=a$b" "D=file"]`, `command ["sh" "-c" "echo $HOME"]`, "stop 2 ", "DIR/common/data",
		`job: image "job"`, `dir "/deep"`, `apart: image "other"`, `more: image "the project1"`, `after ["job"]`, `env ["OWN=1"]`,
	} {
		require.Contains(t, got, want)
	}
	require.NotContains(t, got, "privileged")
}

// Errors in files that are referred to have their names and lines; what is not below the project is
// not read; and no temporary file stays.
func TestReferencesWrong(t *testing.T) {
	outside := write(t, map[string]string{"x.yaml": base, ".env": "A=b"})
	deep := map[string]string{}
	for name := range strings.FieldsSeq("a b c d e f g h") {
		deep[name+".yaml"] = "include: [" + strings.Repeat(string(name[0]+1)+".yaml, ", 9) + "]\n"
	}
	deep["i.yaml"] = base
	deep["compose.yaml"] = deep["a.yaml"]
	inside := write(t, map[string]string{"compose.yaml": "include: [" + outside + "/back.yaml]", "x.yaml": base})
	require.NoError(t, os.Symlink(filepath.Join(inside, "x.yaml"), filepath.Join(outside, "back.yaml")))
	_, err := Load(inside, Environ())
	require.ErrorContains(t, err, "back.yaml is not below the directory")
	values := "x-a: [" + strings.Repeat("1,", 51000) + "]\n" + base
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"missing":        {map[string]string{"compose.yaml": "include:\n- part.yaml"}, "compose.yaml:2: include[0]: "},
		"above":          {map[string]string{"compose.yaml": "include:\n- " + outside + "/x.yaml"}, "is not below the directory"},
		"by a link":      {map[string]string{"compose.yaml": "include: [link/x.yaml]"}, "link/x.yaml: path escapes from parent: links must be relative"},
		"a device":       {map[string]string{"compose.yaml": base + "    extends: {service: x, file: /dev/zero}"}, "is not below"},
		"itself":         {map[string]string{"compose.yaml": "include: [compose.yaml]"}, "compose.yaml refers to itself"},
		"in a circle":    {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": "include: [b.yaml]", "b.yaml": "\ninclude: [a.yaml]"}, "b.yaml:2: include[0]: a.yaml refers to itself"},
		"extends itself": {map[string]string{"compose.yaml": base + "    extends: {service: x, file: a.yaml}", "a.yaml": "services: {x: {extends: {file: ./a.yaml, service: x}}}"}, "a.yaml:1: services.x.extends.file: "},
		"no service":     {map[string]string{"compose.yaml": base + "    extends: {service: x, file: a.yaml}", "a.yaml": base}, "compose.yaml:4: services.web.extends.file: "},
		"no file":        {map[string]string{"compose.yaml": base + "    extends: {service: x, file: 5}"}, "this is no name of a file"},
		"an empty name":  {map[string]string{"compose.yaml": base + "    extends: {service: x, file: \"\"}\n  x: {image: x}"}, "compose.yaml:4: services.web.extends.file: the name of the file is empty"},
		"a file of none": {map[string]string{"compose.yaml": base + "    extends: {service: x, file: $NONE}\n  x: {image: x}"}, "the name of the file is empty"},
		"service none":   {map[string]string{"compose.yaml": base + "    extends: {service: $NONE, file: a.yaml}"}, "it needs the name of a service"},
		"two paths":      {map[string]string{"compose.yaml": "include: [{path: [a.yaml, b.yaml]}]"}, "one file is included by each entry"},
		"a link of .env": {map[string]string{"compose.yaml": "include: [part/x.yaml]"}, "part/.env: path escapes from parent: links must be relative"},
		"two kinds":      {map[string]string{"compose.yaml": "include: [a.yaml]\n" + base + "    extends: {service: x, file: ./a.yaml}", "a.yaml": "services: {x: {image: x}}"}, "compose.yaml:5: services.web.extends.file: ./a.yaml is included, too"},
		"a directory":    {map[string]string{"compose.yaml": "include:\n- path: a.yaml\n  project_directory: x", "a.yaml": base}, "compose.yaml:3: include[0].project_directory: paths are from"},
		"a field":        {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": base + "    privileged: true"}, "a.yaml:4: services.web.privileged: a run has no right"},
		"a value":        {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": base + "    scale: 0"}, "a.yaml:4: services.web.scale: 0: must"},
		"two of a name":  {map[string]string{"compose.yaml": "include: [a.yaml]\n" + base + "    working_dir: /x\n    pull_policy: never", "a.yaml": base + "    command: x"}, "compose.yaml:6: services.web.pull_policy"},
		"no number":      {map[string]string{"compose.yaml": base + "    extends: {service: x, file: a.yaml}", "a.yaml": "services: {x: {image: x, x-a: .nan}}"}, "a.yaml: json: unsupported value: NaN"},
		"nor there":      {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": base + "x-a: .inf"}, "a.yaml: json: unsupported value: +Inf"},
		"empty":          {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": ""}, "a.yaml: the file is empty"},
		"many":           {deep, "more than 100 files are referred to"},
		"large":          {map[string]string{"compose.yaml": "include: [a.yaml, a.yaml]", "a.yaml": values}, "more than 100000 values"},
		"jobs":           {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": "jobs:\n  web: {image: x, command: [" + strings.Repeat("1,", 3000) + "]}\n" + services(90, "    extends: web\n")}, "a.yaml:1: jobs: jobs are not supported"},
		"jobs of a file": {map[string]string{"compose.yaml": "include: [a.yaml]", "a.yaml": "jobs:\n" + services(90, "    extends: {service: big, file: a.yaml}\n") + base}, "a.yaml:1: jobs: jobs are not supported"},
		"jobs elsewhere": {map[string]string{"compose.yaml": base + "    extends: {service: web, file: a.yaml}", "a.yaml": base + "jobs: {}"}, "a.yaml:4: jobs: jobs are not supported"},
		"included often": {map[string]string{"compose.yaml": "include: [a.yaml]\nservices:\n" + services(90, "    extends: web\n"), "a.yaml": base + "    command: [" + strings.Repeat("x,", 3000) + "]\n"}, "compose.yaml: with what they extend, services have more than 100000 values"},
		"deep and often": {map[string]string{"compose.yaml": "include: [b.yaml]", "b.yaml": "include: [a.yaml]\nservices:\n" + services(90, "    extends: web\n"), "a.yaml": base + "    command: [" + strings.Repeat("x,", 3000) + "]\n"}, "b.yaml: with what they extend, services have more than 100000 values"},
		"merged often":   {map[string]string{"compose.yaml": "include: [a.yaml]\nservices:\n  web: {tty: true}\n" + services(90, "    extends: web\n"), "a.yaml": base + "    command: [" + strings.Repeat("x,", 3000) + "]\n"}, "compose.yaml: with what they extend, services have more than 100000 values"},
		"extended often": {map[string]string{"compose.yaml": "services:\n" + services(90, "    extends: {service: web, file: a.yaml}\n"), "a.yaml": base + "    command: [" + strings.Repeat("x,", 3000) + "]\n"}, "more than 100000 values"},
	} {
		t.Run(name, func(t *testing.T) {
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			dir := write(t, test.files)
			require.NoError(t, os.Symlink(outside, filepath.Join(dir, "link")))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "part"), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "part", "x.yaml"), []byte(base), 0o600))
			require.NoError(t, os.Symlink(filepath.Join(outside, ".env"), filepath.Join(dir, "part", ".env")))
			_, err := Load(dir, Environ(), Ignore("jobs"))
			require.ErrorContains(t, err, test.want)
			left, err := os.ReadDir(temp)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// The remedy for links is only in the error of a link.
func TestLinkRemedy(t *testing.T) {
	dir := write(t, map[string]string{"x.yaml": base})
	require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	require.NoError(t, os.Symlink("..", filepath.Join(dir, "out")))
	for name, link := range map[string]bool{"loop": true, "out/x.yaml": true, "missing": false, "x.yaml/x": false, strings.Repeat("x", 300): false} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte("include: ["+name+"]"), 0o600))
		_, err := Load(dir, Environ())
		require.ErrorContains(t, err, "compose.yaml:1: include[0]: ")
		require.Equal(t, link, strings.Contains(err.Error(), "links must be relative"), "%v", err)
	}
}

// loadSoon loads a project, and fails if that waits for something.
func loadSoon(t *testing.T, dir string, opts ...Option) (p *Project, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p, err = Load(dir, append([]Option{Environ()}, opts...)...)
	}()
	select {
	case <-done:
	case <-testkit.Deadline(t).Done():
		require.FailNow(t, "Load waits")
	}
	return p, err
}

// Fields of include that lead out of the project are errors at once, at any depth, also if they are
// to be ignored; and nothing is read of what they name. If include is ignored, nothing is included.
func TestIncludeFields(t *testing.T) {
	for field, want := range map[string]string{
		"env_file: fifo": "env_file: variables are those of .env", "env_file: [fifo, fifo]": "env_file: variables are those of .env",
		"project_directory: ../x": "project_directory: paths are from", "nonsense: x": "nonsense: not supported here",
	} {
		entry := "include: [{path: [x.yaml], " + field + "}]\n"
		for at, files := range map[string]map[string]string{
			"compose.yaml": {"compose.yaml": entry, "x.yaml": base},
			"part/a.yaml":  {"compose.yaml": "include: [part/a.yaml]\n" + base, "part/a.yaml": entry, "part/x.yaml": base},
		} {
			dir := write(t, files)
			for _, name := range []string{"fifo", "part/fifo"} {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
				require.NoError(t, syscall.Mkfifo(filepath.Join(dir, name), 0o600))
			}
			for _, ignored := range []string{"other", "include[0].env_file", "include[0]", "include[0].project_directory"} {
				_, err := loadSoon(t, dir, Ignore(ignored))
				require.ErrorContains(t, err, filepath.Join(dir, at)+":1: include[0]."+want, "%s, %s", field, ignored)
				require.Len(t, strings.Split(err.Error(), "\n"), 1)
			}
			p, err := loadSoon(t, dir, Ignore("include"))
			if at == "compose.yaml" {
				require.ErrorContains(t, err, "compose.yaml: no service is enabled", field)
				continue
			}
			require.NoError(t, err, field)
			require.Equal(t, []string{"web"}, p.Services())
		}
	}
}

// What becomes something else while it is read is not waited for, nor read outside of the project.
func TestReferencesSwapped(t *testing.T) {
	outside := write(t, map[string]string{"part/x.yaml": "services: {outside: {image: $A}}", "part/.env": "A=outside"})
	dir := write(t, map[string]string{"compose.yaml": "include: [part/x.yaml]", "part/x.yaml": "services: {web: {image: $A}}", "part/.env": "A=b", "fifos/.env": "A=b"})
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "fifos", "x.yaml"), 0o600))
	require.NoError(t, os.Symlink(filepath.Join(outside, "part"), filepath.Join(dir, "link")))
	swap := func(name string) error {
		return unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_FDCWD, filepath.Join(dir, "part"), unix.RENAME_EXCHANGE)
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for name := range cycle("fifos", "link") {
			select {
			case <-end:
				return
			default:
				if err := errors.Join(swap(name), swap(name)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	defer func() { close(end); <-ended }()
	loaded := 0
	for begin := time.Now(); time.Since(begin) < time.Second || loaded == 0; {
		p, err := loadSoon(t, dir)
		if err == nil {
			loaded++
			require.Equal(t, []string{"web"}, p.Services())
			require.Contains(t, describe(p), `web: image "b"`)
		}
	}
}

// cycle yields values again and again.
func cycle[T any](values ...T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := 0; yield(values[i%len(values)]); i++ {
		}
	}
}

// A service extends another one of the same file, or of one that it overrides, by the file's name.
func TestExtendsOwnFile(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml":          "services:\n  base: {image: x, working_dir: /base}\n  web: {extends: {file: compose.yaml, service: base}}\n  more: {extends: {file: ./compose.yaml, service: web}, command: more}\n",
		"compose.override.yaml": "services: {late: {extends: {file: compose.yaml, service: more}}}\ninclude: [part/a.yaml]",
		"part/a.yaml":           "services: {own: {image: x, working_dir: /own}, inner: {extends: {file: a.yaml, service: own}}}",
	})
	p, err := Load(dir, Environ())
	require.NoError(t, err)
	require.Equal(t, []string{"base", "inner", "late", "more", "own", "web"}, p.Services())
	got := describe(p)
	require.Equal(t, 4, strings.Count(got, `dir "/base"`), got)
	require.Equal(t, 2, strings.Count(got, `dir "/own"`), got)
	require.Equal(t, 2, strings.Count(got, `command ["more"]`), got)

	dir = write(t, map[string]string{"compose.yaml": "services:\n  a: {image: x, extends: {file: compose.yaml, service: b}}\n  b: {extends: {file: compose.yaml, service: a}}\n"})
	_, err = Load(dir, Environ())
	require.ErrorContains(t, err, "compose.yaml:2: services.a.extends.file: compose.yaml refers to itself, in a circle")
}

// Configs and secrets of an included file have the variables of its directory, unless another file
// says that they are others.
func TestIncludeVariables(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "include: [part/a.yaml]\nsecrets: {other: {environment: OTHER}}\n",
		".env":         "SHARED=top\nOTHER=of the project\n",
		"part/a.yaml":  "services: {web: {image: x, secrets: [s, empty, other], configs: [c]}}\nsecrets: {s: {environment: SECRET}, empty: {environment: EMPTY}, other: {environment: SECRET}}\nconfigs: {c: {environment: SHARED}}\n",
		"part/.env":    "SECRET='a$$b'\nEMPTY=\nSHARED=part\n",
	})
	p, err := Load(dir, Environ())
	require.NoError(t, err)
	got := describe(p)
	for _, want := range []string{"/run/secrets/s: spec.File {Data:a$$b ", "/run/secrets/empty: spec.File {Data: ", "/run/secrets/other: spec.File {Data:of the project ", "/c: spec.File {Data:top "} {
		require.Contains(t, got, want)
	}
}

// What a service of an included file extends is found with the variables of its directory, where
// what is not supported is looked for, too.
func TestIncludeExtends(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "include: [part/a.yaml]", ".env": "C=web",
		"part/a.yaml": "services: {web: {extends: $B}, base: {image: x, privileged: true}, other: {extends: {file: $B.yaml, service: $B}}}",
		"part/.env":   "B=base\nC=none\n", "part/base.yaml": "services: {base: {extends: $C}, web: {image: y}}",
	})
	_, err := Load(dir, Environ(), Only("web"))
	require.ErrorContains(t, err, "part/a.yaml:1: services.base.privileged")
	p, err := Load(dir, Environ(), Only("other"))
	require.NoError(t, err)
	require.Contains(t, describe(p), `image "y"`)
}

// A later file takes back what is not supported of one that is included, which a profile may leave
// out, too.
func TestIncludeReset(t *testing.T) {
	dir := write(t, map[string]string{
		"compose.yaml": "include: [a.yaml]\n",
		"a.yaml":       base + "    privileged: true\n  off: {image: x, profiles: [off], ipc: host}\n",
		"over.yaml":    "services:\n  web: {privileged: !reset null}\n",
	})
	_, err := Load(dir, Environ())
	require.ErrorContains(t, err, "services.web.privileged")
	require.NotContains(t, err.Error(), "ipc")
	p, err := Load(dir, Environ(), Override(filepath.Join(dir, "over.yaml")))
	require.NoError(t, err)
	require.Equal(t, []string{"web"}, p.Services())
}

// A project of several files comes up.
func TestRootlessReferences(t *testing.T) {
	r := up(t, project(t, map[string]string{
		"compose.yaml":      "include: [part/compose.yaml]\nservices:\n  front: {extends: {file: part/base.yaml, service: web}, image: ./busybox.tar, command: get back 80 /greeting, depends_on: [back]}\n",
		"part/base.yaml":    "services: {web: {image: ../busybox.tar, volumes: ['./www:/www:ro'], stop_signal: KILL}}\n",
		"part/compose.yaml": "services:\n  back: {extends: {file: base.yaml, service: web}, command: httpd -f -p 80 -h /www, healthcheck: {test: get localhost 80 /greeting, interval: 1s}}\n",
		"part/www/greeting": "hello\n",
	}))
	require.NoError(t, r.Ready())
	logged(t, r, "front", "hello")
	testkit.Eventually(t, "the end of front", func() bool { return r.Status()[1].State == Ended })
	require.NoError(t, r.Close())
}
