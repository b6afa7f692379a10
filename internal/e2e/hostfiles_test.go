//go:build linux

package e2e

import (
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
)

func init() { testkit.AddHelper("list", func([]string) error { return listReadable() }) }

// listReadable prints the files that this process may read, each with a checksum of its content,
// except in /usr, which is the host's, and /proc, which is the kernel's.
func listReadable() error {
	return filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if p == "/proc" || p == "/dev" || p == "/usr" {
			return fs.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			if b, err := os.ReadFile(p); err == nil {
				fmt.Printf("%s %d\n", p, crc32.ChecksumIEEE(b))
			}
		}
		return nil
	})
}

// everybodyMayRead reports whether a user with no groups, such as 65534, may read a file of the
// host.
func everybodyMayRead(p string) bool {
	info, err := os.Lstat(p)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o004 == 0 {
		return false
	}
	for dir := filepath.Dir(p); ; dir = filepath.Dir(dir) {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() || info.Mode()&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

// TestRootlessReadable compares what a run of HostRootfs may read with what everybody may read
// outside. Every difference is listed here.
func TestRootlessReadable(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "user namespaces")
	madeUp := []string{"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/nsswitch.conf"}
	ifMissing := []string{"/etc/services", "/etc/protocols", "/etc/networks", "/etc/host.conf", "/etc/shells"}
	var nobodys string // what a process of nobody's can read outside, one of root can find out
	if testkit.WholeMachine() {
		cmd := exec.Command("find", "/etc", "/var", "/sys/devices/system", "/sys/kernel/mm", "-type", "f", "-readable")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.Output() // it can't enter some directories
		nobodys = "\n" + string(out)
		require.Contains(t, nobodys, "\n/etc/passwd\n")
		require.NotContains(t, nobodys, "\n/etc/shadow\n")
	}
	for name, opts := range map[string][]sandbox.Option{"by default": nil, "as uid 0": {sandbox.WithUser(0, 0)}} {
		t.Run(name, func(t *testing.T) {
			list := runs.Output(t, runs.Helper("list").With(opts...))
			if _, err := os.Stat("/etc/ld.so.cache"); err == nil {
				require.Contains(t, list, "/etc/ld.so.cache ")
			}
			for line := range strings.Lines(list) {
				p, sum, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch b, err := os.ReadFile(p); {
				case strings.HasPrefix(p, "/etc/") && slices.Contains(madeUp, p), p == "/helper":
				case slices.Contains(ifMissing, p) && fmt.Sprint(crc32.ChecksumIEEE(b)) != sum:
				default:
					require.NoError(t, err)
					require.True(t, everybodyMayRead(p), p)
					require.True(t, nobodys == "" || strings.Contains(nobodys, "\n"+p+"\n"), p)
					require.Equal(t, fmt.Sprint(crc32.ChecksumIEEE(b)), sum, p)
				}
				for _, word := range []string{"shadow", "machine-id", "sudoers", "fstab", "ssh_host", ".key", "gitconfig", "/var/log", "/var/lib/dpkg"} {
					require.NotContains(t, p, word)
				}
			}
		})
	}
}

// programs are programs of the host that keep files in /etc or /var, with what they do with them.
// Those that are not installed are left out.
var programs = map[string]struct{ script, want string }{
	"python3":  {`python3 -c 'import mimetypes, socket, ssl; print(socket.getservbyname("https"), socket.getprotobyname("tcp"), socket.gethostbyname("localhost"), socket.gethostbyname(socket.gethostname()))'`, "443 6 127.0.0.1 127.0.0.1"},
	"php":      {`php -r 'echo (int)extension_loaded("tokenizer"), (int)extension_loaded("posix"), " ", php_ini_loaded_file() ? "ini" : "none";'`, "11 ini"},
	"java":     {`cd /tmp && printf %s 'public class A { public static void main(String[] a) throws Exception { System.out.println(javax.net.ssl.SSLContext.getDefault().getProtocol() + " " + (java.security.Security.getProviders().length > 5)); } }' >A.java && java A.java`, "Default true"},
	"fc-match": {"fc-match -f '%{family}' sans >/dev/null 2>/tmp/err; cat /tmp/err", ""},
	"perl":     {`perl -e 'print join " ", (getservbyname "https", "tcp")[2], (getprotobyname "tcp")[2]'`, "443 6"},
	"getent":   {"getent hosts localhost | grep -c localhost; getent networks loopback | wc -l", "1\n1"},
	"hostname": {"hostname -f; hostname -i", "sandbox\n127.0.0.1"},
	"soffice":  {"cd /tmp && echo x >a.txt && timeout -s KILL 60 soffice --headless --convert-to pdf a.txt >/dev/null 2>&1; ls a.pdf", "a.pdf"},
	"openssl":  {"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout /tmp/k -out /tmp/c 2>/dev/null && openssl verify -CAfile /tmp/c /tmp/c", "/tmp/c: OK"},
	"mount":    {"mount | grep -c ' on / '; readlink /etc/mtab", "1\n../proc/self/mounts"},
	"git":      {"cd /tmp && git init -q r && git -C r -c user.name=a -c user.email=a@b commit -q --allow-empty -m one && git -C r log --format=%s", "one"},
	"gcc":      {"cd /tmp && echo 'int main(void) { return 0; }' >a.c && gcc a.c && ./a.out && echo ran", "ran"},
}

func TestRootlessPrograms(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "user namespaces")
	for name, p := range programs {
		if _, err := exec.LookPath(name); err != nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			require.Equal(t, p.want, runs.Output(t, runs.Shell(p.script)))
			if name == "php" && testkit.Kernel(5, 11) {
				require.Equal(t, p.want, runs.Output(t, runs.Shell(p.script, sandbox.WithWritableRoot(64*sandbox.MiB))))
			}
		})
	}
}

// TestWritableEtc has a root that can be changed, with the files of the host's programs in it.
func TestWritableEtc(t *testing.T) {
	t.Parallel()
	testkit.Need(t, "overlayfs for runs")
	script := `set -e; echo 192.0.2.1 db >>/etc/hosts; echo x >/etc/mine; mkdir /etc/app; sed 's/^ssh/xyz/' /etc/services >/etc/new; mv /etc/new /etc/services; rm /etc/protocols
		grep -c -e '^xyz' /etc/services; grep -c ' db' /etc/hosts; test ! -e /etc/protocols; cat /etc/mine`
	if _, err := os.Stat("/etc/ld.so.cache"); err == nil {
		script += "; test -s /etc/ld.so.cache"
	}
	require.Equal(t, "1\n1\nx", runs.Output(t, runs.Shell(script, sandbox.WithWritableRoot(64*sandbox.MiB))))
	require.Equal(t, "1\n1\nx", runs.Output(t, runs.Shell(script, sandbox.WithWritableRoot(64*sandbox.MiB), sandbox.WithUser(0, 0))))
	require.Equal(t, "own", runs.Output(t, runs.Shell("cat /etc/services", sandbox.WithWritableRoot(sandbox.MiB), sandbox.WithFile("/etc/services", []byte("own"), 0o644))))
	require.Equal(t, "own", runs.Output(t, runs.Shell("cat /etc/services", sandbox.WithFile("/etc/services", []byte("own"), 0o644))))
	require.Equal(t, "in", runs.Output(t, runs.Shell("cat /etc/ssl/certs/own.pem", sandbox.WithFile("/etc/ssl/certs/own.pem", []byte("in"), 0o644))))
}
