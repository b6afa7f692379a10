// Package matrix holds the configurations that the tests run in. Command vmtest creates them, and
// testkit knows from them which features a test may miss where.
package matrix

import (
	"fmt"
	"slices"
)

// A Configuration is a place where the tests run. Each one in the guest is a boot of its own.
type Configuration struct {
	Name     string
	Kernel   string   // VM_KERNEL of guest.sh; "" on this machine
	As       string   // VM_AS of guest.sh: the user and what PID 1 is; on this machine "user" is uid 1000, "" the user at hand
	Packages []string // directories; nil: all
	Run      string   // -run of its tests
	Skip     string   // -skip: those that show nothing there that they don't show elsewhere
	Always   bool     // run by make test; the others by make matrix
	Optional bool     // skipped if this machine lacks its kernel's package or its container
	Note     string
}

// Packages that depend on the place: black-box tests, those of the API, runs and their protections,
// the cgroups, the cell's own directories, the gateways' interfaces, and overlayfs.
var placed = []string{".", "internal/e2e", "internal/e2e/attack", "internal/run", "internal/probe", "internal/cell", "internal/gateway", "internal/limits", "internal/overlay"}

// Packages whose tests can fail on another kernel. The others compile, parse, compare or copy in
// this process alone, or use what is tested in these.
var kernel = append([]string{"internal/forkserver", "internal/program", "internal/seccomp", "internal/scratch",
	"pool", "function", "service", "sandboxtest"}, placed...)

// Packages that make runs, and with images those that users import or run. In these, the tests
// named Rootless and Attack also run for ordinary users.
var (
	makers = []string{".", "internal/e2e", "internal/e2e/attack", "internal/run", "internal/probe", "service", "sandboxtest"}
	public = append([]string{"image", "image/cmd/sandbox"}, makers...)
)

// Where most is as in another configuration, it is enough to run the tests that depend most on the
// kernel and cgroups. Examples are left out on kernels without idmapped tmpfs (6.3), and in
// containers, because examples can't call Need.
const (
	sample = "^Test.*(Rootless|Attack|Limit|Memory|CPU|Pause|Cgroup|Check|Bind|Rootfs|Freeze|Kill|Usage|IO)"
	tests  = "^Test"
	user   = "Rootless|Attack"
	// What cgroups are for, of these.
	delegated = "Rootless|Attack(Bombs|CgroupView|Usage|PageCache|Neighbours)"
	container = "Container"
)

// Tests that take long, and depend only on this library or on what all kernels do alike, need to
// run only on this machine. Emulated, a cell's boot takes seconds, and each script boots several.
const (
	slow = "^Test(AttackRaces|AttackInherited|AttackRootlessPrivate(Noise|Flood|DatagramFlood|CableFlood|Ping|AllPorts|OtherSite|Resets|HalfOpen|HalfHello|Descriptors)|AttackRootlessRefused(Flood|Paths)|RootlessRefusalsOfPaths|RootlessPrivateNewConns|AttackRootlessExecStalked|RootlessFaults|RootlessIDsOfSeveralHosts|RootlessNestedNamespace|" +
		"RootlessReady|RootlessNotReady|RootlessStartCancelled|RootlessHealth|RootlessLogs|RootlessGroupFails|RootlessServiceGroup|RootlessServiceLogs|AttackRootlessOutput|AttackRootlessAnswer|AttackRootlessRedirect|RootlessPortHeld|RootlessServiceLeavesNothing|RootlessReachSeveral|" +
		"RootlessPrograms|RootlessReadable|HostRootfs|RootlessHostRootfs|RandomOptions|Crash|" +
		"RootlessLinksWhileOthersRename|CellKilledFromOutside|RootlessWorkingDirectory|" +
		"Walls|AttackWallsView|Walls(Network|KilledHost|KilledBoot|KilledCell|Check|CheckMissing))$"
	scripts = "^TestScripts$"
	// reports matches the tests of how isolated tests report. Each starts several test
	// binaries.
	reports = "^TestRootlessIsolate(Passes|Fails|Skips|Dies|Flags|FuzzSeeds|Coverage)$"
	// own matches the tests of what this process does in the same way on every kernel and for
	// every user.
	own = "^Test(Rootless)?(Attack)?(Func|Workers|Pool|Isolate|WaitDelay|Registry|Layout|Archive)|AgainstEvaluator$"
	// killed matches the tests of hosts that are killed, of which systemd has its own cleaning
	// up.
	killed = "^TestRootlessKilledHost$"
	// compat matches what a kernel with calls of 32 bits does alike for every user. Debian's
	// have them.
	compat = "^TestAttackKernelBy32Bits$"
	// gateway matches the attacks on private networks, except for Reaches and Shout. What
	// withstands them is the same on every kernel that has them, which one guest shows; those
	// two depend on the kernel's routes and rules, as Spoof, for which there is Forged.
	gateway = "^TestAttackRootlessPrivate([^RS]|R[^e]|Re[^a]|S[^h])"
	// network matches all tests of private networks and of network namespaces that serve again,
	// for which the kernel and not the user's systemd matters.
	network = "^Test(Attack)?Rootless(Private|Reaches|Publish|Services|Network)"
	// turns matches the attacks on network namespaces that serve again, which try everything
	// that a kernel may count, and what depends on the kernel in the gateways' own namespaces:
	// on the oldest and this machine's.
	turns = "^TestAttackRootlessNetwork|^TestRootless(Forged|MembersLeaveNothing)$"
	// here matches the tests of streams, terminals and refusals, which are this process's work
	// or the filter's, for a user whose cgroups are made by its systemd.
	here = "^TestRootless(Terminal|WaitDelay|Refusals|SlowRefusals|Streams|Handed|Pipes|Names|FS|Scratch|StopSignal)"
	// filter matches the attacks that the filter, the fork server and this process withstand:
	// programs of this library's, the same on every kernel.
	filter = "^TestAttack(Kernel|Unruly|ForkServerKilled|Liar|BombsPrepared|BombsBeside|Lengths|Scenarios|RootlessRefusals|RootlessExec|RootlessTerminal)$"
)

// Configurations is the matrix. The tests run in all of them in this order, with guests in
// parallel.
var Configurations = []Configuration{
	{Name: "host", Always: true, Note: "this machine, as the user at hand"},
	{Name: "host-user", Always: true, As: "user", Packages: public, Run: user, Note: "this machine, as uid 1000 without subordinate ids"},
	{Name: "docker-default", Always: true, As: "docker", Packages: []string{"internal/e2e"}, Run: container, Note: "root in a container of docker run without flags: only the error that says which"},
	{Name: "docker", Always: true, As: "docker", Packages: public, Run: user + "|" + container, Skip: slow + "|" + own, Note: "the same with the least flags that make runs work: the rootless tests"},
	{Name: "docker-cap", As: "docker", Packages: public, Run: tests, Note: "the same with CAP_SYS_ADMIN"},
	{Name: "docker-privileged", As: "docker", Packages: public, Run: tests, Optional: true, Note: "docker run --privileged"},
	{Name: "guest", Always: true, Kernel: "6.12", As: "root", Packages: kernel, Skip: slow + "|" + own + "|" + scripts + "|" + reports + "|" + killed + "|" + turns, Note: "plain init, cgroup v2, root"},
	{Name: "systemd-user", Always: true, Kernel: "6.12", As: "systemd-user", Packages: makers, Run: delegated, Skip: slow + "|" + own + "|" + compat + "|" + network + "|" + here, Note: "uid 1000, in a service with Delegate=yes of its user manager"},
	{Name: "linux-5.10", Always: true, Kernel: "5.10", As: "root", Packages: placed, Run: sample, Skip: slow + "|" + own + "|" + compat + "|" + gateway + "|" + filter, Optional: true, Note: "plain init, root"},
	{Name: "systemd", Kernel: "6.12", As: "systemd", Packages: placed, Run: sample, Skip: slow, Note: "root, in a service without delegation"},
	{Name: "systemd-service", Kernel: "6.12", As: "systemd-service", Packages: placed, Run: sample, Skip: slow, Note: "root, in a service with Delegate=yes"},
	{Name: "linux-6.1", Kernel: "6.1", As: "root", Packages: placed, Run: tests, Skip: slow, Note: "plain init, root"},
	{Name: "linux-6.1-user", Kernel: "6.1", As: "user", Packages: public, Run: user, Note: "plain init, uid 1000 with subordinate ids, no delegation"},
	{Name: "linux-newest", Kernel: "newest", As: "root", Packages: placed, Run: tests, Skip: slow, Optional: true, Note: "plain init, root"},
}

// Named returns the configuration with that name.
func Named(name string) (c Configuration, ok bool) {
	i := slices.IndexFunc(Configurations, func(c Configuration) bool { return c.Name == name })
	if i < 0 {
		return c, false
	}
	return Configurations[i], true
}

// Whole returns the configuration with everything that can be tested in it, for make matrix.
func (c Configuration) Whole() Configuration {
	c.Skip = ""
	switch c.Run {
	case sample:
		c.Run = tests
	case delegated:
		c.Run = user
	}
	switch {
	case slices.Equal(c.Packages, kernel):
		c.Packages = nil
	case slices.Equal(c.Packages, makers):
		c.Packages = public
	}
	return c
}

// Guest reports whether the tests run in a virtual machine.
func (c Configuration) Guest() bool { return c.Kernel != "" }

// Root reports whether the tests run as root of a machine, and not of a container.
func (c Configuration) Root() bool {
	return slices.Contains([]string{"", "root", "systemd", "systemd-service"}, c.As)
}

// User reports whether the tests run as an ordinary user.
func (c Configuration) User() bool { return c.As == "user" || c.As == "systemd-user" }

// Since reports whether the kernel is that one or a later one. For this machine's own kernel it is
// assumed to be.
func (c Configuration) Since(major, minor int) bool {
	var is [2]int
	if n, _ := fmt.Sscanf(c.Kernel, "%d.%d", &is[0], &is[1]); n < 2 {
		return true // this machine's, or the newest
	}
	return is[0] > major || is[0] == major && is[1] >= minor
}
