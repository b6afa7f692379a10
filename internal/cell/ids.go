package cell

import (
	"bufio"
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

// ids says which host ids a cell maps and gives every live run a part of its
// own of them.
//
// A wide cell gives each run 65536 ids in a row. A narrow one, which has only
// what /etc/subuid grants a user, gives each run two: its PID 1's and its
// user's. A single one has nothing but the user's own id, for all.
type ids struct {
	uid, gid idRange
	rootless bool
	host     bool // there is no user namespace: ids are the host's, and runs share them

	mu   sync.Mutex
	next int64
	free []int64 // blocks given back
}

const (
	// As root a cell takes ids from here on: above what systemd-nspawn hands
	// out (524288-1879048191, systemd's UIDS-GIDS) and below 2^31.
	rootStart = 0x70000000
	rootSize  = 0x10000000
	wideBlock = 65536
)

func (i *ids) size() int64  { return min(i.uid.size, i.gid.size) }
func (i *ids) single() bool { return i.size() < 4 }
func (i *ids) wide() bool   { return i.size() >= 64*wideBlock }

func (i *ids) block() int64 {
	if i.wide() {
		return wideBlock
	}
	return 2
}

// take reserves a block; the result is the block's first id inside the cell.
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
	// The first block is the fork server's own: id 0 is its root.
	b := (i.next + 1) * i.block()
	if b+i.block() > i.size() {
		return 0, fmt.Errorf("all %d user id blocks of this cell are in use by live runs: wait for runs to end or use another cell", i.next)
	}
	i.next++
	return b, nil
}

func (i *ids) give(block int64) {
	if i.single() || i.host {
		return
	}
	i.mu.Lock()
	i.free = append(i.free, block)
	i.mu.Unlock()
}

// runMap is the content of uid_map or gid_map of a run whose user has the
// given id. With own, the user is the cell's id 0: rootless, that is the
// caller, the only one who owns files outside.
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

// userID is where runMap puts the run's user, inside the cell.
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

// hostIDs are those of a cell without a user namespace.
func hostIDs() *ids {
	all := idRange{0, 1<<32 - 1}
	return &ids{uid: all, gid: all, host: true}
}

// exists tells whether this process's user namespace has the ids. setfsuid(2), which runs without a
// namespace of their own rely on, does not say if it has not.
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

// rootRange is the default range, or, where this process's own user namespace
// does not have it (root in a container), the upper half of what there is.
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

// subIDs is the largest range that the file grants this user (subuid(5)).
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

// blocks is how many runs can have ids of their own at one time.
func (i *ids) blocks() int64 { return i.size()/i.block() - 1 }
