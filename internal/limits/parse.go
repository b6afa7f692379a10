//go:build linux

package limits

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// maxCPU bounds the CPU numbers that parseCPUs accepts. It is the kernel's own highest NR_CPUS.
const maxCPU = 8192

// parseCPUs reads a list in the kernel's format, such as "0-1,3".
func parseCPUs(list string) (map[int]bool, error) {
	cpus := map[int]bool{}
	list = strings.TrimSpace(list)
	if list == "" {
		return cpus, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from > to || to >= maxCPU {
			return nil, fmt.Errorf("%q is not a list of CPUs such as \"0-1,3\"", list)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus[int(cpu)] = true
		}
	}
	return cpus, nil
}

// keyed returns the value of one "key value" line, as in cpu.stat, or 0 if there is none.
func keyed(data []byte, key string) uint64 {
	for line := range bytes.Lines(data) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok && len(rest) > 0 && rest[0] == ' ' {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n
		}
	}
	return 0
}

// ioV1 sums blkio.throttle.io_service_bytes: a line such as "8:0 Read 4096" per device and kind.
func ioV1(data []byte) (read, written uint64) {
	for line := range bytes.Lines(data) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue // "Total 0"
		}
		n, _ := strconv.ParseUint(string(f[2]), 10, 64)
		switch string(f[1]) {
		case "Read":
			read += n
		case "Write":
			written += n
		}
	}
	return read, written
}

// ioV2 sums io.stat: a line such as "8:0 rbytes=4096 wbytes=0 rios=1 ..." per device.
func ioV2(data []byte) (read, written uint64) {
	for field := range bytes.FieldsSeq(data) {
		if v, ok := bytes.CutPrefix(field, []byte("rbytes=")); ok {
			n, _ := strconv.ParseUint(string(v), 10, 64)
			read += n
		} else if v, ok := bytes.CutPrefix(field, []byte("wbytes=")); ok {
			n, _ := strconv.ParseUint(string(v), 10, 64)
			written += n
		}
	}
	return read, written
}

// parsePIDs reads cgroup.procs. A process outside the reader's pid namespace is a 0.
func parsePIDs(data []byte) (pids []int, hidden bool) {
	for field := range bytes.FieldsSeq(data) {
		switch pid, err := strconv.Atoi(string(field)); {
		case err != nil:
		case pid == 0:
			hidden = true
		default:
			pids = append(pids, pid)
		}
	}
	return pids, hidden
}
