package program

import "unsafe"

// Loading also happens in a clone: see execute_linux.go for what is allowed there.

// load checks the image of size bytes at s.image, which is sent with the given number of
// descriptors, and turns the pointers in its data into addresses.
//
//go:nosplit
//go:norace
//go:nocheckptr
func load(s *state, size, files int) error {
	h := (*header)(s.image)
	if err := h.check(size); err != nil {
		return err
	}
	if files != int(h.files) {
		return imageError("other descriptors came than it wants")
	}
	// Not in a loop, because an index check takes stack.
	s.first[Command] = uintptr(h.calls[Setup])
	s.first[Init] = s.first[Command] + uintptr(h.calls[Command])
	s.first[numParts] = s.first[Init] + uintptr(h.calls[Init])
	calls := s.first[numParts]
	relocs := unsafe.Add(s.image, headerSize+calls*opSize)
	s.data = headerSize + calls*opSize + 8*uintptr(h.relocs)
	data := unsafe.Add(s.image, s.data)
	for i := uintptr(0); i < uintptr(h.relocs); i++ {
		at := *(*uint64)(unsafe.Add(relocs, 8*i))
		if at%8 != 0 || at >= uint64(h.data) {
			return imageError("pointer outside the data")
		}
		to := (*uint64)(unsafe.Add(data, at))
		if *to >= uint64(h.data) {
			return imageError("pointer to outside the data")
		}
		*to += uint64(uintptr(data))
	}
	for i := uintptr(0); i < calls; i++ {
		o := (*op)(unsafe.Add(s.image, headerSize+i*opSize))
		if err := o.check(h.data); err != nil {
			return err
		}
	}
	return nil
}

// check reports an error unless the image has size bytes and its parts add up to that.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (h *header) check(size int) error {
	if size < headerSize {
		return imageError("no header")
	}
	sum := uint64(headerSize) + opSize*(uint64(h.calls[0])+uint64(h.calls[1])+uint64(h.calls[2])) +
		8*uint64(h.relocs) + uint64(h.data)
	switch {
	case h.magic != magic:
		return imageError("wrong magic")
	case uint64(h.total) != sum || int(h.total) != size || h.total > MaxImage:
		return imageError("sizes disagree")
	case h.files == 0 || h.files > MaxFiles || h.data%8 != 0:
		return imageError("descriptor count or alignment")
	}
	return nil
}

// check reports an error unless the call's slots exist and its pointers are into data of size
// bytes.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (o *op) check(size uint32) error {
	if o.out != NoSlot && o.out >= MaxSlots {
		return imageError("result outside the slots")
	}
	for i := uintptr(0); i < uintptr(len(o.kinds)); i++ {
		value := *(*uint32)(unsafe.Add(unsafe.Pointer(&o.args), 4*i))
		switch *(*uint8)(unsafe.Add(unsafe.Pointer(&o.kinds), i)) {
		case kindInt:
		case kindSlot:
			if value >= MaxSlots {
				return imageError("argument outside the slots")
			}
		case kindData:
			if value >= size {
				return imageError("argument outside the data")
			}
		default:
			return imageError("argument of unknown kind")
		}
	}
	at := uint32(o.args[0])
	if (o.num == callPoke || o.num == callPeek) && (o.kinds[0] != kindInt || at >= size || at%4 != 0) {
		return imageError("store or load outside the data")
	}
	return nil
}
