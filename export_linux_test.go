package sandbox

// Waiting returns the pids of the prepared runs that wait for a command.
func (s *Sandbox) Waiting() []int { return s.is.Waiting() }
