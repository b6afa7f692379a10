package program

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Machine holds one loaded program. Everything that the executor uses is in one mapping outside the
// Go heap, so that nothing is allocated, moved or write-barriered between clone and exec.
type Machine struct {
	mem   []byte // of the loaded program
	state *state
	next  *state // only clones write to it
	used  int    // bytes of the last image
}

// state is the executor's state.
type state struct {
	slots  [MaxSlots]uint64
	image  unsafe.Pointer // where the program's image is, or will be
	data   uintptr        // where the data begins in it
	first  [numParts + 1]uintptr
	base   uint32 // the number of the first call, for events
	pc     uintptr
	tried  syscall.Errno
	failed uint32
	event  event
	clone  cloneArgs
	pidfd  int32
	status uint32
	rusage syscall.Rusage

	receives bool   // the command goes on with another program
	passed   uint64 // how many descriptors that program has got already
	next     *state // of that program
	inbox    inbox
}

// NewMachine reserves the memory for two programs of up to MaxImage bytes, since the first one's
// command may receive another. Pages are only used when programs need them.
func NewMachine() (*Machine, error) {
	one := int(unsafe.Sizeof(state{})) + MaxImage
	mem, err := unix.Mmap(-1, 0, 2*one, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes for programs: %w", 2*one, err)
	}
	next := (*state)(unsafe.Pointer(&mem[one]))
	next.image = unsafe.Add(unsafe.Pointer(next), unsafe.Sizeof(state{}))
	return &Machine{mem: mem[:one], state: (*state)(unsafe.Pointer(&mem[0])), next: next}, nil
}

// Address returns an address in the memory that a clone executes from.
func (m *Machine) Address() uintptr { return uintptr(unsafe.Pointer(&m.mem[0])) }

// Buffer returns the memory into which an image can be put before it is loaded, to save a copy.
//
//go:norace
func (m *Machine) Buffer() []byte { return m.mem[unsafe.Sizeof(state{}):] }

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

// Load copies the image into the machine and turns its offsets into addresses. It checks every
// offset and slot, and does not load an image that fails a check. The first descriptor is the
// socket that events are written to.
//
//go:norace
func (m *Machine) Load(image []byte, files []int) error {
	n := min(len(image), MaxImage)
	m.forget(n)
	copy(m.Buffer(), image)
	s := m.state
	*s = state{image: unsafe.Pointer(&m.Buffer()[0]), next: m.next}
	if err := load(s, len(image), len(files)); err != nil {
		return err
	}
	for i, fd := range files {
		s.slots[i] = uint64(fd)
	}
	return nil
}
