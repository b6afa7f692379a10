//go:build linux

package limits

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	killPasses = 20  // after these, Group.Kill freezes what still forks
	killBatch  = 128 // pidfds open at a time
)

// errForking reports that new members appear as fast as the old ones are killed.
var errForking = errors.New("processes are forked as fast as they are killed")

// killMembers sends SIGKILL to every process in dirs until there are no new ones. A process with a
// pending SIGKILL can't fork. A fork that was already past that check becomes a member only after
// it: kernel/fork.c, copy_process, cgroup_post_fork.
func killMembers(dirs []string) error {
	killed := map[int]bool{}
	var errs []error
	for _, dir := range dirs {
		err := errForking
		for pass := 0; pass < killPasses && errors.Is(err, errForking); pass++ {
			err = killPass(dir, killed)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("kill members of %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// killPass kills the members of dir that are not in killed. It returns errForking if there were
// some, nil if there were none.
func killPass(dir string, killed map[int]bool) error {
	pids, err := members(dir)
	if err != nil {
		return err
	}
	var fresh []int
	for _, pid := range pids {
		if !killed[pid] && pid != os.Getpid() {
			fresh = append(fresh, pid)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	for len(fresh) > 0 {
		n := min(len(fresh), killBatch)
		if err := killPIDs(dir, fresh[:n], killed); err != nil {
			return err
		}
		fresh = fresh[n:]
	}
	return errForking
}

// killPIDs kills members of dir and never another process, although a pid may be given to another
// process before the signal is sent. It opens pidfds first and then signals the processes whose
// pids are still listed: if a pid belongs to another process by now, the pidfd is still that of the
// dead one.
func killPIDs(dir string, pids []int, killed map[int]bool) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil && !gone(err) {
			return fmt.Errorf("pidfd_open %d: %w", pid, err)
		}
		if err == nil {
			fds[pid] = fd
		}
	}
	listed, err := members(dir)
	if err != nil {
		return err
	}
	for _, pid := range listed {
		fd, ok := fds[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !gone(err) {
			return fmt.Errorf("pidfd_send_signal %d: %w", pid, err)
		}
		killed[pid] = true
	}
	return nil
}

// members lists the processes of one directory. Zombies are not listed.
func members(dir string) ([]int, error) {
	var buf [1024]byte
	data, err := readFile(dir+"/cgroup.procs", buf[:])
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pids, hidden := parsePIDs(data)
	if hidden {
		return pids, errors.New("a member is outside of this process's pid namespace; only its own host can end it")
	}
	return pids, nil
}
