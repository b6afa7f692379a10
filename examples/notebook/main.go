// Command notebook is a code interpreter over HTTP: sessions that execute Python, with files in and
// out, and a terminal in the browser. Each session is a run without a command of its own, and its
// interpreter, and each terminal, a command in it.
package main

import (
	"crypto/rand"
	"embed"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net/http"
	"sync"
	"time"
)

//go:embed static
var static embed.FS

const maxSessions = 16

type server struct {
	disk     string        // where files go, "" for memory
	cellTime time.Duration // after which a cell is interrupted

	mu       sync.Mutex
	sessions map[string]*session
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	assets, _ := fs.Sub(static, "static")
	mux.Handle("GET /", http.FileServerFS(assets))
	mux.HandleFunc("POST /sessions", s.open)
	mux.HandleFunc("DELETE /sessions/{id}", s.with((*session).end))
	mux.HandleFunc("POST /sessions/{id}/run", s.with(func(in *session, w http.ResponseWriter, r *http.Request) { in.run(w, r, s.cellTime) }))
	mux.HandleFunc("GET /sessions/{id}/files/{name...}", s.with((*session).download))
	mux.HandleFunc("PUT /sessions/{id}/files/{name...}", s.with((*session).upload))
	mux.HandleFunc("GET /sessions/{id}/terminal", s.with((*session).terminal))
	return http.NewCrossOriginProtection().Handler(mux)
}

// open makes a session. Whoever knows its id may use it.
func (s *server) open(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) >= maxSessions {
		http.Error(w, "too many sessions", http.StatusServiceUnavailable)
		return
	}
	in, err := newSession(s.disk)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	id := rand.Text()
	s.sessions[id] = in
	go func() {
		<-in.Ended()
		_, _ = in.Wait()
		s.mu.Lock()
		delete(s.sessions, id)
		s.mu.Unlock()
		in.files.Close()
	}()
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, id)
}

func (s *server) with(f func(*session, http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		in := s.sessions[r.PathValue("id")]
		s.mu.Unlock()
		if in == nil {
			http.Error(w, "no such session", http.StatusNotFound)
			return
		}
		f(in, w, r)
	}
}

func main() {
	address := flag.String("listen", "127.0.0.1:8080", "address")
	disk := flag.String("disk", "", "directory for the sessions' files; takes root (default: memory)")
	flag.Parse()
	s := &server{disk: *disk, cellTime: 30 * time.Second, sessions: map[string]*session{}}
	log.Printf("http://%s", *address)
	log.Fatal(http.ListenAndServe(*address, s.handler()))
}
