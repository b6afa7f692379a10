package program

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Machine holds one loaded program. Everything that the executor touches lies
// in one mapping outside the Go heap, so that nothing is allocated, moved or
// write-barriered between clone and exec.
type Machine struct {
	mem   []byte
	state *state
	used  int // bytes of the last image
}

// state is what the executor works on.
type state struct {
	slots  [MaxSlots]uint64
	ops    unsafe.Pointer // the first call
	data   unsafe.Pointer
	first  [numParts + 1]uintptr
	pc     uintptr
	tried  syscall.Errno
	failed uint32
	event  event
	clone  cloneArgs
	pidfd  int32
	status uint32
	rusage syscall.Rusage
}

// NewMachine reserves the memory for programs of up to MaxImage bytes. Pages
// are only used as programs need them.
func NewMachine() (*Machine, error) {
	size := int(unsafe.Sizeof(state{})) + MaxImage
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes for programs: %w", size, err)
	}
	return &Machine{mem: mem, state: (*state)(unsafe.Pointer(&mem[0]))}, nil
}

// Address lies in the memory that a clone executes from.
func (m *Machine) Address() uintptr { return uintptr(unsafe.Pointer(&m.mem[0])) }

// Buffer is where an image can be put before it is loaded, to save a copy.
//
//go:norace
func (m *Machine) Buffer() []byte { return m.mem[unsafe.Sizeof(state{}):] }

// Load copies the image into the machine and turns its offsets into
// addresses. Every offset and slot is checked; an image that fails a check is
// not loaded. The first descriptor is the socket that events are written to.
//
//go:norace
func (m *Machine) Load(image []byte, files []int) error {
	// No clone may find another run's arguments in its copy.
	n := min(len(image), MaxImage)
	clear(m.Buffer()[n:max(n, m.used)])
	m.used = n
	var h header
	if err := h.unmarshal(image); err != nil {
		return err
	}
	if len(files) != int(h.files) {
		return imageError("other descriptors came than it wants")
	}
	calls := int(h.calls[0] + h.calls[1] + h.calls[2])
	mem := m.Buffer()
	mem = mem[:copy(mem, image)]
	ops := mem[headerSize:][:calls*opSize]
	relocs := mem[headerSize+len(ops):][:8*h.relocs]
	data := mem[headerSize+len(ops)+len(relocs):]

	if err := relocate(data, relocs); err != nil {
		return err
	}
	for i := range calls {
		if err := resolve((*op)(unsafe.Pointer(&ops[i*opSize])), data); err != nil {
			return err
		}
	}
	s := m.state
	*s = state{}
	for i, fd := range files {
		s.slots[i] = uint64(fd)
	}
	if calls > 0 {
		s.ops = unsafe.Pointer(&ops[0])
	}
	if len(data) > 0 {
		s.data = unsafe.Pointer(&data[0])
	}
	for part := range numParts {
		s.first[part+1] = s.first[part] + uintptr(h.calls[part])
	}
	return nil
}

//go:norace
func relocate(data, relocs []byte) error {
	if len(data) == 0 {
		if len(relocs) > 0 {
			return imageError("pointers without data")
		}
		return nil
	}
	base := uint64(uintptr(unsafe.Pointer(&data[0])))
	for ; len(relocs) > 0; relocs = relocs[8:] {
		at := native.Uint64(relocs)
		if at%8 != 0 || at >= uint64(len(data)) {
			return imageError("pointer outside the data")
		}
		to := native.Uint64(data[at:])
		if to >= uint64(len(data)) {
			return imageError("pointer to outside the data")
		}
		native.PutUint64(data[at:], base+to)
	}
	return nil
}

//go:norace
func resolve(o *op, data []byte) error {
	if o.out != NoSlot && o.out >= MaxSlots {
		return imageError("result outside the slots")
	}
	for i, kind := range o.kinds {
		switch kind {
		case kindInt:
		case kindSlot:
			if o.args[i] >= MaxSlots {
				return imageError("argument outside the slots")
			}
		case kindData:
			if o.args[i] >= uint64(len(data)) {
				return imageError("argument outside the data")
			}
			o.args[i] += uint64(uintptr(unsafe.Pointer(&data[0])))
		default:
			return imageError("argument of unknown kind")
		}
	}
	if o.num == callPoke && (o.kinds[0] != kindInt || o.args[0] >= uint64(len(data)) || o.args[0]%4 != 0) {
		return imageError("store outside the data")
	}
	return nil
}
