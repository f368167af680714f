package main

import (
	"container/heap"
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
// A packet joins the queue before a node's way in when it gets there, in the order in
// which packets get there, and not when it is sent: else what waits long in one sender's
// own queue would keep what others send from a way in that is free.
//
// A nil link is loopback. Two goroutines for each node, one that reads and one that
// writes; close waits for them.
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
	up   shaper      // owned by the goroutine that reads
	in   chan packet // that have passed the way out of their senders
	down shaper      // owned by the goroutine that writes, as is what follows
	far  packets     // that have not got to the shaper; what senders' queues hold, at most
	near []packet    // that are to be written, in order; what the shaper's queue holds, at most
}

type packet struct {
	at   time.Time // when it comes to the next place
	size int       // on a wire
	data []byte    // with its virtio header
}

// packets is a heap by time.
type packets []packet

func (p packets) Len() int           { return len(p) }
func (p packets) Less(i, j int) bool { return p[i].at.Before(p[j].at) }
func (p packets) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)        { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = packet{}
	*p = (*p)[:last]
	return x
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
		l.devices = append(l.devices, &device{fd: fd, up: s, down: s, in: make(chan packet, 1<<16)})
		_, addr := l.place(i)
		err = errors.Join(
			ip(ctx, "-n", name, "link", "set", "lo", "up"),
			ip(ctx, "-n", name, "addr", "add", addr+"/24", "dev", linkDevice),
			ip(ctx, "-n", name, "link", "set", linkDevice, "mtu", fmt.Sprint(linkMTU), "txqueuelen", "2000", "up"))
		if err != nil {
			return nil, err
		}
	}
	for _, d := range l.devices {
		l.wg.Go(func() { l.forward(d) })
		l.wg.Go(func() { l.deliver(d) })
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
		if !ok || l.devices[to] == d {
			continue
		}
		at, ok := d.up.pass(time.Now(), size)
		if !ok {
			l.drops.Add(1)
			continue
		}
		select {
		case l.devices[to].in <- packet{at.Add(l.delay), size, append([]byte(nil), buf[:n]...)}:
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

// deliver has packets pass the way in of a node, and writes them.
func (l *link) deliver(d *device) {
	for {
		var p packet
		if d.idle() {
			select {
			case <-l.done:
				return
			case p = <-d.in:
			}
		} else {
			select {
			case <-l.done:
				return
			case p = <-d.in:
			default:
			}
		}
		if p.data != nil {
			heap.Push(&d.far, p)
			continue
		}
		// What is sent from now on does not get there before a delay is over, so the
		// order of what does is known, and this may sleep as long.
		now := time.Now()
		l.drops.Add(d.admit(now.Add(l.delay)))
		if wait := min(d.next().Sub(now), l.delay); wait > 50*time.Microsecond {
			// The runtime's timers are too coarse for a packet every 12 µs.
			t := unix.NsecToTimespec(int64(wait))
			unix.Nanosleep(&t, nil)
		} else if len(d.near) > 0 {
			unix.Write(d.fd, d.near[0].data) // a full device drops, as any
			d.near[0] = packet{}
			d.near = d.near[1:]
		}
	}
}

// idle reports whether there is no packet.
func (d *device) idle() bool { return len(d.far) == 0 && len(d.near) == 0 }

// admit has those packets pass the way in that get there up to a time, and returns how
// many are dropped.
func (d *device) admit(until time.Time) (dropped int64) {
	for len(d.far) > 0 && !d.far[0].at.After(until) {
		p := heap.Pop(&d.far).(packet)
		var ok bool
		if p.at, ok = d.down.pass(p.at, p.size); ok {
			d.near = append(d.near, p)
		} else {
			dropped++
		}
	}
	return dropped
}

// next is when there is something to do; now or earlier if there is no packet.
func (d *device) next() (at time.Time) {
	switch {
	case len(d.near) > 0:
		at = d.near[0].at
	case len(d.far) > 0:
		at = d.far[0].at
	}
	return at
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
