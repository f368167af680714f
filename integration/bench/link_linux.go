package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A link joins nodes by an emulated network. Each node is in a network namespace
// whose only device is a TUN, and this process carries packets from one to the
// other: with a fixed delay, at a rate for each direction of each node, and with
// a queue that drops what does not fit. It does what a pair of devices and
// netem would, on kernels without netem too. Packets carry virtio headers, so
// segments pass whole and cost little.
//
// A nil link is loopback. One goroutine for each node reads, and one for each
// pair of nodes writes; close waits for them.
type link struct {
	names   []string // of namespaces
	devices []*device
	delay   time.Duration // one way
	drops   atomic.Int64
	done    chan struct{}
	wg      sync.WaitGroup
}

// A device is a node's end of the link.
type device struct {
	fd   int
	up   shaper // owned by the goroutine that reads
	mu   sync.Mutex
	down shaper        // guarded by mu
	to   []chan packet // by node; nil for itself
}

type packet struct {
	at   time.Time // when it arrives
	data []byte    // with its virtio header
}

// A shaper lets bytes pass at a rate.
type shaper struct {
	rate  float64 // bytes/s
	queue time.Duration
	free  time.Time // when everything before has passed
}

// pass returns when n bytes that come at t have passed; false if the queue is
// full.
func (s *shaper) pass(t time.Time, n int) (time.Time, bool) {
	if s.free.Before(t) {
		s.free = t
	}
	if s.free.Sub(t) > s.queue {
		return t, false
	}
	s.free = s.free.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
	return s.free, true
}

const (
	linkDevice = "bench0"
	linkMTU    = 1500
	pollEvery  = 100 // ms between looks at whether the link is closed

	virtioHeader = 10
	ipv4Header   = 20
	tcpHeaders   = 52 // of IPv4 and TCP with timestamps, which each segment repeats
)

// linkPossible says why links cannot be emulated here, if they cannot.
func linkPossible(ctx context.Context) error {
	l, err := newLink(ctx, 2, time.Millisecond, 1)
	if err != nil {
		return err
	}
	l.close()
	return nil
}

// newLink joins so many nodes. A packet takes half of rtt; every node sends and
// receives mbit megabits a second at most.
func newLink(ctx context.Context, nodes int, rtt time.Duration, mbit float64) (_ *link, err error) {
	l := &link{delay: rtt / 2, done: make(chan struct{})}
	defer func() {
		if err != nil {
			l.close()
			err = fmt.Errorf("emulate link: %w", err)
		}
	}()
	s := shaper{rate: mbit * 1e6 / 8, queue: max(2*rtt, 50*time.Millisecond)}
	for i := range nodes {
		name := fmt.Sprintf("bench%d-%d", os.Getpid(), i)
		if err := ip(ctx, "netns", "add", name); err != nil {
			return nil, err
		}
		l.names = append(l.names, name)
		fd, err := openTunIn(name)
		if err != nil {
			return nil, err
		}
		l.devices = append(l.devices, &device{fd: fd, up: s, down: s})
		_, addr := l.place(i)
		err = errors.Join(
			ip(ctx, "-n", name, "link", "set", "lo", "up"),
			ip(ctx, "-n", name, "addr", "add", addr+"/24", "dev", linkDevice),
			ip(ctx, "-n", name, "link", "set", linkDevice, "mtu", fmt.Sprint(linkMTU), "txqueuelen", "2000", "up"))
		if err != nil {
			return nil, err
		}
	}
	for i, d := range l.devices {
		d.to = make([]chan packet, nodes)
		for j, other := range l.devices {
			if i != j {
				d.to[j] = make(chan packet, 1<<16)
				l.wg.Go(func() { l.deliver(d.to[j], other.fd) })
			}
		}
	}
	for _, d := range l.devices {
		l.wg.Go(func() { l.forward(d) })
	}
	return l, nil
}

// place is where a node runs, and its address there.
func (l *link) place(i int) (netns, ip string) {
	if l == nil {
		return "", ""
	}
	return l.names[i], fmt.Sprintf("10.199.0.%d", i+1)
}

// dropped is how many packets did not fit into a queue.
func (l *link) dropped() int64 { return l.drops.Load() }

// close ends the link. The nodes in it have ended.
func (l *link) close() {
	close(l.done)
	l.wg.Wait()
	for _, d := range l.devices {
		unix.Close(d.fd)
	}
	for _, name := range l.names {
		ip(context.Background(), "netns", "del", name) // what is left over harms nobody
	}
}

func (l *link) forward(d *device) {
	buf := make([]byte, virtioHeader+1<<16)
	for {
		select {
		case <-l.done:
			return
		default:
		}
		n, err := unix.Read(d.fd, buf)
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}, pollEvery)
			continue
		}
		if err != nil {
			return
		}
		to, size, ok := l.route(buf[:n])
		if !ok || d.to[to] == nil {
			continue
		}
		at, ok := d.up.pass(time.Now(), size)
		if ok {
			other := l.devices[to]
			other.mu.Lock()
			at, ok = other.down.pass(at.Add(l.delay), size)
			other.mu.Unlock()
		}
		if !ok {
			l.drops.Add(1)
			continue
		}
		select {
		case d.to[to] <- packet{at, append([]byte(nil), buf[:n]...)}:
		default:
			l.drops.Add(1)
		}
	}
}

// route says to which node a packet goes, and how many bytes it would be on a
// wire.
func (l *link) route(p []byte) (to, size int, ok bool) {
	if len(p) < virtioHeader+ipv4Header || p[virtioHeader]>>4 != 4 {
		return 0, 0, false
	}
	to = int(p[virtioHeader+19]) - 1 // the last byte of the destination
	size = len(p) - virtioHeader
	if segment := int(binary.LittleEndian.Uint16(p[4:])); p[1] != 0 && segment > 0 {
		size += (size - 1) / segment * tcpHeaders
	}
	return to, size, to >= 0 && to < len(l.devices)
}

func (l *link) deliver(from <-chan packet, fd int) {
	for {
		select {
		case <-l.done:
			return
		case p := <-from:
			// The runtime's timers are too coarse for a packet every 12 µs.
			if wait := time.Until(p.at); wait > 50*time.Microsecond {
				t := unix.NsecToTimespec(int64(wait))
				unix.Nanosleep(&t, nil)
			}
			unix.Write(fd, p.data) // a full device drops, as any
		}
	}
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %v: %w: %.200s", args, err, out)
	}
	return nil
}

// openTunIn makes the device inside a network namespace.
func openTunIn(netns string) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var f *os.File
		if f, err = os.Open("/run/netns/" + netns); err != nil {
			return
		}
		defer f.Close()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter namespace %s: %w", netns, err)
			return
		}
		fd, err = openTun(linkDevice)
	}()
	<-done
	return fd, err
}

func openTun(name string) (int, error) {
	const file = "/dev/net/tun"
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", file, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4)
	}
	if err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("set up %s: %w", file, err)
	}
	return fd, nil
}
