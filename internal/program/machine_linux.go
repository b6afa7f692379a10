package program

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Machine holds one loaded program. Everything that the executor uses is in one mapping outside the
// Go heap, so that nothing is allocated, moved or write-barriered between clone and exec: two small
// stacks, and the executor's state followed by the program's image. Behind that a clone has those
// of the program that it receives. All is close together, because the pages, and the tables of
// pages, that a clone has are what it costs.
type Machine struct {
	mem   []byte
	state *state
	used  int // bytes of the last image

	stays bool       // whether clones may stay on their processor
	has   processors // when that was found out
	stuck bool       // this process stayed on one processor after a clone
	last  int64      // when one was loaded that might have stayed, in nanoseconds
}

// state is the executor's state.
type state struct {
	slots   [MaxSlots]int32
	image   unsafe.Pointer // where the program's image is
	data    uintptr        // where the data begins in it
	first   [numParts + 1]uintptr
	base    uint32 // the number of the first call, for events
	pc      uintptr
	tried   syscall.Errno
	failed  uint32
	event   event
	stacks  uintptr // of the command, and behind it of PID 1
	command uintptr // entry of runCommand
	clone   cloneArgs
	status  uint32
	rusage  syscall.Rusage

	receives bool   // the command goes on with another program
	stays    bool   // on one processor, until it has come to that
	passed   uint64 // how many descriptors that program has got already
	next     *state // of that program, with an inbox behind it; only clones write to it
}

// stackSize is enough for functions that don't check it: the linker allows them 800 bytes together.
// Both stacks and a state are in one page.
const stackSize = 832

// threadLocal is more than the variables of a thread that C code in this binary may have. They are
// below the address that clones have as their thread's, the state's; Go reads its own, which is
// zero there and not used, after calls of assembly.
const threadLocal = 1 << 20

// NewMachine reserves the memory for two programs of up to MaxImage bytes, since the first one's
// command may receive another. Pages are only used when programs need them. If it can, the kernel
// puts it near this binary, so that both have tables of pages in common. Huge pages, which Linux
// uses unasked where /sys/kernel/mm/transparent_hugepage/enabled is "always", would be cleared
// whole for the few kilobytes that most programs have.
func NewMachine() (*Machine, error) {
	const table, beside = 2 << 20, 256 << 20
	near := unsafe.Add(unsafe.Pointer(&nowhere), beside-int(uintptr(unsafe.Pointer(&nowhere))%table))
	size := threadLocal + 2*stackSize + 2*(unsafe.Sizeof(state{})+MaxImage) + unsafe.Sizeof(inbox{})
	at, err := unix.MmapPtr(-1, 0, near, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes for programs: %w", size, err)
	}
	// EINVAL: a kernel that has none.
	_ = unix.Madvise(unsafe.Slice((*byte)(at), size), unix.MADV_NOHUGEPAGE)
	mem := unsafe.Slice((*byte)(at), size)[threadLocal:]
	return &Machine{mem: mem, state: (*state)(unsafe.Pointer(&mem[2*stackSize]))}, nil
}

// Close gives the memory back. The machine can't be used any more.
func (m *Machine) Close() {
	_ = unix.MunmapPtr(unsafe.Add(unsafe.Pointer(unsafe.SliceData(m.mem)), -threadLocal), threadLocal+uintptr(len(m.mem)))
}

// Address returns an address in the memory that a clone executes from.
func (m *Machine) Address() uintptr { return uintptr(unsafe.Pointer(&m.mem[0])) }

// Buffer returns the memory into which an image can be put before it is loaded, to save a copy.
//
//go:norace
func (m *Machine) Buffer() []byte { return m.mem[2*stackSize+unsafe.Sizeof(state{}):][:MaxImage] }

// Expect makes room for an image of size bytes that is about to be received into Buffer.
//
//go:norace
func (m *Machine) Expect(size int) {
	m.used = max(m.used, size) // whether it is loaded or not
	populate(uintptr(unsafe.Pointer(m.state)), unsafe.Sizeof(state{})+uintptr(size))
}

// populate makes pages that are about to be written private to this process, all in one call: each
// that was shared at a clone, or is new, is a page fault otherwise. Before Linux 5.14 it does
// nothing: madvise(2), MADV_POPULATE_WRITE.
//
//go:nosplit
//go:norace
//go:nocheckptr
func populate(at, size uintptr) {
	part := at & (pageSize - 1)
	_, _ = sys(unix.SYS_MADVISE, at-part, size+part, unix.MADV_POPULATE_WRITE, 0, 0, 0)
}

// pageSize is that of most machines. With larger pages populate does nothing.
const pageSize = 4 << 10

// forget leaves nothing of the last image behind the first n bytes: no clone may find another run's
// arguments in its copy. It gives back whole pages, because each that is left makes every clone and
// its end longer.
//
//go:norace
func (m *Machine) forget(n int) {
	old := m.Buffer()[n:max(n, m.used)]
	m.used = n
	page := uintptr(os.Getpagesize())
	at := uintptr(unsafe.Pointer(unsafe.SliceData(old)))
	if part := uintptr(-at) % page; part < uintptr(len(old)) {
		if _, _, errno := syscall.RawSyscall(unix.SYS_MADVISE, at+part, uintptr(len(old))-part, unix.MADV_DONTNEED); errno == 0 {
			old = old[:part]
		}
	}
	clear(old)
}

// Load copies the image into the machine and turns the pointers in its data into addresses. It
// checks every offset and slot, and does not load an image that fails a check. The first descriptor
// is the socket that events are written to.
//
//go:norace
func (m *Machine) Load(image []byte, files []int) error {
	n := min(len(image), MaxImage)
	m.forget(n)
	copy(m.Buffer(), image)
	s := m.state
	*s = state{
		stacks:  m.Address(),
		command: entry(runCommand),
		image:   unsafe.Pointer(&m.Buffer()[0]),
		next:    (*state)(unsafe.Add(unsafe.Pointer(&m.Buffer()[0]), (n+7)&^7)),
	}
	if err := load(s, len(image), len(files)); err != nil {
		return err
	}
	for i, fd := range files {
		s.slots[i] = int32(fd)
	}
	m.letStay()
	return nil
}

// letStay has the next clone stay on its processor, if that goes on with another program, and takes
// this process off the one that it was left on.
//
//go:norace
func (m *Machine) letStay() {
	// Before anything else: what it has then is nobody's choice, and would be the next clone's.
	if m.stuck {
		if m.stuck = roam() != 0; m.stuck {
			return
		}
	}
	s := m.state
	if last := s.first[Init]; last == s.first[Command] || (*op)(unsafe.Add(s.image, headerSize+(last-1)*opSize)).num != callReceive {
		return
	}
	now := monotonic()
	alone := now-m.last > crowded
	m.last = now
	var has processors
	if !alone || affinity(unix.SYS_SCHED_GETAFFINITY, &has) != 0 {
		return
	}
	if has != m.has {
		m.has, m.stays = has, mayStay(&has)
	}
	s.stays = m.stays
}
