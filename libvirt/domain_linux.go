package libvirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/wall"
)

// Run implements handover.Daemon.
func (*daemon) Run(c *wall.Container, name, dir string) (<-chan struct{}, error) {
	binds, err := makeRoot(c)
	if err != nil {
		return nil, fmt.Errorf("making the root of the domain: %w", err)
	}
	gone, err := start(name, describe(name, c, dir, binds))
	if err != nil {
		return nil, fmt.Errorf("starting the domain: %w", err)
	}
	return gone, nil
}

// makeRoot makes the places for what the domain is to have, and returns the files that are bound
// into it.
func makeRoot(c *wall.Container) ([]wall.Bind, error) {
	own, err := handover.OwnPath()
	if err != nil {
		return nil, err
	}
	binds := c.Binds
	if own != "" {
		binds = append(slices.Clip(binds), wall.Bind{Source: own, Destination: handover.Program})
	} else if err := copyOwn(filepath.Join(c.Rootfs, handover.Program)); err != nil {
		return nil, err
	}
	return binds, errors.Join(os.Mkdir(filepath.Join(c.Rootfs, hostProc), 0o755), wall.MountPoints(c.Rootfs, binds))
}

// copyOwn copies this program's own file, which has no name.
func copyOwn(to string) error {
	from, err := os.Open(handover.OwnFile)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// hostProc is where the domain has the host's /proc, until the cell has a root of its own. The
// kernel lets the cell mount a /proc only where a fully visible and writable one exists, and
// libvirt covers parts of the domain's (fs/namespace.c, mount_too_revealing).
const hostProc = "/.host-proc" // where no library of the program is

// describe returns a domain whose only process has two capabilities and no label, for as long as it
// takes to start PID 1: https://libvirt.org/formatdomain.html, and drvlxc.html there.
func describe(domain string, c *wall.Container, dir string, binds []wall.Bind) string {
	var b strings.Builder
	add := func(format string, values ...any) {
		for i, v := range values {
			values[i] = quote(v.(string))
		}
		fmt.Fprintf(&b, format+"\n", values...)
	}
	mount := func(source, target, access string) {
		add(`<filesystem type="mount"><source dir="%s"/><target dir="%s"/>`+access+`</filesystem>`, source, target)
	}
	const readOnly = "<readonly/>"
	add(`<domain type="lxc"><name>%s</name>`, domain)
	add(`<memory unit="KiB">9007199254740991</memory>`) // no limit
	add(`<os><type>exe</type><init>%s</init><initarg>%s</initarg>`, handover.Program, handover.Name)
	// c.Env has the search path of its libraries, which is empty in a static program. libvirt
	// refuses a variable without a value.
	for _, e := range append(slices.Clone(c.Env), handover.Env) {
		if key, value, _ := strings.Cut(e, "="); value != "" {
			add(`<initenv name="%s">%s</initenv>`, key, value)
		}
	}
	add(`</os><features><capabilities policy="deny">`)
	for _, capability := range handover.Capabilities {
		add(`<` + strings.ToLower(strings.TrimPrefix(capability, "CAP_")) + ` state="on"/>`)
	}
	add(`</capabilities>`)
	if !c.HostNetwork {
		add(`<privnet/>`)
	}
	add(`</features><seclabel type="none"/><devices><console type="pty"/>`)
	mount(c.Rootfs, "/", readOnly)
	mount(dir, handover.Dir, readOnly)
	mount("/proc", hostProc, "")
	for _, bind := range binds {
		mount(bind.Source, bind.Destination, readOnly)
	}
	add(`</devices></domain>`)
	return b.String()
}

func quote(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // a buffer takes all
	return b.String()
}

// start starts the domain, and closes the channel when it has ended.
func start(domain, description string) (<-chan struct{}, error) {
	gone := make(chan struct{})
	err := ask(func(l *libvirt.Libvirt) error {
		d, err := l.DomainCreateXML(description, libvirt.DomainNone)
		if err != nil {
			return err
		}
		controller, err := controllerOf(domain, int(d.ID))
		if err != nil {
			return err
		}
		go func() {
			defer controller.Close()
			for ended := []unix.PollFd{{Fd: int32(controller.Fd()), Events: unix.POLLIN}}; ; {
				if n, err := unix.Poll(ended, -1); n > 0 || err != unix.EINTR {
					break
				}
			}
			close(gone)
		}()
		return nil
	})
	return gone, err
}

// controllerOf returns a pidfd of the process that libvirt has for each domain, and whose pid is
// the domain's id. It lives as long as the domain, whatever becomes of the daemon.
func controllerOf(domain string, pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "libvirt_lxc")
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && !strings.Contains(string(command), domain) {
		err = errors.New("the domain has ended, or the daemon is in another pid namespace")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Signal implements handover.Daemon.
func (*daemon) Signal(domain string, sig syscall.Signal) error {
	err := ask(func(l *libvirt.Libvirt) error {
		d, err := l.DomainLookupByName(domain)
		if err != nil {
			return err
		}
		return l.DomainSendProcessSignal(d, 1, uint32(sig), 0)
	})
	if libvirt.IsNotFound(err) || isCode(err, libvirt.ErrOperationInvalid) {
		return nil // it has ended
	}
	return err
}
