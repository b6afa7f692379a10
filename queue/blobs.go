package queue

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A blob is content that is too large for a record, named by its SHA-256. Its bytes are in chunks
// under a name of their upload; a record at the content's name, which is written last, leads there.
// So what is collected while somebody else uploads the same is the other upload.

// blobRecord says where the bytes of a content are.
type blobRecord struct {
	Version int    `cbor:"0,keyasint"`
	Upload  string `cbor:"1,keyasint"`
	Size    int64  `cbor:"2,keyasint"`
}

const (
	chunkSize = 256 << 10
	maxBlob   = 1 << 30
	// blobGrace is for how long a blob that nobody refers to is kept, for a task or result that
	// is about to.
	blobGrace = time.Hour
	// packTime is for how long what will refer to blobs may take to be there. A blob that was
	// not touched, as it was younger than a quarter of blobGrace, is still there then.
	packTime = blobGrace / 2
)

var errSlow = fmt.Errorf("the files and what refers to them were not stored within %v", packTime)

var errBlob = errors.New("the content is not what its name says")

func (q *Queue) blobSubject(sum []byte) string {
	return q.config.name + ".blob." + hex.EncodeToString(sum)
}

func (q *Queue) chunkSubject(upload, n string) string {
	return q.config.name + ".chunk." + upload + "." + n
}

// putBlob stores what r has, up to so many bytes, unless it is there, and returns its name. open is
// called twice if it is not there. name is of the file, for Progress; now is the time, or that at
// which the bundle that refers to it was begun.
func (q *Queue) putBlob(ctx context.Context, now func() (time.Time, error), name string, most int64, open func() (io.ReadCloser, error)) (sum []byte, size int64, err error) {
	r, err := open()
	if err != nil {
		return nil, 0, err
	}
	h := sha256.New()
	size, err = io.Copy(h, io.LimitReader(r, most+1))
	r.Close()
	if err != nil {
		return nil, 0, err
	}
	if size > most {
		return nil, 0, fmt.Errorf("%w: it has more than %d bytes", errTooLarge, most)
	}
	sum = h.Sum(nil)
	if there, err := q.touchBlob(ctx, now, sum, size); there || err != nil {
		if there {
			q.progress(Transfer{Name: name, Sent: true, Done: size, Size: size})
		}
		return sum, size, err
	}
	if r, err = open(); err != nil {
		return nil, 0, err
	}
	defer r.Close()
	return sum, size, q.upload(ctx, name, r, sum, size)
}

// putBytes is putBlob of what is in memory.
func (q *Queue) putBytes(ctx context.Context, now func() (time.Time, error), b []byte) (sum []byte, size int64, err error) {
	return q.putBlob(ctx, now, "", maxBlob, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
}

// touchBlob reports whether a blob is there, and if so makes it as new, so that it is not collected
// before what refers to it is there.
func (q *Queue) touchBlob(ctx context.Context, now func() (time.Time, error), sum []byte, size int64) (bool, error) {
	m, b, err := q.blob(ctx, sum)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return false, nil
	case err != nil && !errors.Is(err, errBlob):
		return false, err
	case err != nil || b.Size != size:
		return false, nil // somebody wrote nonsense: another upload replaces it
	}
	t, err := now()
	if err != nil {
		return false, err
	}
	if age := t.Sub(m.Time); age >= 0 && age < q.config.grace/4 {
		return true, nil
	}
	err = q.publishNew(ctx, m.Subject, m.Data, jetstream.WithExpectLastSequencePerSubject(m.Sequence))
	if conflict(err) { // collected, or touched by somebody else
		return false, nil
	}
	return err == nil, err
}

// blob finds a blob's record.
func (q *Queue) blob(ctx context.Context, sum []byte) (m *jetstream.RawStreamMsg, b *blobRecord, err error) {
	m, err = q.last(ctx, q.blobs, q.blobSubject(sum))
	if err != nil {
		return nil, nil, err
	}
	b, err = decode[blobRecord](m.Data)
	if err == nil && (!tokenPattern.MatchString(b.Upload) || b.Size < 0 || b.Size > maxBlob) {
		err = errors.New("a record that can't be")
	}
	if err != nil {
		return nil, nil, errors.Join(errBlob, err)
	}
	return m, b, nil
}

func (q *Queue) upload(ctx context.Context, name string, r io.Reader, sum []byte, size int64) error {
	b := &blobRecord{Version: version, Upload: strings.ToLower(rand.Text()), Size: size}
	buf, h := make([]byte, min(size, chunkSize)), sha256.New()
	for n := int64(0); n*chunkSize < size; n++ {
		chunk := buf[:min(size-n*chunkSize, chunkSize)]
		if _, err := io.ReadFull(r, chunk); err != nil {
			return fmt.Errorf("it changed while it was read: %w", err)
		}
		h.Write(chunk)
		if err := q.publishNew(ctx, q.chunkSubject(b.Upload, strconv.FormatInt(n, 10)), chunk); err != nil {
			return err
		}
		q.progress(Transfer{Name: name, Sent: true, Done: n*chunkSize + int64(len(chunk)), Size: size})
	}
	if !bytes.Equal(h.Sum(nil), sum) {
		return errors.New("it changed while it was read")
	}
	data, err := encode(b)
	if err != nil {
		return err
	}
	err = q.publishNew(ctx, q.blobSubject(sum), data)
	return err
}

// blobReader reads a blob, and fails instead of the end if it was not what its name says.
type blobReader struct {
	ctx  context.Context
	q    *Queue
	name string
	sum  []byte
	size int64
	once bool        // what is not there is not looked for again
	at   *blobRecord // nil before the first Read
	n    int64
	left []byte
	h    hash.Hash
}

// openBlob opens a blob. name is of the file, for Progress.
func (q *Queue) openBlob(ctx context.Context, name string, sum []byte, size int64) *blobReader {
	return &blobReader{ctx: ctx, q: q, name: name, sum: sum, size: size, h: sha256.New()}
}

func (r *blobReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.left) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// seek calls look again for 1.3 s if it does not find a record: any server of a cluster answers,
// also one that lags, or that stores nothing any more, as its disk is full.
func (q *Queue) seek(ctx context.Context, look func() error) error {
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		err := look()
		if !errors.Is(err, jetstream.ErrMsgNotFound) || q.tasks.CachedInfo().Config.Replicas == 1 || wait > maxLag/2 {
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func (r *blobReader) seek(look func() error) error {
	if r.once {
		return look()
	}
	return r.q.seek(r.ctx, look)
}

// next reads a chunk, and checks the whole before the last one is given away.
func (r *blobReader) next() error {
	if r.at == nil {
		var b *blobRecord
		err := r.seek(func() (err error) {
			_, b, err = r.q.blob(r.ctx, r.sum)
			return err
		})
		if err != nil {
			return fmt.Errorf("content %x: %w", r.sum, err)
		}
		if b.Size != r.size {
			return fmt.Errorf("content %x: %w", r.sum, errBlob)
		}
		r.at = b
	}
	chunks := (r.size + chunkSize - 1) / chunkSize
	if r.n < chunks {
		var m *jetstream.RawStreamMsg
		err := r.seek(func() (err error) {
			m, err = r.q.last(r.ctx, r.q.blobs, r.q.chunkSubject(r.at.Upload, strconv.FormatInt(r.n, 10)))
			return err
		})
		if err != nil {
			return fmt.Errorf("content %x: %w", r.sum, err)
		}
		if int64(len(m.Data)) != min(r.size-r.n*chunkSize, chunkSize) {
			return fmt.Errorf("content %x: %w", r.sum, errBlob)
		}
		r.n++
		_, _ = r.h.Write(m.Data) // a hash's never fails
		r.left = m.Data
		r.q.progress(Transfer{Name: r.name, Done: min(r.n*chunkSize, r.size), Size: r.size})
	}
	if r.n == chunks && !bytes.Equal(r.h.Sum(nil), r.sum) {
		r.left = nil
		return fmt.Errorf("content %x: %w", r.sum, errBlob)
	}
	if len(r.left) == 0 {
		return io.EOF
	}
	return nil
}

func (r *blobReader) Close() error { return nil }
