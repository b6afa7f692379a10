//go:build linux

package cell

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// idRange is a block of ids of this process's user namespace.
type idRange struct{ start, size int64 }

// ids knows which host ids a cell maps, and gives every live run a block of them that no other run
// on the machine has.
//
// A wide cell gives each run 65536 consecutive ids. A narrow one, which has only what /etc/subuid
// grants a user, gives each run two: its init's and its user's. A single one has only the user's
// own id, which all runs share.
type ids struct {
	uid, gid idRange
	rootless bool
	host     bool // no user namespace: ids are the host's, and runs share them
	// The cell's map is a single extent: as root, it does without the blocks below its own.
	oneExtent bool

	claims *claims
	root   int64 // as root: the cell's own block in uid and gid

	mu   sync.Mutex
	next int64
	held map[int64]bool // blocks that are claimed
	free []int64        // the held blocks that no run has
}

const (
	// As root, a cell takes ids from here on: above those that systemd-nspawn uses
	// (524288-1879048191, systemd's UIDS-GIDS) and below 2^31.
	rootStart = 0x70000000
	rootSize  = 0x10000000
	wideBlock = 65536
)

func (i *ids) size() int64  { return min(i.uid.size, i.gid.size) }
func (i *ids) single() bool { return i.size() < 4 }
func (i *ids) wide() bool   { return i.size() >= 64*wideBlock }

// keepOwners reports whether files of a mount can have the same owners in a run as on the host.
func (i *ids) keepOwners() bool { return i.wide() && !i.rootless && !i.host }

func (i *ids) block() int64 {
	if i.wide() {
		return wideBlock
	}
	return 2
}

// open prepares the ids for take and claims the cell's own block, which is the fork server's. root
// is the state directory.
func (i *ids) open(root string) (err error) {
	if i.claims, err = openClaims(root); err != nil {
		return err
	}
	i.held = map[int64]bool{}
	if i.single() || i.host || i.rootless {
		return nil
	}
	for ; i.root+i.block() <= i.size(); i.root += i.block() {
		if ok, err := i.claims.claim(i.hostRange(i.uid, 0), i.hostRange(i.gid, 0)); ok || err != nil {
			return err
		}
	}
	return errNoBlock
}

func (i *ids) close() {
	if i.claims != nil {
		i.claims.file.Close()
	}
}

var errNoBlock = errors.New("all user id blocks of this machine are in use by live runs: wait for runs to end")

// spare is how many blocks a cell keeps for its next runs. A block that is used again needs no new
// idmaps.
const spare = 64

// take reserves a block and returns the block's first id inside the cell.
func (i *ids) take() (int64, error) {
	if i.single() || i.host {
		return 0, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if n := len(i.free); n > 0 {
		b := i.free[n-1]
		i.free = i.free[:n-1]
		return b, nil
	}
	for range i.blocks() {
		// The first block is the fork server's own, which uses its id 0.
		i.next = i.next%i.blocks() + 1
		b := i.next * i.block()
		if i.held[b] {
			continue
		}
		ok, err := i.claims.claim(i.hostRange(i.uid, b), i.hostRange(i.gid, b))
		if err != nil {
			return 0, err
		}
		if ok {
			i.held[b] = true
			return b, nil
		}
	}
	return 0, errNoBlock
}

// give returns a block. It calls forget if the cell does not keep the block.
func (i *ids) give(block int64, forget func(int64)) {
	if i.single() || i.host {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.free) < spare {
		i.free = append(i.free, block)
		return
	}
	forget(block) // while nobody else can have it
	delete(i.held, block)
	i.claims.drop(i.hostRange(i.uid, block), i.hostRange(i.gid, block))
}

// hostRange returns the host ids of a block.
func (i *ids) hostRange(r idRange, block int64) idRange {
	for _, e := range i.extents(r, 0) {
		if block >= e.inside && block < e.inside+e.size {
			return idRange{e.outside + block - e.inside, i.block()}
		}
	}
	return idRange{}
}

// extent is a line of a uid_map or gid_map.
type extent struct{ inside, outside, size int64 }

// extents returns the cell's map of a range. Id 0 maps to own, the caller's id, or as root to the
// cell's own block.
func (i *ids) extents(r idRange, own int64) (list []extent) {
	all := []extent{{0, r.start + i.root, i.block()}, {i.block(), r.start, i.root}, {i.root + i.block(), r.start + i.root + i.block(), r.size - i.root - i.block()}}
	switch {
	case r.size == 1:
		all = []extent{{0, r.start, 1}}
	case i.oneExtent && !i.rootless:
		all = []extent{{0, r.start + i.root, r.size - i.root}}
	case i.rootless:
		all = []extent{{0, own, 1}, {1, r.start, r.size - 1}}
	}
	for _, e := range all {
		if e.size > 0 {
			list = append(list, e)
		}
	}
	return list
}

// runMap returns the content of uid_map or gid_map for a run whose user has the given id. With own,
// the user is the cell's id 0: in a rootless cell that is the caller, the only user who owns files
// outside.
func (i *ids) runMap(block, id int64, own bool) string {
	switch {
	case i.single():
		return fmt.Sprintf("%d 0 1\n", id)
	case own && id == 0:
		return "0 0 1\n"
	case own:
		return fmt.Sprintf("0 %d 1\n%d 0 1\n", block, id)
	case i.wide():
		return fmt.Sprintf("0 %d %d\n", block, wideBlock)
	case id == 0:
		return fmt.Sprintf("0 %d 1\n", block)
	default:
		return fmt.Sprintf("0 %d 1\n%d %d 1\n", block, id, block+1)
	}
}

// userID returns the id inside the cell to which runMap maps the run's user.
func (i *ids) userID(block, id int64) int64 {
	switch {
	case i.single():
		return 0
	case i.wide():
		return block + id
	case id == 0:
		return block
	default:
		return block + 1
	}
}

// chooseIDs finds the ids that a cell of this process can map.
func chooseIDs() (*ids, error) {
	uidMap, err := readIDMap("/proc/self/uid_map")
	if err != nil {
		return nil, err
	}
	gidMap, err := readIDMap("/proc/self/gid_map")
	if err != nil {
		return nil, err
	}
	if asRoot() {
		return &ids{uid: rootRange(uidMap), gid: rootRange(gidMap)}, nil
	}
	own := &ids{rootless: true, uid: idRange{int64(os.Geteuid()), 1}, gid: idRange{int64(os.Getegid()), 1}}
	uid, gid, may := subIDs("/etc/subuid"), subIDs("/etc/subgid"), mappingTools
	if os.Geteuid() == 0 {
		uid, gid, may = rootRange(uidMap), rootRange(gidMap), mayMapIDs
	}
	if min(uid.size, gid.size) >= 3 && may() {
		own.uid, own.gid = uid, gid
		own.uid.size++ // and the caller's own id, as the cell's root
		own.gid.size++
	}
	return own, nil
}

// WideIDs reports what Cell.WideIDs would for a cell of this process.
func WideIDs() bool {
	i, err := chooseIDs()
	return err == nil && i.keepOwners()
}

// hostIDs returns the ids of a cell without a user namespace.
func hostIDs() *ids {
	all := idRange{0, 1<<32 - 1}
	return &ids{uid: all, gid: all, host: true}
}

// exists reports whether this process's user namespace has the ids. Runs without a user namespace
// rely on setfsuid(2), which does not report a missing id.
func exists(uid, gid int) bool {
	has := func(path string, id int) bool {
		list, err := readIDMap(path)
		return err != nil || slices.ContainsFunc(list, func(r idRange) bool { return int64(id) >= r.start && int64(id) < r.start+r.size })
	}
	return has("/proc/self/uid_map", uid) && has("/proc/self/gid_map", gid)
}

func mappingTools() bool {
	_, err1 := exec.LookPath("newuidmap")
	_, err2 := exec.LookPath("newgidmap")
	return err1 == nil && err2 == nil
}

// rootRange returns the default range, or, if this process's own user namespace does not have that
// (root in a container), the upper half of the ids that there are.
func rootRange(own []idRange) idRange {
	var largest idRange
	for _, r := range own {
		if r.start <= rootStart && r.start+r.size >= rootStart+rootSize {
			return idRange{rootStart, rootSize}
		}
		if r.size > largest.size {
			largest = r
		}
	}
	half := largest.size / 2
	if half < 4 {
		return idRange{largest.start, 1}
	}
	return idRange{largest.start + largest.size - half, half}
}

// readIDMap returns the ids that exist in this user namespace.
func readIDMap(path string) ([]idRange, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("user namespaces: %w", err)
	}
	defer f.Close()
	var ranges []idRange
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var inside, outside, size int64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, lines.Text(), err)
		}
		ranges = append(ranges, idRange{inside, size})
	}
	return ranges, nil
}

// subIDs returns the largest range that the file grants this user (subuid(5)).
func subIDs(path string) idRange {
	f, err := os.Open(path)
	if err != nil {
		return idRange{}
	}
	defer f.Close()
	uid := strconv.Itoa(os.Geteuid())
	name := uid
	if u, err := user.LookupId(uid); err == nil {
		name = u.Username
	}
	return parseSubIDs(f, name, uid)
}

func parseSubIDs(r io.Reader, name, uid string) (best idRange) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) != 3 || fields[0] != name && fields[0] != uid {
			continue
		}
		start, err1 := strconv.ParseInt(fields[1], 10, 64)
		size, err2 := strconv.ParseInt(fields[2], 10, 64)
		if err1 == nil && err2 == nil && start > 0 && size > best.size && size < 1<<32-1 && start < 1<<32-1-size {
			best = idRange{start, size}
		}
	}
	return best
}

// blocks returns how many runs can have ids of their own at the same time.
func (i *ids) blocks() int64 {
	mapped := i.size()
	if i.oneExtent {
		mapped -= i.root
	}
	return mapped/i.block() - 1
}
