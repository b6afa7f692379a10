package sandbox

// Waiting is the commands of the runs that wait for theirs, by pid.
func (s *Sandbox) Waiting() []int { return s.is.Waiting() }
