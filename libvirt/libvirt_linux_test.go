package libvirt

import (
	"bufio"
	"encoding/xml"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox"
	"github.com/cellkit/sandbox/internal/handover"
	"github.com/cellkit/sandbox/internal/testkit"
	"github.com/cellkit/sandbox/internal/testkit/runs"
	"github.com/cellkit/sandbox/internal/testkit/walltest"
	"github.com/cellkit/sandbox/internal/wall"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// needDaemon skips the test where no daemon answers.
func needDaemon(t *testing.T) walltest.Daemon {
	t.Helper()
	testkit.Need(t, "a whole machine's root")
	testkit.Need(t, "libvirt's daemon")
	return walltest.Daemon{Runtime: name, Containers: domains, Left: func(t testing.TB, id string) []string {
		left := domains(t, id)
		for _, dir := range []string{logDir, stateDir} {
			files, err := filepath.Glob(filepath.Join(dir, handover.Prefix+id+"*"))
			require.NoError(t, err)
			left = append(left, files...)
		}
		return left
	}}
}

// domains returns the names of those of a cell.
func domains(t testing.TB, id string) (names []string) {
	t.Helper()
	require.NoError(t, ask(func(l *libvirt.Libvirt) error {
		list, _, err := l.ConnectListAllDomains(1, 0)
		for _, d := range list {
			if strings.HasPrefix(d.Name, handover.Prefix+id) {
				names = append(names, d.Name)
			}
		}
		return err
	}))
	return names
}

func TestRun(t *testing.T) { needDaemon(t).Run(t) }

func TestAttackBreakOut(t *testing.T) { needDaemon(t).BreakOut(t) }

func TestKilledHost(t *testing.T) { needDaemon(t).KilledHost(t) }

func TestKilledBoot(t *testing.T) {
	someTime := func(string) bool {
		time.Sleep(rand.N(time.Second))
		return true
	}
	needDaemon(t).KilledBoot(t,
		func(string) bool { return true },
		func(id string) bool { return len(domains(t, id)) > 0 },
		someTime, someTime, someTime)
}

// Runs report that their cell has ended if the domain is destroyed by somebody else, or libvirt's
// process for it or the first one in it killed. Nothing is left then either.
func TestLostDomain(t *testing.T) {
	tests := needDaemon(t)
	for victim, end := range map[string]func(l *libvirt.Libvirt, d libvirt.Domain) error{
		"domain":     func(l *libvirt.Libvirt, d libvirt.Domain) error { return l.DomainDestroy(d) },
		"controller": func(_ *libvirt.Libvirt, d libvirt.Domain) error { return unix.Kill(int(d.ID), unix.SIGKILL) },
		"receiver": func(l *libvirt.Libvirt, d libvirt.Domain) error {
			return l.DomainSendProcessSignal(d, 1, uint32(unix.SIGKILL), 0)
		},
	} {
		cell, err := sandbox.NewCell(sandbox.CellRuntime(name))
		require.NoError(t, err)
		p := runs.Start(t, runs.Shell("exec sleep 1000", sandbox.WithCell(cell)))
		id := walltest.CellOf(os.Getpid())
		require.Len(t, domains(t, id), 1)
		require.NoError(t, ask(func(l *libvirt.Libvirt) error {
			d, err := l.DomainLookupByName(domains(t, id)[0])
			require.NoError(t, err)
			return end(l, d)
		}), victim)
		_, err = p.Wait()
		require.ErrorIs(t, err, sandbox.ErrCellLost, victim)
		require.NoError(t, cell.Close(), victim)
		require.Empty(t, tests.Left(t, id), victim)
	}
}

// A cell is made by a program whose file has another name by now, or none, and so is one with the
// host's network.
func TestOthers(t *testing.T) {
	needDaemon(t)
	file := filepath.Join(t.TempDir(), "program")
	own, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, own, 0o755))
	mark := testkit.ALongTime()
	args := append([]string{"-c", `exec 3<"$0"; rm "$0"; exec /proc/self/fd/3 "$@"`, file}, testkit.HelperArgs(walltest.Helper, name, mark)...)
	host := exec.CommandContext(testkit.Deadline(t), "/bin/sh", args...)
	host.Env = append(os.Environ(), testkit.HelperEnv)
	host.Stderr = os.Stderr
	out, err := host.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, host.Start())
	_, err = bufio.NewReader(out).ReadString('\n') // the run's pid
	require.NoError(t, err)
	require.NoFileExists(t, file)
	require.NoError(t, host.Process.Kill())
	_ = host.Wait()
	testkit.Eventually(t, "the run is gone", func() bool { return len(testkit.Running(mark)) == 0 })
	walltest.Sweep(t)

	cell, err := sandbox.NewCell(sandbox.CellRuntime(name), sandbox.CellNetwork(sandbox.NetworkHost))
	require.NoError(t, err)
	defer func() { require.NoError(t, cell.Close()) }()
	of := runs.Output(t, runs.Shell("readlink /proc/self/ns/net", sandbox.WithCell(cell), sandbox.WithNetwork(sandbox.NetworkHost)))
	net, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	require.Equal(t, net, of)
}

// A domain is what the cell says, whatever is in its paths, and has no rights but the receiver's.
func TestDescribe(t *testing.T) {
	const odd = `/a<b>&"c' d`
	c := &wall.Container{Rootfs: odd + "/root", Env: []string{"A=" + odd, "NONE="}}
	var is struct {
		Name string `xml:"name"`
		Env  []struct {
			Name  string `xml:"name,attr"`
			Value string `xml:",chardata"`
		} `xml:"os>initenv"`
		Capabilities struct {
			Policy string `xml:"policy,attr"`
			List   []struct {
				XMLName xml.Name
			} `xml:",any"`
		} `xml:"features>capabilities"`
		Privnet *struct{} `xml:"features>privnet"`
		Mounts  []struct {
			Source struct {
				Dir string `xml:"dir,attr"`
			} `xml:"source"`
			ReadOnly *struct{} `xml:"readonly"`
		} `xml:"devices>filesystem"`
	}
	text := describe("one", c, odd+"/run", []wall.Bind{{Source: odd, Destination: "/lib/x"}})
	d := xml.NewDecoder(strings.NewReader(strings.TrimSpace(text)))
	require.NoError(t, d.Decode(&is))
	_, err := d.Token()
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, "one", is.Name)
	require.Len(t, is.Env, 2) // with the receiver's: libvirt takes none without a value
	require.Equal(t, odd, is.Env[0].Value)
	require.Equal(t, "deny", is.Capabilities.Policy)
	require.Len(t, is.Capabilities.List, 2)
	require.NotNil(t, is.Privnet)
	require.Len(t, is.Mounts, 4)
	for i, source := range []string{odd + "/root", odd + "/run", "/proc", odd} {
		require.Equal(t, source, is.Mounts[i].Source.Dir)
		require.Equal(t, source != "/proc", is.Mounts[i].ReadOnly != nil)
	}
	c.HostNetwork = true
	require.NotContains(t, describe("one", c, "", nil), "privnet")
}

// Who names libvirt where it does not answer gets to know what to do.
func TestNoDaemon(t *testing.T) {
	testkit.Need(t, "root")
	real := sockets
	defer func() { sockets = real }()
	sockets = []string{"/nonexistent/a", "/nonexistent/b"}
	_, err := sandbox.NewCell(sandbox.CellRuntime(name))
	require.ErrorContains(t, err, "libvirt's daemon does not answer: dial unix /nonexistent/a")
	require.ErrorContains(t, err, "apt-get install "+debian)
	said, err := testkit.HelperCommand(testkit.Deadline(t), walltest.Helper, "none", testkit.ALongTime()).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(said), "no container runtime")
}
