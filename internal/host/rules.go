//go:build linux

package host

import (
	"bytes"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// generatedEtc is what programs' packages generate in /etc rather than install. All that is below
// such a directory is shown.
var generatedEtc = etcNames{names: `
	alternatives ca-certificates/extracted pki/ca-trust/extracted pki/tls/certs ssl/certs
	bash.bashrc dictionaries-common inputrc ld.so.cache localtime os-release papersize profile python3/debian_config
	shells texmf/web2c timezone xml`}

// generatedVar is the same for /var.
var generatedVar = []string{
	"/var/cache/dictionaries-common", "/var/cache/fontconfig", "/var/lib/aspell", "/var/lib/ca-certificates", "/var/lib/dictionaries-common",
	"/var/lib/emacsen-common", "/var/lib/gems", "/var/lib/ghc", "/var/lib/ghostscript", "/var/lib/hunspell", "/var/lib/ispell", "/var/lib/mecab",
	"/var/lib/mibs", "/var/lib/ocaml", "/var/lib/sgml-base", "/var/lib/texmf", "/var/lib/vim", "/var/lib/xml-core",
}

// programs is what of /etc is shown where no package manager's database can be read: rpm's is no
// text. Names end at "-", "." or a digit.
var programs = etcNames{names: `
	ImageMagick R X11 alternatives bash_completion bashrc ca-certificates clang crypto-policies emacs fonts gai ghostscript
	gnutls gprofng groff gss gtk guile host.conf inputrc java jvm ld.so.cache ld.so.conf libnl libreoffice lua lynx
	magic mailcap man_db maven mime nanorc netconfig openldap openmpi os-release perl php pkcs pki profile
	protocols python rpc ruby screenrc sgml shells services ssl terminfo texlive texmf tmux vim virc vulkan wgetrc xattr xdg xml`}

// isProgram reports whether p is one of programs, of any version: /etc/java-17-openjdk is java's,
// /etc/php.ini is php's.
func isProgram(p string) bool {
	return programs.has(p) || programs.has(strings.TrimRight(p, "0123456789")) || programs.has(p[:cutAt(p)])
}

func cutAt(p string) int {
	base := len(path.Dir(p)) + 1
	if at := strings.IndexAny(p[base:], "-.0123456789"); at > 0 {
		return base + at
	}
	return len(p)
}

// machines is what is the machine's, its users' and its services', whoever installed it: what a run
// has of its own (passwd, hosts and so on), what starts, guards and watches the machine, and what
// it knows of others.
var machines = etcNames{names: `
	NetworkManager apparmor apparmor.d apt audit avahi cloud cni containerd containers cron.d cron.daily cron.hourly cron.monthly
	cron.weekly crontab crypttab dbus-1 debconf.conf default dhcp dnf docker dpkg e2scrub.conf environment ethers exports
	fstab gitconfig group grub.d gshadow hostname hosts hosts.allow hosts.deny init.d initramfs-tools iptables iscsi issue issue.net
	kernel kubernetes libvirt logcheck login.defs logrotate.conf logrotate.d lvm machine-id mail mailname modprobe.d modules
	modules-load.d motd mtab netplan network nftables.conf npmrc nsswitch.conf openvpn pam.conf pam.d passwd pip.conf polkit-1 postfix
	ppp resolv.conf rc0.d rc1.d rc2.d rc3.d rc4.d rc5.d rc6.d rcS.d rsyslog.d samba security selinux shadow skel
	ssh subgid subuid sudo.conf sudoers sudoers.d sysconfig sysctl.conf sysctl.d systemd tmpfiles.d udev ufw update-motd.d
	wireguard wpa_supplicant yum.repos.d`}

// isMachines reports whether p is left out without a word. Hidden files are what tools keep for
// themselves.
func isMachines(p string) bool { return machines.has(p) || strings.HasPrefix(path.Base(p), ".") }

// etcNames is a set of paths in /etc. It is made when it is first needed, and without a function
// that package initialization would run: a program that imports this package may never need it.
type etcNames struct {
	names string // below /etc
	once  sync.Once
	paths map[string]bool
}

func (e *etcNames) has(p string) bool {
	e.once.Do(func() {
		e.paths = map[string]bool{}
		for n := range strings.FieldsSeq(e.names) {
			e.paths["/etc/"+n] = true
		}
	})
	return e.paths[p]
}

// expression is a regular expression that is compiled when it is first needed, as etcNames is made.
// So a program that never needs one does not link package regexp.
type expression struct {
	text     string
	once     sync.Once
	compiled *regexp.Regexp
}

func (e *expression) get() *regexp.Regexp {
	e.once.Do(func() { e.compiled = regexp.MustCompile(e.text) })
	return e.compiled
}

// secretWords are in names of files that have secrets, as secretToken is, secretEndings end names
// of them, or of copies that somebody, or a package's upgrade, left.
var (
	secretWords   = []string{"passw", "secret", "credential", "keytab", "shadow", "ssh_host_"}
	secretToken   = expression{text: `\b_?tokens?_?\b`}
	secretEndings = []string{".key", "_key", ".p12", ".pfx", ".kdb", ".jceks", "-", "~", "#", ".bak", ".old", ".orig", ".save", ".swp", ".rej",
		".dpkg-old", ".dpkg-new", ".dpkg-dist", ".dpkg-bak", ".dpkg-tmp", ".ucf-old", ".ucf-new", ".ucf-dist", ".rpmsave", ".rpmnew", ".rpmorig", ".apk-new", ".pacsave", ".pacnew"}
)

func isSecretName(name string) bool {
	name = strings.ToLower(name)
	return name == "private" || strings.Contains(name, "token") && secretToken.get().MatchString(name) ||
		slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(name, w) }) ||
		slices.ContainsFunc(secretEndings, func(e string) bool { return strings.HasSuffix(name, e) })
}

// mayAssign is a word of each match of assigned, in lower case, to look for first.
var mayAssign = [][]byte{[]byte("passw"), []byte("passphrase"), []byte("requirepass"), []byte("secret"), []byte("credential"), []byte("token"), []byte("key"), []byte("_auth")}

// assigned finds a value that is given to what is called a secret, and userinfo, what a URL has of
// one.
var (
	assigned = expression{text: `(?:passw(?:or)?d|passphrase|requirepass|secret|credential|token|api_?key|access_?key|private_?key|_auth)[\w.-]*["']?(?:\s*[=:>]\s*|\s+)["']?([^\s"'<=:>][^\s"'<]*)`}
	userinfo = expression{text: `://[^/\s:@"']*:[^/\s@"']+@`}
	harmless = expression{text: `^(yes|no|true|false|on|off|none|null|ask|prompt|optional|required|[0-9]+|[\[\]{}(),;$%/].*)$`}
)

// secretContent says why the content of a file is not to be shown. One that is as its package has
// it has no secret of this machine.
func secretContent(data []byte, original bool) string {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return "it has a private key"
	}
	if original {
		return ""
	}
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); isComment(line) {
			continue
		}
		if bytes.Contains(line, []byte("://")) && userinfo.get().Match(line) || assigns(line) {
			return "it has what looks like a password, and is not as its package has it"
		}
	}
	return ""
}

// isComment reports whether a line says nothing in any of the usual languages.
func isComment(line []byte) bool {
	return len(line) == 0 || strings.IndexByte("#;!", line[0]) >= 0 || bytes.HasPrefix(line, []byte("// ")) || bytes.HasPrefix(line, []byte("<!--"))
}

// assigns reports whether a line gives a value to what is called a secret.
func assigns(line []byte) bool {
	lower := bytes.ToLower(line)
	if !slices.ContainsFunc(mayAssign, func(w []byte) bool { return bytes.Contains(lower, w) }) {
		return false
	}
	m := assigned.get().FindSubmatch(lower)
	return m != nil && !harmless.get().Match(m[1])
}
