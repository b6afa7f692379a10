package sandbox

import "syscall"

// Waiting is the commands of the runs that wait for theirs, by pid.
func (s *Sandbox) Waiting() (pids []int) {
	v := s.prepared.reserve
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.waiting {
		pids = append(pids, r.pid)
	}
	return pids
}

// KillWaiting kills PID 1 of the first run that waits, or the command.
func (s *Sandbox) KillWaiting(init bool) error {
	v := s.prepared.reserve
	v.mu.Lock()
	defer v.mu.Unlock()
	if init {
		return pidfdSignal(v.waiting[0].pidfd, syscall.SIGKILL)
	}
	return pidfdSignal(v.waiting[0].command, syscall.SIGKILL)
}

// BeIdle has the time of those that wait run out.
func (s *Sandbox) BeIdle() { s.prepared.reserve.idle.Reset(0) }
