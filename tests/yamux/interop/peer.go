// Peer plays one end of a session with hashicorp's own library, for tests/test_yamux_interop.py.
//
//	peer ROLE ADDRESS [ACTION ...]
//
// ROLE is client or server, of the session: it dials ADDRESS in either. The actions follow one another; then
// "done" is printed, and streams are served until standard input ends.
//
//	echo=N        open N streams at once, and have each of them echo something
//	upload=N      send N bytes on one stream; the other end answers with their SHA-256
//	download=N    ask for N bytes, and check the SHA-256 behind them
//	stall=N       ask for N bytes, read none of them, and echo on another stream meanwhile
//	ping, goaway  what they say
//
// The first byte of a stream says what its opener wants: e, u and d as above (u and d with N in eight bytes
// behind it); s is an upload that is not read before another stream says r.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
)

func main() {
	conn, err := net.Dial("tcp", os.Args[2])
	check(err)
	config := yamux.DefaultConfig()
	config.KeepAliveInterval = 50 * time.Millisecond
	config.ConnectionWriteTimeout = 5 * time.Second
	open := yamux.Client
	if os.Args[1] == "server" {
		open = yamux.Server
	}
	session, err := open(conn, config)
	check(err)
	go serve(session)
	for _, action := range os.Args[3:] {
		name, value, _ := strings.Cut(action, "=")
		count, _ := strconv.ParseUint(value, 10, 64)
		act(session, name, count)
	}
	fmt.Println("done")
	io.Copy(io.Discard, os.Stdin)
	session.Close()
}

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func serve(session *yamux.Session) {
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go answer(stream)
	}
}

// answer does what the opener of a stream wants.
func answer(stream *yamux.Stream) {
	defer stream.Close()
	kind := make([]byte, 1)
	if _, err := io.ReadFull(stream, kind); err != nil {
		return
	}
	switch kind[0] {
	case 'e':
		io.Copy(stream, stream)
	case 'u':
		takeHashed(stream)
	case 'd':
		sendHashed(stream, readCount(stream))
	case 's':
		<-released
		takeHashed(stream)
	case 'r':
		close(released)
	}
}

var released = make(chan struct{})

func act(session *yamux.Session, name string, count uint64) {
	switch name {
	case "echo":
		results := make(chan error)
		for number := uint64(0); number < count; number++ {
			go func(number uint64) { results <- echo(session, number) }(number)
		}
		for number := uint64(0); number < count; number++ {
			check(<-results)
		}
	case "upload":
		stream := ask(session, 'u', count)
		sum := sendBytes(stream, count)
		expect(stream, sum)
		check(stream.Close())
	case "download":
		stream := ask(session, 'd', count)
		hash := sha256.New()
		_, err := io.CopyN(hash, stream, int64(count))
		check(err)
		expect(stream, hash.Sum(nil))
		check(stream.Close())
	case "stall":
		stream := ask(session, 'd', count)
		for number := uint64(0); number < 100; number++ {
			check(echo(session, number))
		}
		check(stream.Close())
	case "ping":
		_, err := session.Ping()
		check(err)
	case "goaway":
		check(session.GoAway())
	default:
		check(fmt.Errorf("unknown action %q", name))
	}
}

func echo(session *yamux.Session, number uint64) error {
	stream, err := session.OpenStream()
	if err != nil {
		return err
	}
	defer stream.Close()
	sent := bytes.Repeat([]byte(fmt.Sprintf("%d ", number)), 100)
	if _, err := stream.Write(append([]byte("e"), sent...)); err != nil {
		return err
	}
	received := make([]byte, len(sent))
	if _, err := io.ReadFull(stream, received); err != nil {
		return err
	}
	if !bytes.Equal(sent, received) {
		return fmt.Errorf("echo of stream %d differs", stream.StreamID())
	}
	return nil
}

func ask(session *yamux.Session, kind byte, count uint64) *yamux.Stream {
	stream, err := session.OpenStream()
	check(err)
	_, err = stream.Write(binary.BigEndian.AppendUint64([]byte{kind}, count))
	check(err)
	return stream
}

func readCount(stream io.Reader) uint64 {
	count := make([]byte, 8)
	io.ReadFull(stream, count)
	return binary.BigEndian.Uint64(count)
}

func takeHashed(stream io.ReadWriter) {
	hash := sha256.New()
	io.CopyN(hash, stream, int64(readCount(stream)))
	stream.Write(hash.Sum(nil))
}

func sendHashed(stream io.Writer, count uint64) {
	stream.Write(sendBytes(stream, count))
}

// sendBytes sends bytes in writes of odd sizes and returns their SHA-256.
func sendBytes(stream io.Writer, count uint64) []byte {
	hash := sha256.New()
	piece := make([]byte, 100_003)
	for at := range piece {
		piece[at] = byte(at * at >> 3)
	}
	for count > 0 {
		size := uint64(len(piece))
		if count < size { // Go's own min needs 1.21, and Debian 12 has 1.19
			size = count
		}
		if _, err := stream.Write(piece[:size]); err != nil {
			break
		}
		hash.Write(piece[:size])
		count -= size
	}
	return hash.Sum(nil)
}

func expect(stream io.Reader, sum []byte) {
	answer := make([]byte, len(sum))
	_, err := io.ReadFull(stream, answer)
	check(err)
	if !bytes.Equal(sum, answer) {
		check(fmt.Errorf("the hash differs"))
	}
}
