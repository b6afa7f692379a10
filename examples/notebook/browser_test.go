//go:build browser

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/stretchr/testify/require"
)

// TestBrowser types into the terminal of the page in headless Chromium, and executes a cell. It is
// behind a build tag because a browser is large: make browser.
func TestBrowser(t *testing.T) {
	s := &server{cellTime: time.Minute, sessions: map[string]*session{}}
	web := httptest.NewServer(s.handler())
	defer web.Close()
	p := openPage(t, web.URL)

	p.eventually(`document.querySelector(".xterm-rows")?.textContent.includes("$")`)
	p.eval(`document.querySelector(".xterm-helper-textarea").focus()`)
	for _, key := range "echo $((6*7))-$(stty size | wc -w); tty" {
		p.do("Input.insertText", map[string]any{"text": string(key)})
	}
	p.do("Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"})
	p.eventually(`document.querySelector(".xterm-rows").textContent.includes("42-2")`)
	p.eventually(`document.querySelector(".xterm-rows").textContent.includes("/dev/")`)

	p.eval(`document.querySelector("#cells textarea").value = "6*7"; document.querySelector("#cells button").click()`)
	p.eventually(`document.querySelector("#cells pre").textContent.trim() === "42"`)

	// A page that is left ends its session.
	p.do("Page.navigate", map[string]any{"url": "about:blank"})
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sessions) == 0
	}, time.Minute, 50*time.Millisecond)
}

// page is a page in a browser, which is controlled by the Chrome DevTools Protocol.
type page struct {
	t    *testing.T
	ctx  context.Context
	conn *websocket.Conn
	last int
}

func openPage(t *testing.T, url string) *page {
	t.Helper()
	// The user at hand may be root, and containers have a small /dev/shm. The browser only
	// opens what this test serves.
	browser := exec.Command("chromium-headless-shell", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*",
		"--user-data-dir="+t.TempDir(), "about:blank")
	log, err := browser.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, browser.Start(), "apt install chromium-headless-shell")
	t.Cleanup(func() { _ = browser.Process.Kill(); _ = browser.Wait() })
	endpoint := ""
	for lines := bufio.NewScanner(log); endpoint == "" && lines.Scan(); {
		_, endpoint, _ = strings.Cut(lines.Text(), "DevTools listening on ")
	}
	require.NotEmpty(t, endpoint)
	p := &page{t: t, ctx: t.Context()}
	p.dial(endpoint)
	var target struct{ TargetID string }
	require.NoError(t, json.Unmarshal(p.do("Target.createTarget", map[string]any{"url": url}), &target))
	p.conn.CloseNow()
	base, _, _ := strings.Cut(endpoint, "/devtools/")
	p.dial(base + "/devtools/page/" + target.TargetID)
	return p
}

func (p *page) dial(endpoint string) {
	p.t.Helper()
	conn, _, err := websocket.Dial(p.ctx, endpoint, nil)
	require.NoError(p.t, err)
	conn.SetReadLimit(-1)
	p.conn = conn
	p.t.Cleanup(func() { conn.CloseNow() })
}

// do calls a method and returns its result.
func (p *page) do(method string, params any) json.RawMessage {
	p.t.Helper()
	p.last++
	require.NoError(p.t, wsjson.Write(p.ctx, p.conn, map[string]any{"id": p.last, "method": method, "params": params}))
	for {
		var answer struct {
			ID            int
			Result, Error json.RawMessage
		}
		require.NoError(p.t, wsjson.Read(p.ctx, p.conn, &answer))
		if answer.ID == p.last {
			require.Empty(p.t, string(answer.Error), method)
			return answer.Result
		}
	}
}

// eval evaluates an expression in the page and returns its value as JSON.
func (p *page) eval(expression string) string {
	p.t.Helper()
	var answer struct {
		Result struct{ Value json.RawMessage }
	}
	require.NoError(p.t, json.Unmarshal(p.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}), &answer))
	return string(answer.Result.Value)
}

func (p *page) eventually(condition string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.eval(condition) == "true" }, time.Minute, 100*time.Millisecond, condition)
}
