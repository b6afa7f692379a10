package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// services are those of this program, which it is inside, when it is told their name.
var services = map[string]func() error{
	// web puts orders into the database, and tells how many are fulfilled.
	"web": func() error {
		answer := func(w http.ResponseWriter, command ...string) {
			text, err := redis(command...)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprint(w, text)
		}
		http.HandleFunc("/order", func(w http.ResponseWriter, r *http.Request) { answer(w, "LPUSH", "orders", r.FormValue("what")) })
		http.HandleFunc("/fulfilled", func(w http.ResponseWriter, _ *http.Request) { answer(w, "LLEN", "fulfilled") })
		return http.ListenAndServe(":80", nil)
	},
	// worker fulfils one order after the other. Each is moved at once, so that none is lost.
	"worker": func() error {
		for {
			if _, err := redis("BLMOVE", "orders", "fulfilled", "RIGHT", "LEFT", "1"); err != nil {
				time.Sleep(10 * time.Millisecond) // it is not there yet
			}
		}
	},
}

// redis has the database execute a command.
func redis(command ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", "db:6379", 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(conn, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(word), word)
	}
	reply := bufio.NewReader(conn)
	line, err := reply.ReadString('\n')
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(line[1:])
	switch n, _ := strconv.Atoi(text); {
	case line[0] == '-':
		return "", errors.New(text)
	case line[0] == '$' && n >= 0:
		b := make([]byte, n)
		_, err = io.ReadFull(reply, b)
		text = string(b)
	}
	return text, err
}
