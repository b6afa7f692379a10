package cell

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/program"
)

// Making and removing a network namespace takes two fifths of a run's time in the kernel, and more
// than half of its CPU time. So a cell keeps some, and a run that can do nothing to one but use it
// (see run.keepsNetwork) begins in one of them, which no other run is in. It serves again only if
// what the kernel counts in it says that it is as it was when it was new, and nobody can watch it.

// Network is a network namespace of a cell, with the loopback interface up.
type Network struct {
	of     *networks
	socket *os.File // one of it, by which it is opened
	flush  *os.File // its sysctl net.ipv4.route.flush
	counts [len(counters)]*os.File
	born   [len(counters)][]byte // what these said when it was new
	buffer []byte                // for what they say now
	held   bool                  // somebody may have files of the /proc of a run that was in it
}

// counters are the files below /proc/PID/net that change when a namespace is used:
// docs/NETWORK.md says by what each use is noticed.
var counters = [...]string{"sockstat", "snmp", "netstat", "dev", "snmp6", "rt6_stats", "fib_triestat"}

// maxCounters is more than any of them has, with one interface.
const maxCounters = 32 << 10

// networks are those of one cell.
type networks struct {
	c *Cell

	mu     sync.Mutex
	idle   []*Network // the one that was used last is the last
	all    int
	making bool
	score  int // rises with each that comes back as new, and falls with each that does not
	misses int
	closed bool
	procs  procWatch
}

// maxNetworks bounds how many a cell keeps, those included that runs are in: each is nine
// descriptors of this process and some memory of the kernel.
const maxNetworks = 32

// The score goes from 0 to maxScore. At 0, where runs use their network, one is made for every
// tryAgain of them.
const (
	maxScore = 8
	tryAgain = 64
)

// TakeNetwork returns a network namespace that nobody is in, or nil if there is none at the moment.
// Then one is made for a later run.
func (c *Cell) TakeNetwork() *Network {
	s := &c.networks
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		taken := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return taken
	}
	s.misses++
	if !s.making && !s.closed && s.all < maxNetworks && (s.score > 0 || s.misses%tryAgain == 0) && c.enter() {
		s.making = true
		s.all++
		go func() {
			defer c.busy.Done()
			s.made(s.make())
		}()
	}
	return nil
}

func (s *networks) made(n *Network, err error) {
	s.mu.Lock()
	s.making = false
	if err != nil {
		s.all--
		s.score = 0
		slog.Debug("sandbox: making a network namespace", "error", err)
	} else if !s.closed {
		s.idle = append(s.idle, n)
		n = nil
	} else {
		s.all--
	}
	s.mu.Unlock()
	if n != nil {
		n.close()
	}
}

// make makes a namespace. Its counters are opened in it, as this process can't later.
func (s *networks) make() (*Network, error) {
	files, err := s.c.InNetwork(nil, func(b *program.Builder) []program.Slot {
		b.LoopbackUp()
		b.WriteFile(program.AtCWD, "/proc/sys/net/ipv4/ping_group_range", s.c.PingGroups())
		leaveQuietly(b)
		made := []program.Slot{fastOpen(b), openIn(b, "/proc/sys/net/ipv4/route/flush", unix.O_WRONLY)}
		for _, name := range counters {
			made = append(made, openIn(b, "/proc/self/net/"+name, unix.O_RDONLY))
		}
		return made
	})
	if err != nil {
		return nil, err
	}
	n := &Network{of: s, socket: files[0], flush: files[1], counts: [len(counters)]*os.File(files[2:])}
	if err := n.begin(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// leaveQuietly sets versions of IGMP and MLD with which the kernel does not say, a moment after the
// end of a run, that it has left a group, when nothing shows it yet (net/ipv4/igmp.c,
// igmp_group_dropped, net/ipv6/mcast.c, igmp6_leave_group). "all" is also of the interfaces that
// modules of tunnels add to each namespace. A kernel without IPv6 has none of the latter.
func leaveQuietly(b *program.Builder) {
	b.WriteFile(program.AtCWD, "/proc/sys/net/ipv4/conf/all/force_igmp_version", "1")
	if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_mld_version"); err == nil {
		b.WriteFile(program.AtCWD, "/proc/sys/net/ipv6/conf/all/force_mld_version", "1")
	}
}

// fastOpen makes a socket, and has the kernel make the key for TCP fast open, which else is made
// when somebody first asks for it, and then is in a sysctl.
func fastOpen(b *program.Builder) program.Slot {
	tcp := b.CallTo("socket", unix.SYS_SOCKET, program.Int(unix.AF_INET, "AF_INET"), program.Int(unix.SOCK_STREAM|unix.SOCK_CLOEXEC, "SOCK_STREAM|SOCK_CLOEXEC"), program.Int(0))
	b.Call("setsockopt", unix.SYS_SETSOCKOPT, program.Use(tcp), program.Int(unix.IPPROTO_TCP, "IPPROTO_TCP"), program.Int(unix.TCP_FASTOPEN, "TCP_FASTOPEN"), b.Bytes([]byte{1, 0, 0, 0}, "1"), program.Int(4))
	return tcp
}

func openIn(b *program.Builder, path string, flags int) program.Slot {
	return b.CallTo("openat", unix.SYS_OPENAT, program.AtCWD, b.Str(path), program.Int(flags|unix.O_CLOEXEC), program.Int(0))
}

// TryNetwork makes a network namespace as TakeNetwork has them made, looks at it as Give does, and
// gives it up.
func (c *Cell) TryNetwork() error {
	n, err := c.networks.make()
	if err != nil {
		return err
	}
	defer n.close()
	return n.becomesNew()
}

// PingGroups returns the groups that may send echo requests from the namespace, as the cell sees
// them: all that the cell has, since one run at a time is in it. See compile's pingGroups. Of a
// cell without a user namespace it is those below 2^31, as older kernels take no others (GID_T_MAX
// in include/net/ping.h).
func (c *Cell) PingGroups() string {
	all := c.ids.extents(c.ids.gid, int64(os.Getegid()))
	low, high := all[0], all[0]
	for _, e := range all {
		if e.outside < low.outside {
			low = e
		}
		if e.outside > high.outside {
			high = e
		}
	}
	return fmt.Sprintf("%d %d", low.inside, min(high.inside+high.size-1, math.MaxInt32))
}

// begin reads the counters of the namespace, which is new.
func (n *Network) begin() error {
	longest := 0
	n.buffer = make([]byte, maxCounters)
	for i, name := range counters {
		now, err := n.read(i)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		n.born[i] = bytes.Clone(now)
		longest = max(longest, len(now))
	}
	n.buffer = make([]byte, longest+1024) // sockstat has more than what is compared of it
	return nil
}

// Open opens the namespace's own file, of nsfs. While nobody has one, the kernel has no inode for
// it, and makes another for the next who opens it: so what a run does to its inode, such as to lock
// it, no later run finds. It takes CAP_NET_ADMIN in the cell's user namespace, which the owner of
// that has: net/socket.c, SIOCGSKNS, user_namespaces(7).
func (n *Network) Open() (*os.File, error) {
	fd, err := unix.IoctlRetInt(int(n.socket.Fd()), unix.SIOCGSKNS)
	if err != nil {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	return os.NewFile(uintptr(fd), "network namespace"), nil
}

// read reads a file of counters from its beginning, which makes the kernel write it anew. The next
// call overwrites what it returns.
func (n *Network) read(i int) ([]byte, error) {
	for at := 0; at < len(n.buffer); {
		k, err := n.counts[i].ReadAt(n.buffer[at:], int64(at))
		at += k
		switch {
		case errors.Is(err, io.EOF) && counters[i] == "sockstat":
			return ownSockets(n.buffer[:at]), nil
		case errors.Is(err, io.EOF):
			return n.buffer[:at], nil
		case err != nil:
			return nil, err
		}
	}
	return nil, errors.New("is longer than it was, or than any should be")
}

// ownSockets leaves out of /proc/net/sockstat what is counted for all namespaces together: orphan,
// alloc and mem (net/ipv4/proc.c, sockstat_seq_show).
func ownSockets(sockstat []byte) (own []byte) {
	for line := range bytes.Lines(sockstat) {
		fields := bytes.Fields(line)
		for i := 0; i < len(fields); i++ {
			switch string(fields[i]) {
			case "orphan", "alloc", "mem":
				i++ // and its value
				continue
			}
			own = append(append(own, fields[i]...), ' ')
		}
		own = append(own, '\n')
	}
	return own
}

// settle is how long after the end of its last process what a run had in a namespace may take to
// go: the kernel frees sockets a moment later.
var settle = []time.Duration{0, time.Millisecond, 4 * time.Millisecond, 16 * time.Millisecond, 64 * time.Millisecond}

// Watch notes that the command of a run in the namespace is about to begin. pid is of a process of
// the run that has its root file system.
func (n *Network) Watch(pid int) {
	n.held = true
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	if err := n.of.procs.add(n, pid); err != nil {
		slog.Debug("sandbox: watching the /proc of a run", "error", err)
	}
}

// Give takes the namespace back of a run that has ended, or was not begun. It may wait.
func (n *Network) Give() {
	if err := n.becomesNew(); err != nil {
		slog.Debug("sandbox: a network namespace does not serve again", "error", err)
		n.of.drop(n)
		return
	}
	n.of.give(n)
}

func (n *Network) becomesNew() (err error) {
	for _, d := range settle {
		time.Sleep(d)
		if err = n.isAsNew(); err == nil {
			return nil
		}
	}
	return err
}

// isAsNew returns an error unless all counters are what they were when it was new, nobody has a
// file of it or of the run's /proc any more, which would go on showing the counters, and what is
// not counted is forgotten.
func (n *Network) isAsNew() error {
	if n.isHeld() {
		return errors.New("somebody has a file of the run's /proc")
	}
	for i, name := range counters {
		if now, err := n.read(i); err != nil || !bytes.Equal(now, n.born[i]) {
			return errors.Join(fmt.Errorf("/proc/net/%s is not what it was", name), err)
		}
	}
	if err := n.forgetRoutes(); err != nil {
		return err
	}
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	return n.of.procs.opened(n.Open)
}

func (n *Network) isHeld() bool {
	n.of.mu.Lock()
	defer n.of.mu.Unlock()
	n.of.procs.read()
	return n.held
}

// forgetRoutes has the kernel forget the routes of IPv4 that somebody looked up, which nothing
// counts: RTM_GETROUTE says when that was.
func (n *Network) forgetRoutes() error {
	_, err := n.flush.WriteAt([]byte("1"), 0)
	return err
}

func (s *networks) give(n *Network) {
	s.mu.Lock()
	s.score = min(s.score+1, maxScore)
	if !s.closed {
		s.idle = append(s.idle, n)
		n = nil
	}
	s.mu.Unlock()
	if n != nil {
		n.close()
	}
}

func (s *networks) drop(n *Network) {
	s.mu.Lock()
	s.score = max(s.score-1, 0)
	s.all--
	s.procs.forget(n)
	s.mu.Unlock()
	n.close()
}

func (n *Network) close() {
	for _, f := range append(n.counts[:], n.socket, n.flush) {
		if f != nil {
			f.Close()
		}
	}
}

func (s *networks) close() {
	s.mu.Lock()
	idle := s.idle
	s.idle, s.closed = nil, true
	s.procs.close()
	s.mu.Unlock()
	for _, n := range idle {
		n.close()
	}
}
