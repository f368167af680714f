package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/codexchange/codexchange/exchange/errs"
)

// strange is a config with keys that nobody knows at every depth, and known ones
// in an order of its own.
func strange(t *testing.T) string {
	t.Helper()
	key, err := newKey(Secp256k1)
	if err != nil {
		t.Fatal(err)
	}
	id, err := newIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{
  "Zebra": {"b": [1.50, 2e3, 12345678901234567890], "a": "<&>"},
  "Swarm": {"Later": null, "ConnMgr": {"Even": {"Deeper": true}, "GracePeriod": "default", "LowWater": 5}},
  "Identity": {"PrivKey": %q, "Nick": "n", "PeerID": %q},
  "Peering": {"Peers": [{"Note": "one", "ID": %[2]q, "Addrs": []}, {"ID": %[2]q, "Note": "two"}]},
  "Addresses": {"API": "/ip4/127.0.0.1/tcp/1", "Gateway": ["/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/3"]},
  "Exchange": {"Plugins": {"blockexc": {"Config": {"own": [ {} ]}, "Colour": "red"}}, "Use": ["bitswap", "blockexc"]},
  "Gateway": {"PublicGateways": {"example.org": {"Paths": ["/ipfs"], "Motto": 7}}},
  "Alpha": []
}`, id.PrivKey, id.PeerID)
}

// Keys that this version does not know stay, at any depth and as they were, when
// a config is read and written; known ones get the order of the fields. What was
// written is written the same again.
func TestUnknownKeysStay(t *testing.T) {
	c, err := ParseConfig([]byte(strange(t)))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Swarm.ConnMgr.LowWater.Or(0); got != 5 {
		t.Errorf("LowWater: got %d, want 5", got)
	}
	if !c.Swarm.ConnMgr.GracePeriod.IsDefault() {
		t.Errorf(`GracePeriod "default": got %v, want the default`, c.Swarm.ConnMgr.GracePeriod)
	}
	if got, want := c.Addresses.API, (Strings{"/ip4/127.0.0.1/tcp/1"}); !slices.Equal(got, want) {
		t.Errorf("a string for a list: got %q, want %q", got, want)
	}
	once := c.Encode()
	for _, want := range []string{
		`"Zebra":{"b":[1.50,2e3,12345678901234567890],"a":"<&>"},"Alpha":[]}`,
		`"Later":null}`, `"LowWater":5,"Even":{"Deeper":true}}`, `"Nick":"n"}`,
		`"Note":"one"}`, `"Note":"two"}`, `"Config":{"own":[{}]},"Colour":"red"}`, `"Motto":7}`,
	} {
		var flat bytes.Buffer
		if json.Compact(&flat, once); !strings.Contains(flat.String(), want) {
			t.Errorf("got %s\nwant it to have %s", once, want)
		}
	}
	var order []string
	ms, err := members(once)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		order = append(order, m.key)
	}
	want := "Identity Addresses Bootstrap Discovery Routing Peering Swarm Datastore Provide Exchange API Gateway Zebra Alpha"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order of keys: got %s, want %s", got, want)
	}
	again, err := ParseConfig(once)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Encode(); !bytes.Equal(got, once) {
		t.Errorf("written twice: got %s\nwant %s", got, once)
	}
	if got := c.Clone().Encode(); !bytes.Equal(got, once) {
		t.Errorf("clone: got %s\nwant %s", got, once)
	}
}

// Kubo's routing "custom" is refused, and it is said what to do instead.
func TestCustomRouting(t *testing.T) {
	text := strings.Replace(strange(t), `"Alpha": []`, `"Routing": {"Type": "custom", "Routers": {}}`, 1)
	_, err := ParseConfig([]byte(text))
	for _, want := range []string{`Routing.Type: found "custom", want one of auto, autoclient, delegated, `, "Routing.DelegatedRouters"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// What the words "auto" stand for depends on what the type of routing does itself.
func TestAuto(t *testing.T) {
	c := newConfig(Identity{})
	for kind, want := range map[string][]string{
		"auto":      {"https://cid.contact/routing/v1/providers"},
		"delegated": {"https://cid.contact/routing/v1/providers", "https://delegated-ipfs.dev/routing/v1/ipns", "https://delegated-ipfs.dev/routing/v1/peers", "https://delegated-ipfs.dev/routing/v1/providers"},
	} {
		c.Routing.Type = Some(kind)
		got := c.Routers()
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("routers of type %s: got %q, want %q", kind, got, want)
		}
	}
	c.Routing.DelegatedRouters = []string{"http://127.0.0.1:1"}
	if got, want := c.Routers(), c.Routing.DelegatedRouters; !slices.Equal(got, want) {
		t.Errorf("routers that are named: got %q, want %q", got, want)
	}
	if err := c.Apply("test"); err != nil || len(c.Routers()) > 0 || len(c.Bootstrap) > 0 || c.Routing.Type.Or("") != "none" || c.Discovery.MDNS.Enabled {
		t.Errorf("profile test: got %+v, %v, %v, want nobody looked for", c.Routing, c.Bootstrap, err)
	}
}

// Whatever is wrong is named in one error: the key, what was found, what is wanted.
func TestWrongValues(t *testing.T) {
	good := strange(t)
	var all []string
	text := good
	for _, c := range []struct{ from, to, problem string }{
		{`"LowWater": 5`, `"LowWater": "many"`, `Swarm.ConnMgr.LowWater: found the string "many", want a whole number`},
		{`"Paths": ["/ipfs"]`, `"Paths": ["/ipfs", false]`, `Gateway.PublicGateways.example.org.Paths[1]: found false, want a string`},
		{`"GracePeriod": "default"`, `"GracePeriod": 20`, `Swarm.ConnMgr.GracePeriod: found the number 20, want a duration such as`},
		{`"API": "/ip4/127.0.0.1/tcp/1"`, `"API": {}`, `Addresses.API: found an object, want a string or a list of strings`},
		{`"Use": ["bitswap", "blockexc"]`, `"Use": ["bitswap", "bitswop", "bitswap"]`, `Exchange.Use[1]: found "bitswop", want bitswap, blockexc or a key of Exchange.Plugins`},
		{``, ``, `Exchange.Use[2]: found "bitswap" twice, want it once`},
		{`"Config": {"own": [ {} ]}`, `"Config": 7, "Path": "rel", "Path": "x"`, `Exchange.Plugins.blockexc.Config: found the number 7, want an object`},
		{``, ``, `Exchange.Plugins.blockexc.Path: found twice, want it once`},
		{`"Alpha": []`, `"swarm": {}, "Datastore": {"StorageMax": "lots", "StorageGCWatermark": 101, "GCPeriod": "0s"}`, `swarm: found this key, want it spelt Swarm`},
		{``, ``, `Datastore.StorageMax: found "lots", want a size such as`},
		{``, ``, `Datastore.StorageGCWatermark: found 101, want a percentage, 0 to 100`},
		{``, ``, `Datastore.GCPeriod: found "0s", want a duration above 0`},
		{`"PrivKey": "`, `"PrivKey": "!`, `Identity.PrivKey: found something that is not base64, want a private key`},
		{`"Zebra": {`, `"Bootstrap": ["auto", "/ip4/1.2.3.4"], "Zebra": {`, `Bootstrap[1]: found "/ip4/1.2.3.4", want "auto" or a multiaddr that ends with /p2p/`},
		{`"Gateway": ["/ip4/127.0.0.1/tcp/2"`, `"Gateway": ["8080"`, `Addresses.Gateway[0]: found "8080", want a multiaddr`},
		{`"Peering": {`, `"Routing": {"Type": "magic", "DelegatedRouters": ["auto", "ftp://x", "http://x/routing/v2"]}, "API": {"Authorizations": {"me": {"AuthSecret": "digest:hunter2"}}}, "Peering": {`, `Routing.Type: found "magic", want one of auto, `},
		{``, ``, `Routing.DelegatedRouters[1]: found "ftp://x", want "auto" or the URL of a router`},
		{``, ``, `Routing.DelegatedRouters[2]: found "http://x/routing/v2", want "auto" or the URL of a router`},
		{``, ``, `API.Authorizations.me.AuthSecret: found none or one of another type, want "bearer:token" or`},
	} {
		if !strings.Contains(text, c.from) {
			t.Fatalf("the config does not have %s", c.from)
		}
		text = strings.Replace(text, c.from, c.to, 1)
		all = append(all, c.problem)
	}
	_, err := ParseConfig([]byte(text))
	var wrong *ConfigError
	if !errors.As(err, &wrong) {
		t.Fatalf("got error %v, want a *ConfigError", err)
	}
	for _, want := range all {
		if !slices.ContainsFunc(wrong.Problems, func(p Problem) bool { return strings.HasPrefix(p.String(), want) }) {
			t.Errorf("want %s", want)
		}
	}
	if len(wrong.Problems) != len(all) {
		t.Errorf("got %d problems, want %d", len(wrong.Problems), len(all))
	}
	if t.Failed() {
		t.Logf("got %v", err)
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want no secrets in it", err)
	}
}

// Values that depend on each other are checked together.
func TestValuesTogether(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"high below the default low": {func(c *Config) { c.Swarm.ConnMgr.HighWater = Some[int64](10) }, "Swarm.ConnMgr.HighWater: found 10, want at least LowWater, 32"},
		"another's peer id": {func(c *Config) { c.Identity.PeerID = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8" },
			"Identity.PeerID: found 12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8, want that of PrivKey, 16Uiu2"},
		"no key":           {func(c *Config) { c.Identity.PrivKey = "" }, "Identity.PrivKey: found none, want a private key"},
		"plugin of no use": {func(c *Config) { c.Exchange.Plugins["mine"] = Plugin{} }, "Exchange.Plugins.mine.Path: found none, want the absolute path"},
		"unchecked plugin": {func(c *Config) { c.Exchange.Plugins["mine"] = Plugin{Path: "/bin/x"} }, "Exchange.Plugins.mine.SHA256: found \"\", want the 64 hex digits"},
		"program in process": {func(c *Config) { c.Exchange.Plugins["mine"] = Plugin{Path: "/bin/x", InProcess: true} },
			"Exchange.Plugins.mine.InProcess: found true, want false"},
		"rarely":          {func(c *Config) { c.Provide.DHT.Interval = Some(100 * time.Hour) }, "Provide.DHT.Interval: found 100h0m0s, want 0 to 48h0m0s"},
		"too much memory": {func(c *Config) { c.Swarm.ResourceMgr.MaxMemory = Some("1e30 GB") }, `Swarm.ResourceMgr.MaxMemory: found "1e30 GB", want a size`},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := newKey("")
			if err != nil {
				t.Fatal(err)
			}
			id, err := newIdentity(key)
			if err != nil {
				t.Fatal(err)
			}
			config := newConfig(id)
			if err := config.Check(); err != nil {
				t.Fatalf("the defaults: got %v, want nothing wrong", err)
			}
			c.change(config)
			if err := config.Check(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{"10GB": 1e10, "1.5 GiB": 3 << 29, "12": 12, "7b": 7, "1k": 1000, "2 TiB": 2 << 40} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1", "1 XB", "1e400", "nan", "1 2"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

// Keys are set and read by their dotted paths, as strings, JSON or booleans; the
// rest of the file stays, and its mode.
func TestGetAndSet(t *testing.T) {
	dir := newRepo(t)
	write(t, filepath.Join(dir, configName), strange(t))
	if err := os.Chmod(filepath.Join(dir, configName), 0o640); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	f := r.ConfigFile()
	for _, c := range []struct {
		key, text string
		json      bool
		bool      bool
		want      string // what Get returns, or
		fails     string // what the error says
	}{
		{key: "Datastore.StorageMax", text: "5GB", want: `"5GB"`},
		{key: "Swarm.ConnMgr.HighWater", text: "99", json: true, want: "99"},
		{key: "Swarm.ConnMgr.HighWater", text: "99", fails: `Swarm.ConnMgr.HighWater: found the string "99", want a whole number (lists, objects and numbers need --json`},
		{key: "Swarm.DisableNatPortMap", text: "true", bool: true, want: "true"},
		{key: "Swarm.DisableNatPortMap", text: "yes", bool: true, fails: "want true or false"},
		{key: "Swarm.ConnMgr.GracePeriod", text: "1m", want: `"1m0s"`},
		{key: "Exchange.Plugins.mine", text: `{"Path":"/bin/x","SHA256":"` + strings.Repeat("ab", 32) + `"}`, json: true,
			want: `{"Path":"/bin/x","SHA256":"` + strings.Repeat("ab", 32) + `","InProcess":false}`},
		{key: "Exchange.Plugins.mine.Config.deep.er", text: "x", want: `"x"`},
		{key: "Zebra.a", text: "kept", want: `"kept"`},
		{key: "Zebra.new", text: "x", fails: "there is no key Zebra"},
		{key: "Swarm.connmgr.LowWater", text: "1", json: true, fails: "want Swarm.ConnMgr"},
		{key: "Bootstrap.0", text: "x", fails: "Bootstrap has no keys"},
		{key: "Addresses.API.x", text: "x", fails: "Addresses.API has no keys"},
		{key: "Zebra.b.x", text: "x", fails: "there is no key Zebra"},
		{key: "Identity.PeerID", text: "x", fails: "identity cannot be changed"},
		{key: "API.Authorizations.me", text: `{"AuthSecret":"bearer:hunter2"}`, json: true, want: `{"AllowedPaths":[]}`},
		{key: "Gateway", text: "{", json: true, fails: "line 1, column 1"},
		{key: "Gateway.", text: "x", fails: "there is no key"},
	} {
		value, err := Value(c.text, c.json, c.bool)
		if err == nil {
			err = f.Set(c.key, value)
		}
		if c.fails != "" {
			refused(t, err, errs.Invalid, c.fails)
			continue
		}
		if err != nil {
			t.Errorf("set %s: got %v, want nil", c.key, err)
			continue
		}
		got, err := f.Get(c.key)
		var flat bytes.Buffer
		if json.Compact(&flat, got); err != nil || flat.String() != c.want {
			t.Errorf("get %s: got %s, %v, want %s", c.key, &flat, err, c.want)
		}
	}
	if got := r.Config().Swarm.ConnMgr.HighWater.Or(0); got != 99 {
		t.Errorf("the repo's config: got HighWater %d, want 99", got)
	}
	if fi, err := os.Stat(f.Path()); err != nil || fi.Mode() != 0o640 {
		t.Errorf("mode of the file: got %v, %v, want 0640", fi.Mode(), err)
	}
	_, err := f.Get("Swarm.ConnMgr.Type")
	refused(t, err, errs.NotFound)
	for _, key := range []string{"Identity.PrivKey", "API.Authorizations.me.AuthSecret"} {
		_, err := f.Get(key)
		refused(t, err, errs.Invalid, "secret")
	}
}

// Show has no secrets; what it shows may be edited and given back, and identity
// and secrets are as before, whatever identity it has. What is wrong is refused,
// and the file stays.
func TestShowAndReplace(t *testing.T) {
	dir := newRepo(t)
	r := open(t, dir)
	f := r.ConfigFile()
	c := r.Config()
	c.API.Authorizations = map[string]Authorization{"me": {AuthSecret: "bearer:hunter2"}}
	if err := r.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	shown, err := f.Show()
	if err != nil {
		t.Fatal(err)
	}
	if s := string(shown); strings.Contains(s, c.Identity.PrivKey) || strings.Contains(s, "PrivKey") || strings.Contains(s, "hunter2") {
		t.Errorf("got %s, want no secrets", s)
	}
	edited := strings.Replace(string(shown), c.Identity.PeerID, "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN", 1)
	edited = strings.Replace(edited, `"StorageMax": "10GB"`, `"StorageMax": "11GB"`, 1)
	if err := f.Replace([]byte(edited)); err != nil {
		t.Fatal(err)
	}
	c.Datastore.StorageMax = "11GB"
	if got, want := string(r.Config().Encode()), string(c.Encode()); got != want {
		t.Errorf("replaced: got %s\nwant %s", got, want)
	}
	before := read(t, f.Path())
	refused(t, f.Replace([]byte(`{"Exchange": 1, "Swarm": 2}`)), errs.Invalid, "2 values", "Exchange: found the number 1")
	refused(t, f.Replace([]byte("{}\n{")), errs.Invalid, "line 2, column 1")
	refused(t, f.Replace([]byte(`[]`)), errs.Invalid, "found a list, want an object")
	c.Datastore.StorageMax = "some"
	refused(t, r.SetConfig(c), errs.Invalid, "Datastore.StorageMax")
	if got := read(t, f.Path()); got != before {
		t.Errorf("after refusals: got %s\nwant %s", got, before)
	}
}

// A repo whose config cannot be used is not opened, and says why; key by key it
// can be mended, though no single Set makes it right.
func TestMend(t *testing.T) {
	dir := newRepo(t)
	path := filepath.Join(dir, configName)
	text := strings.Replace(read(t, path), `"10GB"`, `12`, 1)
	text = strings.Replace(text, `"Peers": []`, `"Peers": "none"`, 1)
	write(t, path, text)
	_, err := Open(dir)
	refused(t, err, errs.Invalid, "read config "+path, "2 values", "Datastore.StorageMax: found the number 12, want a string", `Peering.Peers: found the string "none", want a list`)

	f, err := OpenConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused(t, f.Set("Datastore.GCPeriod", json.RawMessage("true")), errs.Invalid, "GCPeriod")
	for key, value := range map[string]string{"Datastore.StorageMax": `"1GB"`, "Peering.Peers": "null"} {
		if err := f.Set(key, json.RawMessage(value)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := open(t, dir).Config().Datastore.StorageMax; got != "1GB" {
		t.Errorf("StorageMax: got %q, want 1GB", got)
	}
}

// A config that is a link is written where the link points, and encoding/json has
// the same form of it.
func TestLinkedConfig(t *testing.T) {
	dir := newRepo(t)
	path, target := filepath.Join(dir, configName), filepath.Join(t.TempDir(), "managed")
	if err := errors.Join(os.Rename(path, target), os.Symlink(target, path)); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	c := r.Config()
	c.Datastore.StorageMax = "1TB"
	if err := r.SetConfig(c); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("got %v, %v, want the link", fi.Mode(), err)
	}
	form, err := json.MarshalIndent(c, "", "  ")
	if got := read(t, target); err != nil || got != string(form)+"\n" {
		t.Errorf("got %s\nwant %s, %v", got, form, err)
	}
}

// A process that is killed while it writes the config leaves a whole one, and the
// next one clears up behind it.
func TestKilledWhileWriting(t *testing.T) {
	dir := newRepo(t)
	for range 8 {
		w := start(t, "rewrite", dir)
		for range 3 {
			w.line(t)
		}
		w.Process.Kill()
		w.Wait()
		r, err := Open(dir)
		if err != nil {
			t.Fatalf("after kill -9: %v", err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 {
			t.Errorf("after the next Open: got %q, want nothing left", left)
		}
		s := r.Config().Gateway.RootRedirect
		if s != "/"+strings.Repeat("x", len(s)-1) || len(s) < 2 {
			t.Errorf("got %d bytes, want those that were written", len(s))
		}
		r.Close()
	}
}

func playWriter(dir string) {
	f, err := OpenConfig(dir)
	must(err)
	for i := 1; ; i++ {
		must(f.Set("Gateway.RootRedirect", quote("/"+strings.Repeat("x", 1000*(1+i%100)))))
		fmt.Println(i)
	}
}

// What can be read is written such that it reads the same, and nothing panics.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"Swarm":{"ConnMgr":{"LowWater":1,"X":null}},"Peering":{"Peers":[{"A":1}]},"Y":[1e9]}`))
	f.Add([]byte(`{"Addresses":{"API":"a","Gateway":["b"]},"Exchange":{"Plugins":{"x":{"Config":{"a":1}}}}}`))
	f.Add([]byte(`{"Gateway":{"PublicGateways":{"a.b":null}},"Provide":{"DHT":{"Interval":"1h"}},"Provide":0}`))
	f.Add([]byte(`{"Addresses":{"Gateway":[""]}}`)) // a list of nothing is not no list
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _ := parseConfig(data)
		once := c.Encode()
		d, _ := parseConfig(once)
		if twice := d.Encode(); !bytes.Equal(once, twice) {
			t.Errorf("got %s\nwant %s", twice, once)
		}
	})
}
