//go:build linux

package image

import (
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/cell"
	"github.com/cellkit/sandbox/internal/testkit"
)

// program is a static busybox.
func program(t testing.TB) string { return string(testkit.Busybox(t)) }

// shell is a layer with busybox's applets in /bin, and nothing else.
func shell(t testing.TB) []byte {
	files := []file{{name: "bin/"}, {name: "bin/busybox", content: program(t), mode: 0o755}}
	for _, applet := range strings.Fields("sh ls cat id stat env pwd find echo touch readlink sort test mkdir rm mv chown chmod ln su setpriv tail grep printf whoami hostname wc head dirname") {
		files = append(files, file{name: "bin/" + applet, link: "busybox"})
	}
	return tarOf(t, files...)
}

func volumes(dirs ...string) map[string]struct{} {
	set := map[string]struct{}{}
	for _, dir := range dirs {
		set[dir] = struct{}{}
	}
	return set
}

const appPasswd = "root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002:app:/home/app:/bin/sh\npostgres:x:70:70::/var/lib/postgresql:/bin/sh\nnginx:x:101:101::/nonexistent:/bin/false\nnode:x:1000:1000::/home/node:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"

func etc(more ...file) []file {
	return append([]file{{name: "etc/"}, {name: "etc/passwd", content: appPasswd}, {name: "etc/group", content: "root:x:0:\napp:x:1002:\nlog:x:55:app\nwheel:x:10:root,app\nnobody:x:65534:\n"}}, more...)
}

// imageShape is an image of a kind that exists: a shell, if it has a script, and a layer.
type imageShape struct {
	name   string
	config v1.Config
	files  []file
	script string // instead of the image's own command
	want   string // its output and errors
	opts   []sandbox.Option
	owners bool // takes files that keep their owners
	fails  bool
}

// dockerCaps are the capabilities, among those that Docker gives to all, that images need which
// start as root and go on as another user.
var dockerCaps = sandbox.WithCapabilities("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID")

func imageShapes() []imageShape {
	return []imageShape{
		{name: "an image without a shell", config: v1.Config{Entrypoint: []string{"/app/tool", "echo", "hi"}}, files: []file{{name: "app/tool", link: "/bin/busybox"}}, want: "tool: applet not found", fails: true},
		{name: "entry point and command", config: v1.Config{Entrypoint: []string{"echo", "a"}, Cmd: []string{"b", "c"}}, files: []file{{name: "x"}}, want: "a b c"},
		{name: "command only", config: v1.Config{Cmd: []string{"sh", "-c", "echo $0 $*", "x", "y"}}, files: []file{{name: "x"}}, want: "x y"},
		{name: "entry point of another directory", config: v1.Config{Entrypoint: []string{"./run"}, WorkingDir: "/srv"}, files: []file{{name: "srv/run", content: "#!/bin/sh\npwd\n", mode: 0o755}}, want: "/srv"},
		{name: "fields that say nothing here", config: v1.Config{Cmd: []string{"echo", "ok"}, StopSignal: "SIGQUIT", Healthcheck: &v1.HealthConfig{Test: []string{"NONE"}}, Shell: []string{"/no"},
			ExposedPorts: volumes("80/tcp"), Labels: map[string]string{"a": "b"}, OnBuild: []string{"RUN x"}, Hostname: "h", Domainname: "d", AttachStdin: true, Tty: true}, files: []file{{name: "x"}}, want: "ok"},

		// The environment.
		{name: "no /etc", script: "echo $HOME $USER $(id -u):$(id -g)", files: []file{{name: "x"}}, want: "/ 0 0:0"},
		{name: "root's", script: "echo $HOME $USER $PATH", files: etc(), want: "/root root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{name: "a user's", script: "echo $HOME $USER $(id -u):$(id -g) $(whoami)", config: v1.Config{User: "app"}, files: etc(), want: "/home/app app 1001:1002 app"},
		{name: "the image's own HOME", script: "echo $HOME $USER", config: v1.Config{User: "app", Env: []string{"HOME=/x", "USER=y"}}, files: etc(), want: "/x y"},
		{name: "a caller's HOME", script: "echo $HOME", config: v1.Config{Env: []string{"HOME=/x"}}, opts: []sandbox.Option{sandbox.WithEnv("HOME=/mine")}, files: etc(), want: "/mine"},
		{name: "entries without a value", script: "env | sort | grep -v '^PWD\\|^SHLVL\\|^LANG\\|^PATH'", config: v1.Config{Env: []string{"EMPTY=", "NONE", "=x", "", "A=b=c", "A=d"}}, files: etc(), want: "A=d\nEMPTY=\nHOME=/root\nUSER=root"},
		{name: "HOME that is a file", script: "echo $HOME; test -f $HOME", config: v1.Config{User: "1001"}, files: etc(file{name: "home/app", content: "x"}), want: "/home/app"},
		{name: "HOME that is not there", script: "test ! -e $HOME && echo $HOME", config: v1.Config{User: "app"}, files: etc(), want: "/home/app"},

		// Users.
		{name: "nobody", script: "echo $(id -u):$(id -g) $(whoami)", config: v1.Config{User: "nobody"}, files: etc(), want: "65534:65534 nobody"},
		{name: "nobody's files", script: "echo x >/data/f && stat -c %u /data /data/f", config: v1.Config{User: "65534:65534"}, files: etc(file{name: "data/", uid: 65534}), want: "65534\n65534", owners: true},
		{name: "nobody's working directory", script: "echo x >f && pwd", config: v1.Config{User: "nobody", WorkingDir: "/data/deep"}, files: etc(file{name: "data/", uid: 65534}), want: "/data/deep"},
		{name: "a number that has no name", script: "echo $(id -u):$(id -g) $HOME $USER", config: v1.Config{User: "5555"}, files: etc(), want: "5555:0 / 5555"},
		{name: "the largest number", script: "echo x >f && stat -c %u:%g f . && id -u", config: v1.Config{User: "4294967294:4294967294", WorkingDir: "/big"}, files: []file{{name: "big/", uid: 4294967294}}, want: "65533:65533\n65533:65533\n65533"},
		{name: "OpenShift's numbers", script: "echo x >f && id -u", config: v1.Config{User: "1000680000", WorkingDir: "/data"}, files: []file{{name: "data/", uid: 1000680000}}, want: "65533"},
		{name: "groups", script: "id -G", config: v1.Config{User: "app"}, files: etc(), want: "1002 10 55", owners: true},
		{name: "a group's file", script: "cat /var/log/secret", config: v1.Config{User: "app"}, files: etc(file{name: "var/log/"}, file{name: "var/log/secret", content: "secret", uid: 55, mode: 0o640}), want: "secret", owners: true},
		{name: "no groups with a group", script: "id -G", config: v1.Config{User: "app:app"}, files: etc(), want: "1002"},
		{name: "groups of another user", script: "id -G", config: v1.Config{User: "app"}, opts: []sandbox.Option{sandbox.WithUser(7, 8)}, files: etc(), want: "8"},

		// Directories.
		{name: "scratch's working directory", script: "pwd; echo x >f; stat -c %u .", config: v1.Config{User: "33", WorkingDir: "/a/b/c"}, files: []file{{name: "x"}}, want: "/a/b/c\n33"},
		{name: "relative working directory", script: "pwd; touch f", config: v1.Config{User: "33", WorkingDir: "a/../b"}, files: []file{{name: "x"}}, want: "/b"},
		{name: "working directory of dots", script: "pwd", config: v1.Config{WorkingDir: "../.."}, files: []file{{name: "x"}}, want: "/"},
		{name: "working directory behind a link", script: "pwd; touch f; ls /real/app", config: v1.Config{User: "app", WorkingDir: "/app"}, files: etc(file{name: "real/app/", uid: 1001}, file{name: "app", link: "/real/app"}), want: "/real/app\nf"},
		{name: "working directory that is to be behind a link", script: "pwd; touch f", config: v1.Config{User: "app", WorkingDir: "/app/x"}, files: etc(file{name: "app", link: "/nowhere"}), want: "/app/x"},
		{name: "working directory in /tmp", script: "pwd; touch f; stat -c %u .", config: v1.Config{User: "33", WorkingDir: "/tmp/build/x"}, files: []file{{name: "x"}}, want: "/tmp/build/x\n33"},
		{name: "working directory in a scratch of the caller", script: "pwd; touch f", config: v1.Config{User: "33", WorkingDir: "/w/x"}, opts: []sandbox.Option{sandbox.WithTmpfs("/w", sandbox.MiB)}, files: []file{{name: "x"}}, want: "/w/x"},
		{name: "a user's working directory", script: "cat code >copy; echo y >>code; rm old; mkdir new; ls", config: v1.Config{User: "1001", WorkingDir: "/app"},
			files: etc(file{name: "app/", uid: 1001}, file{name: "app/code", content: "x", uid: 1001}, file{name: "app/old", content: "x", uid: 1001}), want: "code\ncopy\nnew", owners: true},
		{name: "new files in the working directory", script: "cat code >copy; mkdir new; ls", config: v1.Config{User: "app", WorkingDir: "/app"}, files: etc(file{name: "app/", uid: 1001}, file{name: "app/code", content: "x", uid: 1001}), want: "code\ncopy\nnew"},
		{name: "root's working directory", script: "touch f 2>/dev/null || echo no", config: v1.Config{User: "app", WorkingDir: "/app"}, files: etc(file{name: "app/"}), want: "no", owners: true},
		{name: "volumes", script: "for d in /data /var/lib/x /vol/deep; do echo x >$d/f && cat $d/f; done; cat /data/seed", config: v1.Config{User: "app", Volumes: volumes("/data", "/var/lib/x/", "vol/deep", "/", "/proc/x", "/dev/x")},
			files: etc(file{name: "data/", uid: 1001}, file{name: "data/seed", content: "seed", uid: 1001}), want: "x\nx\nx\nseed"},
		{name: "a volume that is a file", script: "cat /etc/conf", config: v1.Config{Volumes: volumes("/etc/conf")}, files: etc(file{name: "etc/conf", content: "c"}), want: "c"},
		{name: "a volume in another", script: "touch /a/f /a/b/f; ls /a", config: v1.Config{User: "app", Volumes: volumes("/a", "/a/b")}, files: etc(), want: "b\nf"},
		{name: "a volume of the caller", script: "touch /data/f; stat -fc %s%T /data | tail -c 6", config: v1.Config{User: "app", Volumes: volumes("/data")}, opts: []sandbox.Option{sandbox.WithTmpfs("/data", sandbox.MiB)}, files: etc(), want: "tmpfs"},

		// Links where others have files.
		{name: "passwd as an absolute link", script: "echo $HOME; id -u", config: v1.Config{User: "app"}, files: append(etc()[:1], file{name: "usr/etc/passwd", content: appPasswd}, file{name: "etc/passwd", link: "/usr/etc/passwd"}), want: "/home/app\n1001"},
		{name: "/tmp as a link", script: "echo x >/tmp/f; cat /var/tmp/f", config: v1.Config{User: "app"}, files: etc(file{name: "var/tmp/", mode: 0o1777}, file{name: "tmp", link: "var/tmp"}), want: "x"},
		{name: "/var/run as a link", script: "touch /var/run/pid; ls /run", files: etc(file{name: "run/"}, file{name: "var/"}, file{name: "var/run", link: "/run"}), want: "pid", owners: true},
		{name: "resolv.conf as a link", script: "readlink /etc/resolv.conf; grep -c 'no network' /etc/resolv.conf", files: etc(file{name: "etc/resolv.conf", link: "../run/systemd/resolve/stub-resolv.conf"}), want: "1"},
		{name: "merged /usr", script: "/sbin/tool; readlink /sbin", files: []file{{name: "sbin", link: "usr/sbin"}, {name: "usr/sbin/tool", content: "#!/bin/sh\necho tool\n", mode: 0o755}}, want: "tool\nusr/sbin"},
		{name: "nothing but a store", config: v1.Config{Cmd: []string{"/nix/store/1-tool/bin/tool"}, Env: []string{"PATH=/nix/store/1-tool/bin"}},
			files: []file{{name: "nix/store/2-sh/bin/sh", link: "/bin/sh"}, {name: "nix/store/1-tool/bin/tool", content: "#!/nix/store/2-sh/bin/sh\necho nix\n", mode: 0o755}}, want: "nix"},
		{name: "/home as a link", script: "ls -d /home/sandbox; ls -d /var/home", files: etc(file{name: "home", link: "var/home"}, file{name: "var/home/"}), want: "/home/sandbox\n/var/home"},

		// Services.
		{name: "postgres", config: v1.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"postgres"}, Volumes: volumes("/var/lib/postgresql/data"), Env: []string{"PGDATA=/var/lib/postgresql/data"}}, opts: []sandbox.Option{dockerCaps},
			files: etc(file{name: "entry", mode: 0o755, content: "#!/bin/sh\nset -e\nif [ $(id -u) = 0 ]; then mkdir -p $PGDATA; chown -R postgres $PGDATA; chmod 700 $PGDATA; exec su postgres -c \"$0 $*\"; fi\ntouch $PGDATA/x; echo $1 $(id -un) $(stat -c %u:%a $PGDATA)\n"}), want: "postgres postgres 70:700", owners: true},
		{name: "postgres without capabilities", config: v1.Config{Volumes: volumes("/data")}, script: "chown postgres /data", files: etc(file{name: "data/"}), want: "Operation not permitted", fails: true, owners: true},
		{name: "nginx", config: v1.Config{Cmd: []string{"sh", "-c", "mkdir -p /var/cache/nginx/client && echo 1 >/var/run/nginx.pid && ls /var/run /var/cache/nginx && readlink /var/log/nginx/access.log"}},
			files: etc(file{name: "var/cache/nginx/"}, file{name: "run/"}, file{name: "var/run", link: "/run"}, file{name: "var/log/nginx/access.log", link: "/dev/stdout"}, file{name: "var/log/nginx/error.log", link: "/dev/stderr"}),
			want:  "/var/cache/nginx:\nclient\n\n/var/run:\nnginx.pid\n/dev/stdout", owners: true},
		{name: "node", config: v1.Config{User: "node", WorkingDir: "/home/node/app", Cmd: []string{"sh", "-c", "mkdir node_modules && echo $HOME $USER && touch ~/.npmrc && pwd"}}, files: etc(file{name: "home/node/", uid: 1000, mode: 0o700}), want: "/home/node node\n/home/node/app", owners: true},
		{name: "tomcat", config: v1.Config{WorkingDir: "/usr/local/tomcat", Env: []string{"CATALINA_HOME=/usr/local/tomcat", "PATH=/usr/local/tomcat/bin:/bin"}, Cmd: []string{"catalina.sh", "run"}},
			files: etc(file{name: "usr/local/tomcat/"}, file{name: "usr/local/tomcat/bin/catalina.sh", content: "#!/bin/sh\necho log >$CATALINA_HOME/logs/out && cat logs/out\n", mode: 0o755}, file{name: "usr/local/tomcat/logs/"}), want: "log", owners: true},
		{name: "setpriv", script: "setpriv --reuid 1001 --regid 1002 --clear-groups id -u 2>/dev/null || su app -c 'id -u'", opts: []sandbox.Option{dockerCaps}, files: etc(), want: "1001", owners: true},
		{name: "removes and replaces its own files", script: "rm -r /opt/a && mkdir /opt/a && echo new >/opt/a/f && mv /etc/conf /etc/old && ls /opt/a && cat /etc/old", files: etc(file{name: "opt/a/old", content: "x"}, file{name: "etc/conf", content: "c"}), want: "f\nc", owners: true},
	}
}

// Images of kinds that exist run.
func TestRootlessShapes(t *testing.T) {
	needWhiteouts(t)
	store, base := newStore(t), shell(t)
	shapes := imageShapes()
	require.Greater(t, len(shapes), 30)
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			if s.owners && !cell.WideIDs() {
				t.Log("files have one owner here: docs/IMAGES.md")
				return
			}
			img := open(t, store, layoutOf(t, imageOf(t, s.config, asPlain(t, base), asPlain(t, tarOf(t, s.files...)))))
			command := img.Command()
			if s.script != "" {
				command = sandbox.WithCommand("/bin/sh", "-c", s.script)
			}
			out, err := sandbox.New(img.Options()...).With(command).With(s.opts...).CombinedOutput(t.Context())
			if s.fails {
				require.Error(t, err)
				require.Contains(t, string(out), s.want)
				return
			}
			require.NoError(t, err, "%s", out)
			require.Equal(t, s.want, strings.TrimSpace(string(out)))
		})
	}
}

// An image of one static program, with no directory at all.
func TestRootlessScratchImage(t *testing.T) {
	needWhiteouts(t)
	img := open(t, newStore(t), layoutOf(t, imageOf(t, v1.Config{Entrypoint: []string{"/busybox"}, Cmd: []string{"ls", "/"}, User: "65532:65532"}, asPlain(t, tarOf(t, file{name: "busybox", content: program(t), mode: 0o755})))))
	out, err := sandbox.New(img.Options()...).With(img.Command()).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "busybox\ndev\netc\nhome\nproc\nsys\ntmp\n", string(out))
	out, err = sandbox.New(img.Options()...).With(img.Command("id", "-u")).Output(t.Context())
	require.NoError(t, err)
	require.Equal(t, "65532\n", string(out))
}

// Errors name the field of the image that is wrong, and an option of the caller's fixes it.
func TestRootlessImageErrors(t *testing.T) {
	store, base := newStore(t), shell(t)
	files := asPlain(t, tarOf(t, etc(file{name: "srv", content: "x"}, file{name: "private/", mode: 0o700, uid: 7})...))
	for _, test := range []struct {
		config v1.Config
		opts   []sandbox.Option
		want   string // "" if nothing is wrong
	}{
		{v1.Config{User: "stranger"}, nil, `sandbox: image REF: config field User: stranger: there is no such user in the image's /etc/passwd: use WithUser`},
		{v1.Config{User: "app:strangers"}, nil, `sandbox: image REF: config field User: app:strangers: there is no such group in the image's /etc/group: use WithUser`},
		{v1.Config{User: "stranger"}, []sandbox.Option{sandbox.WithUser(1, 1)}, ""},
		{v1.Config{User: "4294967295"}, nil, "config field User: 4294967295: there is no such user"},
		{v1.Config{WorkingDir: "/srv"}, nil, "sandbox: image REF: config field WorkingDir: "},
		{v1.Config{WorkingDir: "/srv"}, []sandbox.Option{sandbox.WithDir("/")}, ""},
		{v1.Config{WorkingDir: "/srv"}, []sandbox.Option{sandbox.WithDir("/srv")}, "sandbox: WithDir: "},
		{v1.Config{}, []sandbox.Option{sandbox.WithUser(-1, 0)}, "sandbox: WithUser: -1:0"},
		{v1.Config{}, []sandbox.Option{sandbox.WithoutUserNamespace()}, "sandbox: image REF: config field User: : 0:0: with WithoutUserNamespace that is the host's root, who owns its files: use WithUser of other ids"},
	} {
		ref := layoutOf(t, imageOf(t, test.config, asPlain(t, base), files))
		img := open(t, store, ref)
		_, err := sandbox.New(img.Options()...).With(sandbox.WithCommand("/bin/echo")).With(test.opts...).Run(t.Context())
		if test.want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, strings.ReplaceAll(test.want, "REF", ref))
			require.NotContains(t, err.Error(), "\n")
		}
	}
	ref := layoutOf(t, imageOf(t, v1.Config{}, asPlain(t, base), files))
	img := open(t, store, ref)
	_, err := sandbox.New(img.Options()...).With(img.Command()).Run(t.Context())
	require.EqualError(t, err, "sandbox: image "+ref+": config fields Entrypoint and Cmd are empty: name a command")
	require.Equal(t, "WithCommand", wrongOption(t, err), "what to use instead")
	_, err = sandbox.New(img.Options()...).With(img.Command("/bin/echo"), sandbox.WithoutUserNamespace()).Run(t.Context())
	require.Equal(t, "WithUser", wrongOption(t, err))
	_, err = sandbox.New(img.Options()...).With(img.Command(), sandbox.WithCommand("/bin/echo")).Run(t.Context())
	require.NoError(t, err)
}

func wrongOption(t *testing.T, err error) string {
	t.Helper()
	var wrong *sandbox.OptionError
	require.ErrorAs(t, err, &wrong)
	return wrong.Option
}

// Open refuses configurations that no run could have.
func TestAttackConfig(t *testing.T) {
	store := newStore(t)
	layer := asPlain(t, tarOf(t, file{name: "x"}))
	long, many := strings.Repeat("x", 200_000), map[string]struct{}{}
	for i := range 65 {
		many["/"+strings.Repeat("v", i+1)] = struct{}{}
	}
	for want, config := range map[string]v1.Config{
		`config field Env: "A=\x00" contains a zero byte`:               {Env: []string{"A=\x00"}},
		`config field Entrypoint: "\x00" contains a zero byte`:          {Entrypoint: []string{"\x00"}},
		`config field Cmd: "x\x00" contains a zero byte`:                {Cmd: []string{"x\x00"}},
		`config field User: "\x00" contains a zero byte`:                {User: "\x00"},
		`config field WorkingDir: "/x\x00" contains a zero byte`:        {WorkingDir: "x\x00"},
		`config field Volumes: "\x00" contains a zero byte`:             {Volumes: volumes("\x00")},
		`200002 bytes are more than 131071`:                             {Env: []string{"A=" + long}},
		`config field WorkingDir: "/xxx`:                                {WorkingDir: long},
		`config field Volumes: "/xxx`:                                   {Volumes: volumes("/" + long)},
		`config field Cmd: with it, strings have more than`:             {Cmd: strings.Split(strings.Repeat(strings.Repeat("x", 100_000)+" ", 11), " ")},
		`config field Volumes: 65 directories, at most 64 are possible`: {Volumes: many},
	} {
		ref := layoutOf(t, imageOf(t, config, layer))
		_, err := Open(t.Context(), ref, WithStore(store))
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "image: "+ref+": config field ")
		requireEmpty(t, store)
	}
	var layers []v1.Layer
	for range 65 {
		layers = append(layers, layer)
	}
	_, err := Open(t.Context(), layoutOf(t, imageOf(t, v1.Config{}, layers...)), WithStore(store))
	require.ErrorContains(t, err, "the manifest has 65 layers, at most 64 are possible")
	requireEmpty(t, store)
}

// LeftOut lists the device nodes that were left out, also of layers that were already in the store.
func TestLeftOut(t *testing.T) {
	store := newStore(t)
	dir := layoutOf(t, imageOf(t, v1.Config{}, asPlain(t, tarOf(t, append(kinds('3', "dev/null", "opt/sda"), kinds('4', "/b")...)...))))
	for range 2 {
		require.Equal(t, []string{"/opt/sda", "/b"}, open(t, store, dir).LeftOut())
	}
}
