//go:build linux

package host

import (
	"crypto/md5"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox/internal/testkit"
)

// machine makes a root directory: names that end in "/" are directories, contents that begin with
// "-> " are links.
func machine(t testing.TB, files map[string]string) string {
	root := t.TempDir()
	for name, content := range files {
		p := root + name
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch target, isLink := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			require.NoError(t, os.MkdirAll(p, 0o755))
		case isLink:
			require.NoError(t, os.Symlink(target, p))
		default:
			require.NoError(t, os.WriteFile(p, []byte(content), 0o644))
		}
	}
	return root
}

func sum(content string) string {
	s := md5.Sum([]byte(content))
	return hex.EncodeToString(s[:])
}

// shownAt is what was found, a directory with "/" at its end.
func shownAt(f *Files) (list []string) {
	for _, e := range f.Entries {
		switch {
		case e.Mode.IsDir():
		case e.Mode&fs.ModeSymlink != 0:
			list = append(list, e.Path+" -> "+e.Link)
		default:
			list = append(list, e.Path)
		}
	}
	return list
}

func TestDpkg(t *testing.T) {
	const java, tokens = "security.provider.1=SUN\n", "extension=tokenizer.so\n"
	root := machine(t, map[string]string{
		"/var/lib/dpkg/status": "Package: java\nStatus: install ok installed\nConffiles:\n /etc/java-17-openjdk/security/java.security " + sum(java) +
			"\n /etc/wgetrc " + sum("# none\n") + "\n /etc/php/8.2/gone.ini " + sum("x") + " obsolete\nDescription: none\n /etc/no/conffile\n\nPackage: other\n",
		"/var/lib/ucf/hashfile":                       sum(tokens) + "  /etc/php/8.2/mods-available/tokenizer.ini\n",
		"/var/lib/dpkg/info/tool.list":                "/.\n/usr/bin/tool\n/etc\n/etc/tool\n/etc/tool/tool.conf\n/etc/tool/api.token\n/etc/tool/server.key\n/etc/tool/tool.conf.bak\n/etc/tool/dir\n/etc/tool/hidden",
		"/var/lib/dpkg/info/long.list":                "/usr/" + strings.Repeat("x", 70_000) + "\n/etc/never\n",
		"/var/lib/dpkg/info/many.list":                strings.Repeat("/usr/share/doc/some/file\n", 5000) + "/etc/many.conf\n",
		"/etc/java-17-openjdk/security/java.security": java,
		"/etc/wgetrc":                                 "# mine\nproxy_password = hunter2\n",
		"/etc/many.conf":                              "# changed\nPasswordAuthentication yes\n",
		"/etc/php/8.2/mods-available/tokenizer.ini":   tokens,
		"/etc/php/8.2/mods-available/mine.ini":        "; somebody's\n",
		"/etc/php/8.2/cli/conf.d/20-tokenizer.ini":    "-> /etc/php/8.2/mods-available/tokenizer.ini",
		"/etc/php/8.2/cli/conf.d/20-mine.ini":         "-> ../../mods-available/mine.ini",
		"/etc/php/8.2/cli/conf.d/30-loop.ini":         "-> 30-loop.ini",
		"/etc/tool/tool.conf":                         "a = 1\n",
		"/etc/tool/api.token":                         "x",
		"/etc/tool/server.key":                        "x",
		"/etc/tool/tool.conf.bak":                     "x",
		"/etc/tool/dir/":                              "",
		"/etc/tool/hidden":                            "-> /root/secret",
		"/etc/alternatives/editor":                    "-> /usr/bin/vim.basic",
		"/etc/alternatives/local":                     "-> /opt/mine",
		"/etc/ssl/certs/ca.pem":                       "-----BEGIN CERTIFICATE-----\n",
		"/etc/ssl/certs/both.pem":                     "-----BEGIN PRIVATE KEY-----\n",
		"/etc/ssl/private/some.pem":                   "x",
		"/etc/passwd":                                 "root:x:0:0::/:/bin/sh\n",
		"/etc/shadow":                                 "root:*:1::::::\n",
		"/etc/gitconfig":                              "[user]\n",
		"/etc/mtab":                                   "-> /proc/mounts",
		"/etc/os-release":                             "-> ../usr/lib/os-release",
		"/var/lib/xml-core/catalog":                   "x",
		"/var/lib/texmf/big":                          strings.Repeat("x", maxVar+1),
		"/var/lib/mysql/data":                         "x",
	})
	f := Read(root, []string{"/usr"})
	require.Equal(t, []string{
		"/etc/alternatives/editor -> /usr/bin/vim.basic", "/etc/java-17-openjdk/security/java.security", "/etc/many.conf", "/etc/os-release -> ../usr/lib/os-release",
		"/etc/php/8.2/cli/conf.d/20-tokenizer.ini -> /etc/php/8.2/mods-available/tokenizer.ini", "/etc/php/8.2/mods-available/tokenizer.ini",
		"/etc/ssl/certs/ca.pem", "/etc/tool/tool.conf", "/var/lib/xml-core/catalog",
	}, shownAt(f))
	require.Equal(t, []string{"/var/lib/texmf"}, f.Dirs)
	require.Equal(t, "dpkg", f.Manager)
	dir, ok := f.Find("/etc/tool/dir")
	require.True(t, ok && dir.Mode.IsDir())
	left := keys(f.Left)
	require.Subset(t, left, []string{"/etc/wgetrc", "/etc/tool/api.token", "/etc/tool/server.key", "/etc/tool/tool.conf.bak", "/etc/ssl/certs/both.pem"})
	require.NotContains(t, left, "/etc/gitconfig", "nobody says that it was left out")

	for _, p := range []string{"/etc/java-17-openjdk", "/etc/many.conf"} { // not everybody's
		require.NoError(t, os.Chmod(root+p, 0o750))
	}
	list := strings.Join(shownAt(Read(root, []string{"/usr"})), " ")
	require.NotContains(t, list, "java.security")
	require.NotContains(t, list, "many.conf")
	require.NotEqual(t, f.Sum, Read(root, []string{"/usr"}).Sum)
}

func TestOtherManagers(t *testing.T) {
	for name, test := range map[string]struct {
		manager, db, content string
	}{
		"apk":    {"apk", "/lib/apk/db/installed", "P:php\nF:etc\nF:etc/php82\nM:0:0:755\nR:php.ini\na:0:0:644\nZ:Q12jmj7l5rSw0yVb/vlWAYkK/YBwk=\n\nP:x\nF:usr/bin\nR:x\n"},
		"pacman": {"pacman", "/var/lib/pacman/local/php-8.2-1/files", "%FILES%\netc/\netc/php82/\netc/php82/php.ini\nusr/bin/php\n"},
		"none":   {"", "/usr/lib/sysimage/rpm/rpmdb.sqlite", "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			f := Read(machine(t, map[string]string{test.db: test.content, "/etc/php82/php.ini": "memory_limit = 1G\n", "/etc/mine/conf": "x", "/etc/secrets/x": "x"}), nil)
			require.Equal(t, []string{"/etc/php82/php.ini"}, shownAt(f))
			require.Equal(t, test.manager, f.Manager)
		})
	}
}

func TestBounds(t *testing.T) {
	files := map[string]string{"/etc/fonts/pipe-is-no-file/": "", "/etc/fonts/large": strings.Repeat("x", maxFile+1)}
	for _, n := range strings.Fields("a b c d e f") {
		files["/etc/xml/"+n] = strings.Repeat("x\n", maxFile/2)
	}
	f := Read(machine(t, files), nil)
	require.Equal(t, MaxTotal/maxFile, f.Count())
	require.Contains(t, f.Left["/etc/fonts/large"], "larger than")
	require.Contains(t, f.Left["/etc/xml/f"], "together")
}

// LibreOffice does not start without its registry, the largest file of a package in Debian's /etc.
// What comes after it is still shown.
func TestLargeFileOfPackage(t *testing.T) {
	registry, other := strings.Repeat("<item/>\n", 2_200_000/8), strings.Repeat("x\n", 1<<19)
	f := Read(machine(t, map[string]string{
		"/var/lib/dpkg/status":               "Package: a\nStatus: install ok installed\nConffiles:\n /etc/a " + sum(other) + "\n /etc/x " + sum(other) + "\n /etc/z " + sum(other) + "\n",
		"/var/lib/ucf/hashfile":              sum(registry) + "  /etc/libreoffice/registry/main.xcd\n",
		"/etc/libreoffice/registry/main.xcd": registry,
		"/etc/a":                             other,
		"/etc/x":                             other,
		"/etc/z":                             other,
	}), nil)
	require.Equal(t, []string{"/etc/a", "/etc/libreoffice/registry/main.xcd", "/etc/x", "/etc/z"}, shownAt(f))
	require.Empty(t, f.Left)
}

func TestSecretContent(t *testing.T) {
	for line, secret := range map[string]bool{
		"password = hunter2": true, "db_password: hunter2": true, `<password>hunter2</password>`: true, `"api_key": "abc123def"`: true, "requirepass foobared": true,
		"index-url = https://me:pw@example.com/": true, "//registry/:_authToken=abc": true, "AWS_SECRET_ACCESS_KEY=abc": true, "machine x login y password z": true,
		"# password = x": false, "; password = x": false, "PasswordAuthentication yes": false, "password =": false, "keystore.type=pkcs12": false, "token_timeout = 30": false,
		"url = https://example.com/a:b@c": false, "memory_limit = 128M": false, "": false,
	} {
		require.Equal(t, secret, secretContent([]byte("first\n"+line+"\n"), false) != "", line)
		require.Empty(t, secretContent([]byte(line), true), "as the package has it")
	}
}

func TestSecretNames(t *testing.T) {
	for name, secret := range map[string]bool{"server.key": true, "passwd-": true, "x.conf~": true, "x.dpkg-old": true, ".htpasswd": true, "krb5.keytab": true, "api-token": true,
		"tokens.conf": true, "my_secret": true, "ssh_host_rsa_key.pub": true, "private": true, "java.security": false, "tokenizer.ini": false, "keyboard": false, "openssl.cnf": false} {
		require.Equal(t, secret, isSecretName(name), name)
	}
}

func BenchmarkRead(b *testing.B) {
	for b.Loop() {
		Read("", []string{"/usr"})
	}
}

// What was read for want of descriptors as if there were no files is read again.
func TestCacheOfStarved(t *testing.T) {
	want := Read("", nil)
	require.False(t, want.starved)
	var c Cache
	testkit.WithDescriptors(t, 0, func() { require.True(t, c.Get(nil).starved) })
	got := c.Get(nil)
	require.Equal(t, shownAt(want), shownAt(got))
	require.Same(t, got, c.Get(nil))
}
