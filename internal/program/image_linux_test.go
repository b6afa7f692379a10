package program

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func unmap(t testing.TB, m *Machine) {
	require.NoError(t, unix.MunmapPtr(unsafe.Add(unsafe.Pointer(&m.mem[0]), -threadLocal), threadLocal+uintptr(len(m.mem))))
}

// sample is a small program with a call of every kind.
func sample(t testing.TB) *Program {
	t.Helper()
	b := NewBuilder()
	in := b.File("in")
	b.Wait(in)
	fd := b.CallTo("open", unix.SYS_OPENAT, AtCWD, b.Str("/x"))
	b.SendFile(fd)
	b.In(Command)
	b.CallTry("execve", unix.SYS_EXECVE, b.Str("/x"), b.Strings([]string{"x"}), b.Strings(nil))
	b.FailTried("x")
	b.In(Init)
	b.Event(Started)
	p, err := b.Program()
	require.NoError(t, err)
	return p
}

func TestLoadRefusesDamage(t *testing.T) {
	p := sample(t)
	good := p.Image()
	relocs := headerSize + opSize*len(p.lines)
	op := func(call int) int { return headerSize + opSize*call }
	poke := 2 // of SendFile: wait, open, store
	put32 := func(b []byte, at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
	put64 := func(b []byte, at int, v uint64) { binary.NativeEndian.PutUint64(b[at:], v) }
	tests := []struct {
		name   string
		damage func(b []byte) []byte
		want   string
	}{
		{"empty", func([]byte) []byte { return nil }, "no header"},
		{"only part of a header", func(b []byte) []byte { return b[:headerSize-1] }, "no header"},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, "sizes disagree"},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "sizes disagree"},
		{"magic", func(b []byte) []byte { b[0]++; return b }, "wrong magic"},
		{"calls", func(b []byte) []byte { put32(b, 8, 1<<31); return b }, "sizes disagree"},
		{"calls that overflow", func(b []byte) []byte {
			put32(b, 8, 1<<31)
			put32(b, 12, 1<<31)
			return b
		}, "sizes disagree"},
		{"no descriptor", func(b []byte) []byte { put32(b, 28, 0); return b }, "descriptor count"},
		{"too many descriptors", func(b []byte) []byte { put32(b, 28, MaxFiles+1); return b }, "descriptor count"},
		{"other descriptors", func(b []byte) []byte { put32(b, 28, 1); return b }, "other descriptors"},
		{"result slot", func(b []byte) []byte {
			binary.NativeEndian.PutUint16(b[op(0)+4:], MaxSlots)
			return b
		}, "result outside the slots"},
		{"argument slot", func(b []byte) []byte { put32(b, op(0)+16, MaxSlots); return b }, "argument outside the slots"},
		{"argument kind", func(b []byte) []byte { b[op(0)+8] = 3; return b }, "unknown kind"},
		{"offset", func(b []byte) []byte { put32(b, op(0)+20, uint32(len(b))); return b }, "argument outside the data"},
		{"store behind the data", func(b []byte) []byte { put32(b, op(poke)+16, 1<<20); return b }, "store or load outside the data"},
		{"store before the data", func(b []byte) []byte { put32(b, op(poke)+16, ^uint32(3)); return b }, "store or load outside the data"},
		{"store across words", func(b []byte) []byte { b[op(poke)+16]++; return b }, "store or load outside the data"},
		{"store to an address", func(b []byte) []byte { b[op(poke)+8] = kindData; return b }, "store or load outside the data"},
		{"store to what a slot says", func(b []byte) []byte { b[op(poke)+8] = kindSlot; return b }, ""},
		{"pointer at an odd place", func(b []byte) []byte { b[relocs]++; return b }, "pointer outside the data"},
		{"pointer far away", func(b []byte) []byte { put64(b, relocs, 1<<40); return b }, "pointer outside the data"},
		{"pointer to far away", func(b []byte) []byte {
			at := binary.NativeEndian.Uint64(b[relocs:])
			data := relocs + 8*int(binary.NativeEndian.Uint32(b[20:]))
			put64(b, data+int(at), 1<<40)
			return b
		}, "pointer to outside the data"},
		{"the same pointer twice", func(b []byte) []byte {
			copy(b[relocs+8:], b[relocs:relocs+8])
			return b
		}, "pointer to outside the data"},
	}
	m := newMachine(t)
	files := []int{0, 1}
	require.NoError(t, m.Load(good, files))
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bad := test.damage(bytes.Clone(good))
			err := m.Load(bad, files)
			require.Zero(t, testing.AllocsPerRun(10, func() { _ = m.Load(bad, files) }), "the fork server must not allocate")
			require.IsType(t, imageError(""), err)
			require.ErrorContains(t, err, test.want)
		})
	}
	require.NoError(t, m.Load(good, []int{0, 1}), "after images that were refused")
}

func TestLoadPutsDescriptorsIntoSlots(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, m.Load(sample(t).Image(), []int{70, 71}))
	require.Equal(t, []int32{70, 71, 0}, m.state.slots[:3])
}

// TestLoadFromBuffer loads an image that was received into the machine.
func TestLoadFromBuffer(t *testing.T) {
	m := newMachine(t)
	require.Len(t, m.Buffer(), MaxImage)
	image := sample(t).Image()
	require.NoError(t, m.Load(m.Buffer()[:copy(m.Buffer(), image)], []int{0, 1}))
	checkLoaded(t, m, image)
}

func TestLoadForgets(t *testing.T) {
	m := newMachine(t)
	b := NewBuilder()
	secret := strings.Repeat("a secret of the run before ", 1000)
	b.Call("execve", unix.SYS_EXECVE, b.Str(secret))
	p, err := b.Program()
	require.NoError(t, err)
	require.NoError(t, m.Load(p.Image(), []int{3}))
	require.True(t, bytes.Contains(m.mem, []byte(secret)))
	require.NoError(t, m.Load(sample(t).Image(), []int{0, 1}))
	require.False(t, bytes.Contains(m.mem, []byte(secret)))
	require.NoError(t, m.Load(p.Image(), []int{3}))
	require.Error(t, m.Load(nil, nil))
	require.False(t, bytes.Contains(m.mem, []byte(secret)), "after an image that was refused")
}

// TestLoadGivesBack requires that what a large image took does not stay for the clones after it.
func TestLoadGivesBack(t *testing.T) {
	m := newMachine(t)
	b := NewBuilder()
	b.Bytes(bytes.Repeat([]byte{1}, MaxImage/2), "")
	large, err := b.Program()
	require.NoError(t, err)
	pages := func() (n int) {
		b := make([]byte, len(m.mem)/os.Getpagesize())
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, m.Address(), uintptr(len(b)*os.Getpagesize()), uintptr(unsafe.Pointer(&b[0])))
		require.Zero(t, errno)
		for _, resident := range b {
			n += int(resident & 1)
		}
		return n
	}
	require.NoError(t, m.Load(large.Image(), []int{0}))
	require.Greater(t, pages()*os.Getpagesize(), MaxImage/2)
	require.NoError(t, m.Load(sample(t).Image(), []int{0, 1}))
	require.LessOrEqual(t, pages(), 4)
}

func headerOf(image []byte) (h header) {
	copy((*[headerSize]byte)(unsafe.Pointer(&h))[:], image)
	return h
}

// checkLoaded requires that the executor reads and writes only the machine's memory.
func checkLoaded(t testing.TB, m *Machine, image []byte) {
	t.Helper()
	h := headerOf(image)
	s := m.state
	ops, data := unsafe.Add(s.image, headerSize), unsafe.Add(s.image, s.data)
	from := uintptr(unsafe.Pointer(&m.mem[0]))
	to := from + uintptr(len(m.mem))
	inside := func(p, size uintptr) bool { return p >= from && p <= to && size <= to-p }
	calls := uintptr(h.calls[0] + h.calls[1] + h.calls[2])
	require.Equal(t, calls, s.first[numParts])
	require.True(t, calls == 0 || inside(uintptr(ops), calls*opSize))
	require.True(t, h.data == 0 || inside(uintptr(data), uintptr(h.data)))
	for i := range calls {
		o := (*op)(unsafe.Add(ops, i*opSize))
		require.True(t, o.out == NoSlot || o.out < MaxSlots)
		for j, kind := range o.kinds {
			switch kind {
			case kindSlot:
				require.Less(t, uint32(o.args[j]), uint32(MaxSlots))
			case kindData:
				require.Less(t, uint32(o.args[j]), h.data)
			}
		}
		if o.num == callPoke || o.num == callPeek {
			require.Equal(t, uint8(kindInt), o.kinds[0])
			require.LessOrEqual(t, uint32(o.args[0]), h.data)
			require.GreaterOrEqual(t, h.data-uint32(o.args[0]), uint32(4))
		}
	}
	relocs := image[headerSize+opSize*int(calls):][:8*h.relocs]
	for ; len(relocs) > 0; relocs = relocs[8:] {
		p := *(*uint64)(unsafe.Add(data, native.Uint64(relocs)))
		require.GreaterOrEqual(t, uintptr(p), uintptr(data))
		require.Less(t, uintptr(p), uintptr(data)+uintptr(h.data))
	}
}

func FuzzImage(f *testing.F) {
	f.Add([]byte{})
	f.Add(sample(f).Image())
	empty, err := NewBuilder().Program()
	require.NoError(f, err)
	f.Add(empty.Image())
	// A store whose end, but not its start, wraps around to the data.
	wrapping := bytes.Clone(sample(f).Image())
	binary.NativeEndian.PutUint32(wrapping[headerSize+2*opSize+16:], ^uint32(3))
	f.Add(wrapping)
	m := newMachine(f)
	f.Fuzz(func(t *testing.T, image []byte) {
		// Fuzz the rest of the image too, not only its header.
		image = bytes.Clone(image)
		if len(image) >= headerSize {
			binary.NativeEndian.PutUint32(image, magic)
			binary.NativeEndian.PutUint32(image[4:], uint32(len(image)))
		}
		n := 0
		if len(image) >= headerSize {
			n = int(min(headerOf(image).files, MaxFiles))
		}
		require.IsType(t, imageError(""), m.Load(image, make([]int, n+1)))
		if err := m.Load(image, make([]int, n)); err != nil {
			require.IsType(t, imageError(""), err)
			return
		}
		checkLoaded(t, m, image)
	})
}

func BenchmarkEncode(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		sample(b)
	}
}

func BenchmarkLoad(b *testing.B) {
	m, image := newMachine(b), sample(b).Image()
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, m.Load(image, []int{0, 1}))
	}
}
