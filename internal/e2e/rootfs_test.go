//go:build linux

package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func TestHostRootfs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	secret := testkit.OpenDir(t) + "/secret"
	testkit.WriteFile(t, secret, "secret", 0o644)
	for script, want := range map[string]string{
		"ls /home":                           "sandbox",
		"ls -A ~ /tmp /run":                  "/home/sandbox:\n\n/run:\n\n/tmp:",
		"ls /var | grep -vx -e lib -e cache": "run\ntmp",
		"ls -d /root /srv /mnt /opt /media /boot /efi /etc/shadow /etc/ssh " + secret + " 2>/dev/null": "",
		"head -1 /etc/passwd; id -un; id -u; echo ~; grep -c . /etc/passwd":                            "root:x:0:0:root:/:/bin/sh\nsandbox\n1000\n/home/sandbox\n3",
		"cat /etc/hostname; cat /etc/resolv.conf; cat /etc/nsswitch.conf":                              "sandbox\n# no network\noptions timeout:1 attempts:1\npasswd: files\ngroup: files\nhosts: files dns",
		"stat -c '%a %U %F' / /usr /etc /tmp /home/sandbox /dev/shm": "755 nobody directory\n755 nobody directory\n755 nobody directory\n" +
			"1777 sandbox directory\n700 sandbox directory\n1777 sandbox directory",
	} {
		got := strings.ReplaceAll(runs.Output(t, runs.Shell(script+"; true")), "755 root", "755 nobody")
		require.Equal(t, want, got, script)
	}
	for _, dir := range []string{"/", "/usr", "/etc", "/etc/ssl/certs", "/bin", "/home", "/var", "/run", "/dev", "/proc", "/sys"} {
		require.Equal(t, "refused", runs.Output(t, runs.Shell("touch "+dir+"/x 2>/dev/null || echo refused")), dir)
		require.Equal(t, "refused", runs.Output(t, runs.Shell("touch "+dir+"/x 2>/dev/null || echo refused", sandbox.WithUser(0, 0))), dir)
	}
	_, err := runs.Shell("cat /etc/passwd >~/x && echo >>/tmp/x && echo >>/dev/shm/x && test ! -w /etc/passwd").Run(testkit.Deadline(t))
	require.NoError(t, err)
}

func TestDirRootfs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	testkit.Need(t, "root")
	all := []string{"/proc", "/dev", "/tmp", "/home/sandbox"}
	for name, prepare := range map[string]func(root string) error{
		"with mount points":    func(root string) error { return testkit.Mkdirs(root, all...) },
		"without mount points": func(string) error { return nil },
		"some mount points":    func(root string) error { return testkit.Mkdirs(root, "/proc", "/tmp") },
		"symlinked tmp": func(root string) error {
			return join(testkit.Mkdirs(root, "/var/tmp", "/proc", "/dev"), os.Symlink("/var/tmp", root+"/tmp"))
		},
		"dangling tmp":    func(root string) error { return os.Symlink("/no/such/place", root+"/tmp") },
		"tmp to the host": func(root string) error { return os.Symlink("../../../../../../tmp", root+"/tmp") },
		"symlinked dev": func(root string) error {
			return join(testkit.Mkdirs(root, "/elsewhere"), os.Symlink("elsewhere", root+"/dev"))
		},
		"symlinked proc": func(root string) error {
			return join(testkit.Mkdirs(root, "/elsewhere"), os.Symlink("/elsewhere", root+"/proc"))
		},
		"dev is a file":  func(root string) error { return os.WriteFile(root+"/dev", nil, 0o644) },
		"proc to itself": func(root string) error { return os.Symlink("proc", root+"/proc") },
		"tmp is a file":  func(root string) error { return os.WriteFile(root+"/tmp", nil, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := testkit.BusyboxRoot(t)
			require.NoError(t, prepare(root))
			before := testkit.Tree(t, root)
			base := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)))
			probe := base.With(sandbox.WithCommand("sh", "-c", "set -e; touch /tmp/x ~/x /dev/shm/x; echo >/dev/null; "+
				"cat /proc/1/comm; touch /bin/x 2>/dev/null || echo refused; pwd"))
			for range 2 {
				out, err := probe.Output(testkit.Deadline(t))
				switch name {
				case "tmp is a file":
					runs.SetupError(t, err, "WithTmpfs /tmp")
				case "symlinked dev", "symlinked proc":
					runs.SetupError(t, err, "WithRootfs: make it a directory")
				case "dev is a file":
					runs.SetupError(t, err, "WithRootfs: proc and dev must be directories")
				default:
					require.NoError(t, err)
					require.Equal(t, "sandbox-init\nrefused\n/home/sandbox\n", string(out))
				}
				probe = probe.With(sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithCommand("sh", "-c",
					"set -e; touch /tmp/x ~/x /dev/shm/x; echo >/dev/null; cat /proc/1/comm; touch /x; mkdir /d; touch /d/x; echo refused; pwd"))
			}
			require.Equal(t, before, testkit.Tree(t, root), "the directory was changed")
		})
	}
	_, err := runs.Shell("", sandbox.WithRootfs(sandbox.DirRootfs("/no/such/dir"))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithRootfs")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = runs.Shell("", sandbox.WithRootfs(sandbox.DirRootfs("/etc/passwd"))).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "not a directory")
}

// A mount point below a directory that exists leaves that directory's permissions as they are.
func TestDirRootfsKeepsPermissions(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	testkit.Need(t, "root")
	root := testkit.BusyboxRoot(t, "/open", "/half")
	require.NoError(t, os.Chmod(root+"/open", 0o777|os.ModeSticky))
	require.NoError(t, os.Chmod(root+"/half", 0o751))
	s := sandbox.New(sandbox.WithRootfs(sandbox.DirRootfs(root)), sandbox.WithTmpfs("/open/a/b", sandbox.MiB),
		sandbox.WithTmpfs("/half/a", sandbox.MiB), sandbox.WithCommand("stat", "-c", "%a", "/open", "/half", "/open/a"))
	require.Equal(t, "1777\n751\n755", runs.Output(t, s))
	require.Equal(t, "1777\n751\n755", runs.Output(t, s.With(sandbox.WithWritableRoot(sandbox.MiB))))
}

func join(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ownedDir returns a directory that, with everything in it, belongs to user 1234 only.
func ownedDir(t *testing.T) string {
	t.Helper()
	dir := testkit.OpenDir(t) + "/source"
	require.NoError(t, testkit.Mkdirs(dir, "/below/deep"))
	testkit.WriteFile(t, dir+"/file", "content", 0o600)
	testkit.WriteFile(t, dir+"/below/file", "below", 0o600)
	for _, path := range append(testkit.Tree(t, dir), dir) {
		require.NoError(t, os.Chown(path, 1234, 4321))
	}
	require.NoError(t, os.Chmod(dir, 0o700))
	return dir
}

func owner(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// TestRootlessMountBehindLink mounts at and behind /var/run and /var/tmp, which are links in a root
// in memory, as programs and people name either path. What is mounted at a link's path, or at /var,
// is there alone.
func TestRootlessMountBehindLink(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "user namespaces")
	dir := testkit.OpenDir(t)
	testkit.WriteFile(t, dir+"/file", "content", 0o644)
	for _, hidden := range []string{dir + "/run/hidden", dir + "/tmp/hidden"} {
		require.NoError(t, os.MkdirAll(hidden, 0o755))
		testkit.WriteFile(t, hidden+"/file", "hidden", 0o644)
	}
	with := map[string][]sandbox.Option{"HostRootfs": nil}
	if testkit.Kernel(5, 11) {
		with["writable"] = []sandbox.Option{sandbox.WithWritableRoot(sandbox.MiB)}
	}
	for name, opts := range with {
		t.Run(name, func(t *testing.T) {
			for link, target := range map[string]string{"/var/run": "/run", "/var/tmp": "/tmp"} {
				require.Equal(t, target, runs.Output(t, runs.Shell("readlink "+link).With(opts...)))
				for dst, show := range map[string][2]string{"/below": {"/below/file", "content"}, "/one/two": {"/one/two/file", "content"}, "": {"/file", "content"}} {
					at := sandbox.WithReadOnlyBind(dir, link+dst)
					require.Equal(t, show[1], runs.Output(t, runs.Shell("cat "+link+show[0], at).With(opts...)))
					other := "present"
					if dst == "" {
						other = "absent"
					}
					require.Equal(t, other, runs.Output(t, runs.Shell("test -e "+target+show[0]+" && echo present || echo absent", at).With(opts...)))
				}
				require.Equal(t, "own", runs.Output(t, runs.Shell("cat "+target+"/x/file", sandbox.WithFile(link+"/x/file", []byte("own"), 0o644)).With(opts...)))
				require.Equal(t, "made", runs.Output(t, runs.Shell("echo made >"+target+"/x/f && cat "+link+"/x/f", sandbox.WithTmpfs(link+"/x", sandbox.MiB)).With(opts...)))
				// What is mounted at /var has no such links, and what is mounted on it hides what it has.
				require.Equal(t, "above\nabsent", runs.Output(t, runs.Shell("cat "+link+"/x; test -e "+target+"/x && echo present || echo absent",
					sandbox.WithTmpfs("/var", sandbox.MiB), sandbox.WithFile(link+"/x", []byte("above\n"), 0o644)).With(opts...)))
				require.Empty(t, runs.Output(t, runs.Shell("ls -A "+link+"/hidden", sandbox.WithReadOnlyBind(dir, "/var"), sandbox.WithTmpfs(link+"/hidden", sandbox.MiB)).With(opts...)))
			}
		})
	}
}

func TestBind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	dir := ownedDir(t)
	for _, user := range []int{1000, 0, 65533} {
		out := runs.Output(t, runs.Shell("cat file below/file; stat -c ' %u:%g %a' . file; echo new >new; mkdir made; touch made/file; stat -c '%u:%g' new made; rm -r new2 2>/dev/null; true",
			sandbox.WithBind(dir, "/data"), sandbox.WithDir("/data"), sandbox.WithUser(user, user)))
		require.Equal(t, strings.ReplaceAll("contentbelow U:U 700\n U:U 600\nU:U\nU:U", "U", fmt.Sprint(user)), out)
		for _, name := range []string{"/new", "/made", "/made/file"} {
			require.Equal(t, "1234:4321", owner(t, dir+name))
		}
		require.NoError(t, os.RemoveAll(dir+"/made"))
		require.NoError(t, os.Remove(dir+"/new"))
	}

	require.Equal(t, "content\nrefused", runs.Output(t, runs.Shell("cat file; echo; echo >>file || echo refused",
		sandbox.WithReadOnlyBind(dir, "/data"), sandbox.WithDir("/data"))))
	require.Equal(t, "contentadded", runs.Output(t, runs.Shell("printf added >>/etc/data; cat /etc/data", sandbox.WithBind(dir+"/file", "/etc/data"))))
	require.Equal(t, "contentadded", runs.Output(t, runs.Shell("cat /etc/hosts", sandbox.WithReadOnlyBind(dir+"/file", "/etc/hosts"))))

	// Files of others, root's among them, belong to nobody and are protected.
	testkit.WriteFile(t, dir+"/others", "others", 0o600)
	require.Equal(t, "65534:65534 refused", runs.Output(t, runs.Shell("printf '%s ' $(stat -c %u:%g others); cat others 2>/dev/null || echo refused",
		sandbox.WithBind(dir, "/data"), sandbox.WithDir("/data"))))

	// Set-uid bits and device nodes have no effect.
	require.NoError(t, syscall.Mknod(dir+"/null", syscall.S_IFCHR|0o666, 1<<8|3))
	require.NoError(t, os.Chown(dir+"/null", 1234, 4321))
	require.Equal(t, "refused", runs.Output(t, runs.Shell("echo >/data/null || echo refused", sandbox.WithBind(dir, "/data"))))
	require.Contains(t, runs.Output(t, runs.Shell("grep ' /data ' /proc/self/mountinfo", sandbox.WithBind(dir, "/data"))), "nosuid,nodev")

	_, err := runs.Shell("", sandbox.WithBind(dir+"/none", "/data")).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithBind")
	require.ErrorIs(t, err, fs.ErrNotExist)
	runs.SetupError(t, errOf(runs.Shell("", sandbox.WithBind(dir, "/usr/no-such-dir")).Run(testkit.Deadline(t))), "/usr/no-such-dir")
	runs.SetupError(t, errOf(runs.Shell("", sandbox.WithBind(dir, "/etc/passwd")).Run(testkit.Deadline(t))), "WithBind /etc/passwd")
}

func errOf(_ *sandbox.Result, err error) error { return err }

func TestNestedMounts(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped tmpfs")
	outer, inner := ownedDir(t), ownedDir(t)
	require.NoError(t, testkit.Mkdirs(inner, "/deep"))
	require.NoError(t, os.WriteFile(inner+"/inner", nil, 0o644))
	out := runs.Output(t, runs.Shell("ls /data /data/below; touch /data/below/made /data/below/deep/made; cat /data/below/deep/note",
		sandbox.WithBind(outer, "/data"),
		sandbox.WithBind(inner, "/data/below"),
		sandbox.WithTmpfs("/data/below/deep", sandbox.MiB),
		sandbox.WithFile("/data/below/deep/note", []byte("note"), 0o644)))
	require.Equal(t, "/data:\nbelow\nfile\n\n/data/below:\nbelow\ndeep\nfile\ninner\nnote", out)
	require.Equal(t, "1234:4321", owner(t, inner+"/made"))
	require.NoFileExists(t, outer+"/below/made")
	require.NoFileExists(t, inner+"/deep/note")

	// A bind shows what is mounted below its source.
	c, err := sandbox.NewCell()
	require.NoError(t, err)
	defer c.Close()
	mounted := ownedDir(t)
	require.NoError(t, syscall.Mount(inner, mounted+"/below", "", syscall.MS_BIND, ""))
	defer func() { require.NoError(t, syscall.Unmount(mounted+"/below", syscall.MNT_DETACH)) }()
	out = runs.Output(t, runs.Shell("ls /data/below; 2>/dev/null touch /data/below/x || echo refused", sandbox.WithCell(c), sandbox.WithReadOnlyBind(mounted, "/data")))
	require.Equal(t, "below\ndeep\nfile\ninner\nmade\nrefused", out)
}

func TestUnmappableBind(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	err := errOf(runs.Shell("", sandbox.WithBind("/proc/sys/kernel", "/data")).Run(testkit.Deadline(t)))
	setup := runs.SetupError(t, err, "idmapped")
	require.Equal(t, "WithBind", setup.Stage)
	require.NotEmpty(t, setup.Hint)
	require.Equal(t, "Linux", runs.Output(t, runs.Shell("cat /data/ostype", sandbox.WithReadOnlyBind("/proc/sys/kernel", "/data"))))
}

func TestTmpfs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	require.Equal(t, "65536", runs.Output(t, runs.Shell("head -c 100000 /dev/zero >/data/x; stat -c %s /data/x", sandbox.WithTmpfs("/data", 64*sandbox.KiB))))
	out, err := runs.Shell("exec head -c 100000 /dev/zero >/tmp/x", sandbox.WithTmpfs("/tmp", 64*sandbox.KiB)).CombinedOutput(testkit.Deadline(t))
	runs.ExitError(t, err)
	require.Contains(t, string(out), "No space left on device")
	require.Equal(t, "1000:1000 755\n1000:1000 1777", runs.Output(t, runs.Shell("stat -c '%u:%g %a' /srv/data /tmp",
		sandbox.WithTmpfs("/srv/data", sandbox.MiB), sandbox.WithTmpfs("/tmp", sandbox.MiB))))
	require.Equal(t, "1000:1000\n0", runs.Output(t, runs.Shell("stat -c %u:%g /usr/share; ls /usr/share | wc -l", sandbox.WithTmpfs("/usr/share", sandbox.MiB))))
	for _, dst := range []string{"/", "/proc", "/proc/sys", "/dev", "/dev/pts"} {
		_, err := runs.Shell("", sandbox.WithTmpfs(dst, sandbox.MiB)).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "WithTmpfs", dst)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	testkit.Need(t, "root")
	big := strings.Repeat("0123456789abcdef", sandbox.MiB/16-100)
	files := sandbox.New(
		sandbox.WithFile("/tmp/a/b/c", []byte("in tmp"), 0o640),
		sandbox.WithFile("/home/sandbox/.profile", []byte("in home"), 0o600),
		sandbox.WithFile("/etc/app.conf", []byte("in etc"), 0o444),
		sandbox.WithFile("/etc/passwd", []byte("root:x:0:0::/:/bin/sh\nme:x:1000:1000::/home/sandbox:/bin/sh\n"), 0o644),
		sandbox.WithFile("/srv/app/run", []byte("#!/bin/sh\necho ran\n"), 0o755),
		sandbox.WithFile("/empty", nil, 0),
		sandbox.WithFile("/big", []byte(big), 0o644),
	)
	stat := "stat -c '%n %a %u:%g %s' /tmp/a/b/c ~/.profile /etc/app.conf /srv/app/run /empty"
	want := "/tmp/a/b/c 640 1000:1000 6\n/home/sandbox/.profile 600 1000:1000 7\n/etc/app.conf 444 1000:1000 6\n" +
		"/srv/app/run 755 1000:1000 19\n/empty 0 1000:1000 0\n"
	run := func(script string, opts ...sandbox.Option) string {
		return runs.Output(t, files.With(sandbox.WithCommand("sh", "-c", script)).With(opts...))
	}
	require.Equal(t, want+"in tmpin homein etcme\nran", run(stat+"; cat /tmp/a/b/c ~/.profile /etc/app.conf; id -un; /srv/app/run"))
	require.Equal(t, big, run("cat /big"))
	require.Equal(t, "replaced\nrefused\nrefused", run("echo replaced >/tmp/a/b/c; cat /tmp/a/b/c; (echo x >/srv/app/run) 2>/dev/null || echo refused; rm -f /etc/app.conf 2>/dev/null || echo refused"))
	require.Equal(t, want+"changed\nme", run(stat+"; echo changed >/srv/app/run; cat /srv/app/run; rm /etc/app.conf; test ! -e /etc/app.conf && id -un", sandbox.WithWritableRoot(4*sandbox.MiB)))

	// A file that does not fit is an error, never a part of it.
	for _, opts := range [][]sandbox.Option{
		{sandbox.WithTmpfs("/small", 64*sandbox.KiB), sandbox.WithFile("/small/file", []byte(big), 0o644)},
		{sandbox.WithWritableRoot(64 * sandbox.KiB), sandbox.WithFile("/srv/file", []byte(big), 0o644)},
	} {
		out, err := runs.Shell("stat -c %s /small/file /srv/file", opts...).Output(testkit.Deadline(t))
		runs.SetupError(t, err, "WithFile", "no space left")
		require.Empty(t, out)
	}
	for _, dst := range []string{"/usr/x", "/usr/bin/env/x"} {
		_, err := runs.Shell("", sandbox.WithFile(dst, nil, 0o644)).Run(testkit.Deadline(t))
		require.NotEmpty(t, runs.SetupError(t, err, dst).Stage)
	}
	for _, opts := range [][]sandbox.Option{
		{sandbox.WithFile("/a", nil, 0o644), sandbox.WithFile("/a/b", nil, 0o644)},
		{sandbox.WithReadOnlyBind("/usr", "/a"), sandbox.WithFile("/a/b", nil, 0o644)},
		{sandbox.WithTmpfs("/a", 1), sandbox.WithTmpfs("/a/", 1)},
	} {
		_, err := runs.Shell("", opts...).Run(testkit.Deadline(t))
		require.ErrorContains(t, err, "sandbox: With")
		require.ErrorContains(t, err, "/a")
	}
	_, err := runs.Shell("", sandbox.WithFile("/a", make([]byte, sandbox.MiB), 0o644), sandbox.WithFile("/b", []byte{0}, 0o644)).Run(testkit.Deadline(t))
	require.ErrorContains(t, err, "WithFile: 1048577 bytes together")
}

func TestWritableRoot(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "root")
	testkit.Need(t, "overlayfs for runs")
	mark := "sandbox-test-" + testkit.ALongTime()
	writable := sandbox.WithWritableRoot(8 * sandbox.MiB)
	script := "touch /M /etc/M /var/M /home/M /opt-M && mkdir /M.d && mv /M /M.d && ls /M.d; rm /etc/hosts; ls /etc/hosts 2>/dev/null || echo removed"
	require.Equal(t, mark+"\nremoved", runs.Output(t, runs.Shell(strings.ReplaceAll(script, "M", mark), writable)))
	require.Equal(t, "gone", runs.Output(t, runs.Shell("ls /"+mark+".d 2>/dev/null || echo gone", writable)), "a change outlived its run")
	require.Equal(t, "full", runs.Output(t, runs.Shell("head -c 20M /dev/zero >/x 2>/dev/null || echo full", writable)))
	require.Equal(t, "65536", runs.Output(t, runs.Shell("stat -fc %b-%S /tmp >/dev/null; head -c 65536 /dev/zero >/tmp/x; stat -c %s /tmp/x", writable)))
}

// If the kernel can map the owner of the host's files, the run may change them.
func TestWritableHostFiles(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "idmapped /usr")
	mark := "sandbox-test-" + testkit.ALongTime()
	script := "touch /usr/M && cp /bin/true /usr/bin/M && M && rm /usr/bin/env && ! test -e /usr/bin/env && ls -d /usr/M"
	require.Equal(t, "/usr/"+mark, runs.Output(t, runs.Shell(strings.ReplaceAll(script, "M", mark), sandbox.WithWritableRoot(8*sandbox.MiB))))
	require.NoFileExists(t, "/usr/"+mark)
	require.FileExists(t, "/usr/bin/env")
}

// TestRootlessEmptyRootfs runs a static program in a root with nothing else of the host.
func TestRootlessEmptyRootfs(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "a static busybox")
	busybox, err := exec.LookPath("busybox")
	require.NoError(t, err)
	s := sandbox.New(sandbox.WithRootfs(sandbox.EmptyRootfs()), sandbox.WithReadOnlyBind(busybox, "/bin/busybox"))
	look := func(opts ...sandbox.Option) string {
		return runs.Output(t, s.With(sandbox.WithCommand("busybox", "sh", "-c", "echo /*; echo /bin/*; busybox id -un; busybox touch /tmp/x /file 2>/dev/null; echo /tmp/* /fil*")).With(opts...))
	}
	require.Equal(t, "/bin /dev /etc /home /proc /run /sys /tmp /var\n/bin/busybox\nsandbox\n/tmp/x /fil*", look())
	if testkit.Kernel(5, 11) {
		require.Equal(t, "/bin /dev /etc /home /proc /run /sys /tmp /var\n/bin/busybox\nsandbox\n/tmp/x /file", look(sandbox.WithWritableRoot(sandbox.MiB)))
	}
	require.Equal(t, "empty", sandbox.EmptyRootfs().String())
}
