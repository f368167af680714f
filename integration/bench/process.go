package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// A request is one line to a node. Which fields an operation reads is said
// there.
type request struct {
	Op        string `json:"op"`
	Exchange  string `json:"exchange,omitempty"`  // name of an exchange; "": none
	Store     string `json:"store,omitempty"`     // "mem", "flatfs", "made", "discard"
	Dir       string `json:"dir,omitempty"`       // of flatfs
	Transport string `json:"transport,omitempty"` // "tcp-noise" if "", "tcp-tls", "quic"
	IP        string `json:"ip,omitempty"`        // to listen on; "127.0.0.1" if ""
	Peer      string `json:"peer,omitempty"`
	Addr      string `json:"addr,omitempty"`
	File      string `json:"file,omitempty"` // a list of CIDs, one a line; or a profile
	Keep      bool   `json:"keep,omitempty"` // what is there from an earlier run is right
	Root      string `json:"root,omitempty"`
	Way       string `json:"way,omitempty"`
	Count     int    `json:"count,omitempty"`
	Size      int    `json:"size,omitempty"`   // of a block, bytes
	Window    int    `json:"window,omitempty"` // blocks wanted at a time; 0: all
	Wants     int    `json:"wants,omitempty"`  // of one peer
	Bytes     int64  `json:"bytes,omitempty"`
	Seed      uint64 `json:"seed,omitempty"`
}

// An answer is one line from a node. Err is set if the operation failed, and
// then nothing else is.
type answer struct {
	Err     string  `json:"err,omitempty"`
	Peer    string  `json:"peer,omitempty"`
	Addr    string  `json:"addr,omitempty"`
	Root    string  `json:"root,omitempty"`
	Plugin  int     `json:"plugin,omitempty"` // id of the process that its exchange runs in
	Figures figures `json:"figures,omitempty"`
}

// A process is a running node, as its parent sees it: one of ours, or a daemon,
// which is not called. Calls to one process are made one at a time.
type process struct {
	role string
	cmd  *exec.Cmd
	in   io.WriteCloser // nil for a daemon
	out  *bufio.Reader
	peer string // id and address, once started
	addr string

	plugin int // id of its plugin's process, 0 if there is none
}

// pids are the processes that work for the node.
func (p *process) pids() []int {
	if p.plugin == 0 {
		return []int{p.cmd.Process.Pid}
	}
	return []int{p.cmd.Process.Pid, p.plugin}
}

// spawn starts this program again as a node, inside a network namespace unless
// netns is empty. It is killed when ctx ends.
func (b *bench) spawn(ctx context.Context, role, netns string) (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	argv := []string{exe, "node"}
	if netns != "" {
		argv = append([]string{"ip", "netns", "exec", netns}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if b.verbose {
		cmd.Stderr = os.Stderr
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return &process{role: role, cmd: cmd, in: in, out: bufio.NewReaderSize(out, 64<<10)}, nil
}

// call has the node do one thing and waits for the answer.
func (p *process) call(q request) (answer, error) {
	var a answer
	line, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return a, fmt.Errorf("%s: %s: %w: %w", p.role, q.Op, errGone, err)
	}
	if line, err = p.out.ReadBytes('\n'); err != nil {
		return a, fmt.Errorf("%s: %s: %w: %w", p.role, q.Op, errGone, err)
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("%s: %s: read answer %.100q: %w", p.role, q.Op, line, err)
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s: %s: %s", p.role, q.Op, a.Err)
	}
	return a, nil
}

// patience is how long a node may take to end by itself.
const patience = 10 * time.Second

// close ends the node. A nil process is closed already.
func (p *process) close() error {
	if p == nil {
		return nil
	}
	p.in.Close()
	kill := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	err := p.cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return fmt.Errorf("%s ended badly: %w", p.role, err)
	}
	return err
}
