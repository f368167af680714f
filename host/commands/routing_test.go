package commands

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

// newRecord makes the record of a new name, which is valid for so long, in a file.
func newRecord(t *testing.T, valid time.Duration) (name ipns.Name, record, file string) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	to, err := path.NewPath("/ipfs/" + treeRoot)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipns.NewRecord(key, to, 1, time.Now().Add(valid), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	data, err := ipns.MarshalRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	return ipns.NameFromPeer(id), string(data), write(t, filepath.Join(t.TempDir(), "record"), data)
}

// Without a daemon records are put into the repo and read from it, in each spelling of
// their names, and what is wrong is refused.
func TestRecords(t *testing.T) {
	s := newShell(t)
	name, record, file := newRecord(t, time.Hour)
	key := "/ipns/" + name.String()
	s.fails([]string{"routing", "get", key}, name.String(), "none is kept here")
	s.fails([]string{"routing", "put", key, file}, "nobody can be told", "--allow-offline")
	s.fails([]string{"routing", "get", key}, "not found")
	s.prints(name.Peer().String()+"\n", "routing", "put", "--allow-offline", key, file)
	for _, spelling := range []string{key, name.String(), "/ipns/" + name.Peer().String()} {
		s.prints(record, "routing", "get", spelling)
	}
	if o := s.feed(t.Context(), record, "routing", "put", "--allow-offline", key); o.code != ExitOK {
		t.Errorf("put from stdin, want success\n%v", o)
	}
	var event routing.QueryEvent
	if err := json.Unmarshal([]byte(s.ok("--enc=json", "routing", "put", "--allow-offline", key, file)), &event); err != nil || event.Type != routing.Value || event.ID != name.Peer() {
		t.Errorf("put is %+v, %v, want a value of %s", event, err, name.Peer())
	}

	other, _, expired := newRecord(t, -time.Second)
	big := write(t, filepath.Join(t.TempDir(), "big"), make([]byte, 1<<20))
	for _, c := range []struct{ key, file, want string }{
		{other.String(), file, "signature verification failed"},
		{other.String(), expired, "expired"},
		{key, big, "at most 10240"},
		{key, write(t, filepath.Join(t.TempDir(), "none"), []byte("hello")), "got 5 bytes that are none"},
		{"/pk/" + name.String(), file, "/pk/"},
		{"nonsense", file, `"nonsense"`},
	} {
		s.fails([]string{"routing", "put", "--allow-offline", c.key, c.file}, c.want)
	}
	s.prints(record, "routing", "get", key)
	s.fails([]string{"routing", "get", "nonsense"}, `"nonsense"`, "/ipns/")
}

// A record that is put on one node of a DHT is found on another, unless that asks nobody.
func TestRecordsTold(t *testing.T) {
	a, b := serve(t, inProcess, "Routing", dhtOfTwo), serve(t, inProcess, "Routing", dhtOfTwo)
	name, record, file := newRecord(t, time.Hour)
	key := "/ipns/" + name.String()
	a.fails([]string{"routing", "put", key, file}, "no peer of the DHT is known", "--allow-offline")
	a.prints(name.Peer().String()+"\n", "routing", "put", "--allow-offline", key, file)
	a.prints(record, "--offline", "routing", "get", key)

	b.ok("swarm", "connect", strings.Fields(a.ok("swarm", "addrs", "local", "--id"))[0])
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // until each is in the other's table
		o := a.run("routing", "put", key, file)
		if o.code == ExitOK && b.run("routing", "get", key).stdout == record {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the record is not found after a minute\n%v", o)
		}
	}
	unknown, _, _ := newRecord(t, time.Hour)
	b.fails([]string{"routing", "get", "/ipns/" + unknown.String()}, unknown.String(), "nobody who was asked has one")
	b.fails([]string{"--offline", "routing", "get", "/ipns/" + unknown.String()}, "nobody else is asked")
}
