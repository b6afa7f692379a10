package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/cellkit/sandbox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := sandbox.Shutdown(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// client is a browser with a session.
type client struct {
	t    *testing.T
	base string
}

func newClient(t *testing.T, cellTime time.Duration) *client {
	s := &server{cellTime: cellTime, sessions: map[string]*session{}}
	web := httptest.NewServer(s.handler())
	t.Cleanup(web.Close)
	c := &client{t, web.URL}
	_, id := c.do(http.MethodPost, "/sessions", "")
	c.base += "/sessions/" + id
	t.Cleanup(func() {
		status, _ := c.do(http.MethodDelete, "", "")
		require.Equal(t, http.StatusNoContent, status)
		require.Eventually(t, func() bool { status, _ := c.do(http.MethodGet, "/files/", ""); return status == http.StatusNotFound }, time.Minute, 10*time.Millisecond)
	})
	return c
}

func (c *client) do(method, path, body string) (status int, answer string) {
	c.t.Helper()
	r, err := http.NewRequest(method, c.base+path, strings.NewReader(body))
	require.NoError(c.t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(c.t, err)
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	require.NoError(c.t, err)
	return response.StatusCode, string(b)
}

func (c *client) run(code string) string {
	c.t.Helper()
	status, output := c.do(http.MethodPost, "/run", code)
	require.Equal(c.t, http.StatusOK, status)
	return output
}

// TestCells executes cells, one after the other, in one interpreter.
func TestCells(t *testing.T) {
	t.Parallel()
	c := newClient(t, time.Minute)
	require.Empty(t, c.run("import os\nx = 6"))
	require.Equal(t, "one\ntwo\n42\n", c.run("print('one')\nos.system('echo two')\nx * 7"))
	require.Equal(t, "Traceback (most recent call last):\n  File \"cell\", line 1, in <module>\nZeroDivisionError: division by zero\n", c.run("1 / 0"))
	require.Contains(t, c.run("os._exit(3)"), "[the interpreter has ended, and its names with it: sandbox: exit status 3]")
	require.Contains(t, c.run("x"), "NameError")
	require.Contains(t, c.run("if"), "SyntaxError")
	require.Contains(t, c.run("print('y' * 2_000_000)"), "yyyy")
	require.Contains(t, c.run("import __main__\n__main__.answers.write('y' * 2_000_000)"), "[the interpreter has ended")
}

// TestCellTime interrupts a cell, and ends an interpreter that ignores that.
func TestCellTime(t *testing.T) {
	t.Parallel()
	c := newClient(t, 4*time.Second)
	for c.run("1") != "1\n" { // until it has started within its time
	}
	require.Contains(t, c.run("while True: pass"), "KeyboardInterrupt")
	require.Contains(t, c.run("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"), "signal: killed")
}

// TestFiles takes files in and out.
func TestFiles(t *testing.T) {
	t.Parallel()
	c := newClient(t, time.Minute)
	status, _ := c.do(http.MethodPut, "/files/in/data.csv", "1,2\n")
	require.Equal(t, http.StatusCreated, status)
	status, _ = c.do(http.MethodPut, "/files/in/data.csv", "again")
	require.Equal(t, http.StatusConflict, status)
	require.Empty(t, c.run("import os\nopen('index.html', 'w').write(open('in/data.csv').read() * 2); os.symlink('/etc/passwd', 'link')\npass"))
	status, body := c.do(http.MethodGet, "/files/", "")
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, `["in", "index.html", "link"]`, body)
	response, err := http.Get(c.base + "/files/index.html")
	require.NoError(t, err)
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, "1,2\n1,2\n", string(b))
	require.Equal(t, "attachment", response.Header.Get("Content-Disposition"))
	require.Equal(t, "sandbox", response.Header.Get("Content-Security-Policy"))
	status, _ = c.do(http.MethodGet, "/files/link", "")
	require.Equal(t, http.StatusNotFound, status)
}

// TestTerminal types into a shell of the session.
func TestTerminal(t *testing.T) {
	t.Parallel()
	c := newClient(t, time.Minute)
	require.Empty(t, c.run("open('made', 'w').close()"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, c.base+"/terminal", nil)
	require.NoError(t, err)
	defer conn.CloseNow()
	require.NoError(t, conn.Write(ctx, websocket.MessageText, []byte(`{"rows": 33, "cols": 111}`)))
	var shown bytes.Buffer
	for _, step := range []struct{ typed, want string }{
		{"ls; stty size\r", "made\r\n33 111\r\n"},
		// It says that it runs: a ^C that comes while the shell still starts a command may be the shell's.
		{"sh -c 'echo $((40+1)); exec sleep 1000'\r", "41\r\n"},
		{"\x03", "^C"},
		{"echo $((6*7))\r", "42\r\n"},
		{"exit\r", "exit\r\n"},
	} {
		require.NoError(t, conn.Write(ctx, websocket.MessageBinary, []byte(step.typed)))
		for shown.Reset(); !strings.Contains(shown.String(), step.want); {
			_, data, err := conn.Read(ctx)
			require.NoError(t, err, "%q", shown.String())
			shown.Write(data)
		}
	}
	for err == nil {
		_, _, err = conn.Read(ctx)
	}
	require.Equal(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))
}

// TestOtherPages refuses what another site's page asks for.
func TestOtherPages(t *testing.T) {
	t.Parallel()
	c := newClient(t, time.Minute)
	r, err := http.NewRequest(http.MethodPost, c.base+"/run", strings.NewReader("1"))
	require.NoError(t, err)
	r.Header.Set("Origin", "https://example.com")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	_, response, err = websocket.Dial(t.Context(), c.base+"/terminal", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://example.com"}}})
	require.Error(t, err)
	require.Equal(t, http.StatusForbidden, response.StatusCode)
}
