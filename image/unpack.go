//go:build linux

package image

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/pkg/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/cellkit/sandbox/internal/cell"
)

// limits bound one layer.
type limits struct{ bytes, files int64 }

// job is a layer to be unpacked.
type job struct {
	src      *source
	from     v1.Layer
	content  v1.Hash  // of its tar file
	parents  []*layer // the lowest first
	limits   limits
	progress func(Progress)
	at       Progress
}

// unpack unpacks the layer into an empty directory.
func (j *job) unpack(ctx context.Context, dir string) (info, error) {
	stream, err := j.open()
	if err != nil {
		return info{}, err
	}
	defer stream.close()
	content := sha256.New()
	limited := &limitedReader{ctx: ctx, r: stream, left: j.limits.bytes}
	tarFile := io.TeeReader(limited, content)
	e := &extraction{dir: dir, limits: j.limits, owners: cell.WideIDs(), attrs: hasAttrs(dir), below: j.parents}
	opts := []archive.ApplyOpt{archive.WithFilter(e.filter), archive.WithConvertWhiteout(keepAll)}
	if !e.owners {
		opts = append(opts, archive.WithNoSameOwner())
	}
	if _, err = archive.Apply(ctx, dir, tarFile, opts...); err == nil {
		_, err = io.Copy(io.Discard, tarFile) // what follows the end of the archive is part of the digest
	}
	if err == nil {
		err = stream.check()
	}
	if err == nil {
		err = e.hideBelow()
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
	return info{Content: j.content.String(), Opaque: e.opaque, Bytes: e.bytes, Files: e.files, Tree: tree, LeftOut: e.leftOut}, err
}

// stream is a layer's tar file as it comes from the source.
type stream struct {
	io.Reader
	raw    io.ReadCloser
	digest hash.Hash // of what is read from raw, nil if that has no digest of its own
	want   v1.Hash
	undo   func()
}

func (s *stream) close() {
	s.undo()
	_ = s.raw.Close() // it was read only
}

// check reads the rest of the compressed data and compares its digest.
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

// maxWindow bounds the memory for decompression.
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
	head, _ := compressed.Peek(4) // a shorter layer is not compressed
	switch {
	case strings.HasPrefix(string(head), "\x1f\x8b"):
		s.Reader, err = gzip.NewReader(compressed)
	case string(head) == "\x28\xb5\x2f\xfd", len(head) == 4 && head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18": // or a frame to skip
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

// counted returns a reader that reports the progress of r.
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

// limitedReader fails where io.LimitedReader would report the end, and once ctx has ended.
type limitedReader struct {
	ctx      context.Context
	r        io.Reader
	left     int64
	exceeded bool
}

func (l *limitedReader) Read(b []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(b)
	if l.left -= int64(n); l.left < 0 {
		l.exceeded = true
		return 0, errHostile
	}
	return n, err
}
