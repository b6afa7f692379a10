package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cellkit/sandbox/internal/cell"
)

// limits are those of one layer.
type limits struct{ bytes, files int64 }

// job is a layer that is to be unpacked.
type job struct {
	src      *source
	from     v1.Layer
	content  v1.Hash  // of its tar file
	parents  []*layer // the lowest first
	limits   limits
	progress func(Progress)
	at       Progress
}

// errHostile is what archives are refused with that no honest tool makes.
var errHostile = errors.New("refused")

// unpack puts the layer's files into a directory that is empty.
func (j *job) unpack(ctx context.Context, dir string) (info, error) {
	stream, err := j.open()
	if err != nil {
		return info{}, err
	}
	defer stream.close()
	content := sha256.New()
	limited := &limitedReader{r: stream, left: j.limits.bytes}
	tarFile := io.TeeReader(limited, content)
	e := &extraction{dir: dir, limits: j.limits, owners: cell.WideIDs(), seen: map[string]bool{}}
	opts := []archive.ApplyOpt{archive.WithFilter(e.filter), archive.WithConvertWhiteout(e.whiteout), archive.WithParents(j.parentDirs())}
	if !e.owners {
		opts = append(opts, archive.WithNoSameOwner())
	}
	if _, err = archive.Apply(ctx, dir, tarFile, opts...); err == nil {
		_, err = io.Copy(io.Discard, tarFile) // what comes after the end of the archive counts for the digest
	}
	if err == nil {
		err = stream.check()
	}
	if err != nil {
		if limited.exceeded {
			err = fmt.Errorf("%w: more than %d bytes: raise WithLimits", errHostile, j.limits.bytes)
		}
		return info{}, err
	}
	if got := fmt.Sprintf("%x", content.Sum(nil)); got != j.content.Hex {
		return info{}, fmt.Errorf("its content has the digest sha256:%s, not %s", got, j.content)
	}
	tree, err := treeDigest(ctx, dir)
	return info{Content: j.content.String(), Opaque: e.opaque, Bytes: e.bytes, Files: e.files, Tree: tree}, err
}

// parentDirs is where directories get their attributes from that the layer does not describe, the nearest first.
func (j *job) parentDirs() (dirs []string) {
	for i := len(j.parents) - 1; i >= 0; i-- {
		dirs = append(dirs, j.parents[i].files())
	}
	return dirs
}

// stream is a layer's tar file as it comes from the source.
type stream struct {
	io.Reader
	raw    io.ReadCloser
	digest hash.Hash // of what is read of raw, nil if that has no digest of its own
	want   v1.Hash
	undo   func()
}

func (s *stream) close() {
	s.undo()
	_ = s.raw.Close() // it was read only
}

// check reads the rest of what is compressed, and compares its digest.
func (s *stream) check() error {
	if s.digest == nil {
		return nil
	}
	if _, err := io.Copy(s.digest, s.raw); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", s.digest.Sum(nil)); got != s.want.Hex {
		return fmt.Errorf("its compressed content has the digest sha256:%s, not %s", got, s.want)
	}
	return nil
}

// maxWindow is the memory that decompression may take.
const maxWindow = 128 << 20

func (j *job) open() (*stream, error) {
	want, err := j.from.Digest()
	if err != nil {
		return nil, err
	}
	if j.at.Total, err = j.from.Size(); err != nil {
		return nil, err
	}
	raw, err := j.from.Compressed()
	if err != nil {
		return nil, err
	}
	s := &stream{raw: raw, want: want, undo: func() {}}
	in := j.counted(raw)
	if !j.src.plain {
		s.digest = sha256.New()
		in = io.TeeReader(in, s.digest)
	}
	compressed := bufio.NewReaderSize(in, 1<<20)
	head, _ := compressed.Peek(4) // a layer that is shorter is none that is compressed
	switch {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		s.Reader, err = gzip.NewReader(compressed)
	case string(head) == "\x28\xb5\x2f\xfd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(compressed, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderConcurrency(1)); err == nil {
			s.Reader, s.undo = d, d.Close
		}
	default:
		s.Reader = compressed
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return s, nil
}

// counted tells the progress of reading.
func (j *job) counted(r io.Reader) io.Reader {
	if j.progress == nil {
		return r
	}
	j.progress(j.at)
	return &progressReader{r, j}
}

type progressReader struct {
	r io.Reader
	j *job
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.j.at.Bytes += int64(n); n > 0 || err == io.EOF {
		p.j.progress(p.j.at)
	}
	return n, err
}

// limitedReader fails where io.LimitedReader says that it is the end.
type limitedReader struct {
	r        io.Reader
	left     int64
	exceeded bool
}

func (l *limitedReader) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		l.exceeded = true
		return 0, errHostile
	}
	return n, err
}

// extraction is what decides of each file of an archive.
type extraction struct {
	dir          string
	limits       limits
	owners       bool // files keep those of the archive
	seen         map[string]bool
	bytes, files int64
	opaque       bool
}

// filter sees every entry before it is unpacked, with its name cleaned.
func (e *extraction) filter(h *tar.Header) (bool, error) {
	refuse := func(why string) (bool, error) { return false, fmt.Errorf("%w: %q: %s", errHostile, h.Name, why) }
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if !filepath.IsLocal(h.Name) {
		return refuse("it is not in the root")
	}
	if len(h.Name) >= unix.PathMax || len(h.Linkname) >= unix.PathMax {
		return refuse("the name is too long")
	}
	if e.files++; e.files > e.limits.files {
		return refuse(fmt.Sprintf("more than %d files: raise WithLimits", e.limits.files))
	}
	if e.bytes += max(h.Size, 0); e.bytes > e.limits.bytes || h.Size < 0 {
		return refuse(fmt.Sprintf("more than %d bytes: raise WithLimits", e.limits.bytes))
	}
	if h.Typeflag != tar.TypeDir {
		if e.seen[h.Name] {
			return refuse("it is there twice")
		}
		e.seen[h.Name] = true
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if !e.owners {
			h.Mode |= 0o700 // or its own files could not be made, or removed
		}
	case tar.TypeReg:
		if !e.owners {
			h.Mode |= 0o400
		}
	case tar.TypeSymlink, tar.TypeFifo:
	case tar.TypeLink:
		if !filepath.IsLocal(h.Linkname) {
			return refuse(fmt.Sprintf("a hard link to %q, which is not in the root", h.Linkname))
		}
	case tar.TypeChar, tar.TypeBlock:
		if strings.HasPrefix(h.Name, "dev/") {
			return false, nil // a run has a /dev of its own
		}
		return refuse("a device node")
	default:
		return refuse(fmt.Sprintf("a file of type %q", h.Typeflag))
	}
	for key := range h.PAXRecords {
		name, isXattr := strings.CutPrefix(key, "SCHILY.xattr.")
		if isXattr && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			delete(h.PAXRecords, key) // what is overlayfs's own, and what means nothing in a run
		}
	}
	return true, nil
}

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout makes of the markers of an image those of overlayfs.
func (e *extraction) whiteout(_ *tar.Header, file string) (bool, error) {
	dir, name := path.Split(file)
	dir = path.Clean(dir)
	switch {
	case name == whiteoutOpaque && dir == e.dir:
		e.opaque = true // which overlayfs does not know of a root
		return false, nil
	case name == whiteoutOpaque:
		err := unix.Lsetxattr(dir, "user.overlay.opaque", []byte("y"), 0)
		if err == unix.ENOTSUP {
			err = fmt.Errorf("the store's file system has no extended attributes for users, which it needs to hide what is below %s: %w: use OpenStore on another", dir, err)
		}
		return false, err
	case strings.HasPrefix(name, whiteoutPrefix):
		err := unix.Mknod(path.Join(dir, strings.TrimPrefix(name, whiteoutPrefix)), unix.S_IFCHR, 0)
		switch err {
		case unix.EEXIST: // the layer has such a file itself, which stays
			err = nil
		case unix.EPERM: // fs/overlayfs/dir.c, ovl_mknod
			err = fmt.Errorf("the store's file system can't hide files of lower layers, as a container's own can't: %w: use OpenStore on a volume", err)
		}
		return false, err
	}
	return true, nil
}
