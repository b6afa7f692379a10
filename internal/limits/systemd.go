//go:build linux

package limits

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// manager is a systemd that can be asked for a scope: a delegated cgroup around a process that
// another process started. It removes the scope when the last process in it has ended, however this
// process ends.
type manager struct {
	user string // address of the bus of this user's own; "" is the system's manager
}

// managerWait is far longer than any answer has taken, even under emulation.
const managerWait = 30 * time.Second

// findManager returns the systemd that manages this process, or nil if there is none. It ignores
// another machine's /run that was bound into a container: pids mean something else there.
func findManager() *manager {
	first, _ := os.ReadFile("/proc/1/comm")
	if strings.TrimSpace(string(first)) != "systemd" || !exists("/run/systemd/system") { // sd_booted(3)
		return nil
	}
	if os.Geteuid() == 0 {
		return &manager{}
	}
	if address := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); address != "" {
		return &manager{address}
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = fmt.Sprintf("/run/user/%d", os.Geteuid()) // pam_systemd(8)
	}
	if !exists(dir+"/systemd") || !exists(dir+"/bus") { // nobody has logged in, so there is no manager
		return nil
	}
	return &manager{"unix:path=" + dir + "/bus"}
}

func (m *manager) String() string {
	if m.user == "" {
		return "systemd"
	}
	return "this user's systemd"
}

// connect connects to the manager. It does not use SessionBus of godbus, which may start a bus.
func (m *manager) connect(ctx context.Context) (*systemd.Conn, error) {
	if m.user == "" {
		return systemd.NewWithContext(ctx)
	}
	return systemd.NewConnection(func() (*dbus.Conn, error) { return dbus.Connect(m.user, dbus.WithContext(ctx)) })
}

// startScope makes a scope around the process and returns its cgroup.
func (m *manager) startScope(unit string, pid int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), managerWait)
	defer cancel()
	conn, err := m.connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	done := make(chan string, 1)
	property := func(name string, value any) systemd.Property {
		return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
	}
	if _, err = conn.StartTransientUnitContext(ctx, unit, "fail", []systemd.Property{
		systemd.PropDescription("Runs of sandbox"),
		systemd.PropPids(uint32(pid)),
		property("Delegate", true),
		property("CollectMode", "inactive-or-failed"), // systemd.unit(5): forget it, however it ended
		property("TasksMax", uint64(math.MaxUint64)),  // each run has a limit of its own
	}, done); err != nil {
		return "", err
	}
	select {
	case result := <-done:
		if result != "done" {
			return "", fmt.Errorf("starting %s: %s", unit, result)
		}
	case <-ctx.Done():
		return "", fmt.Errorf("starting %s: %w", unit, ctx.Err())
	}
	p, err := conn.GetUnitTypePropertyContext(ctx, unit, "Scope", "ControlGroup")
	if err != nil {
		return "", err
	}
	cgroup, _ := p.Value.Value().(string)
	if cgroup == "" || cgroup == "/" {
		return "", errors.New(unit + " has no cgroup")
	}
	return cgroup, nil
}

// attach moves a process into a child of the scope's cgroup. The manager may do that where this
// user may not: out of the cgroup of a login session, which the user does not own.
func (m *manager) attach(unit, child string, pid int) error {
	ctx, cancel := context.WithTimeout(context.Background(), managerWait)
	defer cancel()
	conn, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.AttachProcessesToUnit(ctx, unit, "/"+child, []uint32{uint32(pid)})
}
