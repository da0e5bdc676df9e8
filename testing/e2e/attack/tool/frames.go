package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// place is how an interface sends to others: what frames are made from.
type place struct {
	Link       string
	MAC        string
	Address    string
	Gateway    string
	GatewayMAC string
}

// where prints the place of the interface with the default route.
func where() error {
	routes, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return err
	}
	var p place
	for line := range strings.Lines(string(routes)) {
		// Iface Destination Gateway ... Mask: hex, in the byte order of the machine.
		f := strings.Fields(line)
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		raw, err := hex.DecodeString(f[2])
		if err != nil || len(raw) != 4 {
			return fmt.Errorf("gateway %q", f[2])
		}
		p.Link, p.Gateway = f[0], netip.AddrFrom4([4]byte{raw[3], raw[2], raw[1], raw[0]}).String()
	}
	link, err := net.InterfaceByName(p.Link)
	if err != nil {
		return fmt.Errorf("interface of the default route: %w", err)
	}
	p.MAC = link.HardwareAddr.String()
	addresses, err := link.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			p.Address = n.IP.String()
		}
	}
	// Anything sent to the gateway makes the kernel ask for its address.
	for range 50 {
		if c, err := net.Dial("udp", net.JoinHostPort(p.Gateway, "9")); err == nil {
			_, _ = c.Write([]byte{0})
			_ = c.Close()
		}
		neighbours, err := os.ReadFile("/proc/net/arp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(neighbours)) {
			if f := strings.Fields(line); len(f) >= 6 && f[0] == p.Gateway && f[3] != "00:00:00:00:00:00" {
				p.GatewayMAC = f[3]
			}
		}
		if p.GatewayMAC != "" {
			return json.NewEncoder(os.Stdout).Encode(p)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the gateway %s does not tell its hardware address", p.Gateway)
}

// send puts frames, one per line in base64, on an interface, as they are. It
// prints the number of those that the kernel took and what became of others.
func send(link string, in io.Reader) error {
	l, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(socket)
	sent := 0
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		frame, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if err := unix.Sendto(socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index}); err != nil {
			fmt.Printf("%d refused %v\n", n, err)
			continue
		}
		sent++
	}
	fmt.Printf("sent %d\n", sent)
	return lines.Err()
}

// marker begins the mark of a packet; eight hex digits follow.
const marker = "mpattack:"

// watch prints "MARK LINK" for each marked packet that is seen on an interface
// of this network namespace, whatever the direction, and "MARK socket PORT" for
// one that arrives at a UDP port. "watching" says that it has begun.
func watch(ctx context.Context, ports []string) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	var out sync.Mutex
	seen := map[string]bool{}
	tell := func(data []byte, where string) {
		for {
			at := bytes.Index(data, []byte(marker))
			if at < 0 || len(data) < at+len(marker)+8 {
				return
			}
			line := string(data[at+len(marker):at+len(marker)+8]) + " " + where
			data = data[at+len(marker)+8:]
			out.Lock()
			if !seen[line] {
				seen[line] = true
				fmt.Println(line)
			}
			out.Unlock()
		}
	}
	for _, l := range links {
		handle, err := pcapgo.NewEthernetHandle(l.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", l.Name, err)
		}
		go func() {
			for {
				data, _, err := handle.ReadPacketData()
				if err != nil {
					if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
						return
					}
					time.Sleep(time.Millisecond) // the interface is down for now
					continue
				}
				tell(data, l.Name+tunnel(data))
			}
		}()
	}
	for _, port := range ports {
		conn, err := net.ListenPacket("udp4", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, _, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				tell(buf[:n], "socket "+port)
			}
		}()
	}
	out.Lock()
	fmt.Println("watching")
	out.Unlock()
	<-ctx.Done()
	return nil
}

// tunnel is " vni N" for a frame that holds VXLAN over IPv4 and UDP.
func tunnel(frame []byte) string {
	if len(frame) < 34 || !slices.Equal(frame[12:14], []byte{8, 0}) || frame[23] != 17 {
		return ""
	}
	udp := 14 + int(frame[14]&0x0f)*4
	if len(frame) < udp+16 || binary.BigEndian.Uint16(frame[udp+2:]) != 4789 {
		return ""
	}
	return fmt.Sprintf(" vni %d", binary.BigEndian.Uint32(frame[udp+12:])>>8)
}
