package refpeer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

// vectors is all of testdata/vectors.json. Bytes are in hex.
type vectors struct {
	Messages    []vectorMessage
	OddMessages []struct{ Name, Bytes, Outcome string }
	Cids        []struct {
		Name, Cid, Str string
		Data           *hexBytes
		Fill           byte // of Size bytes, if Data is absent
		Size           int
	}
	Trees []struct {
		LeafCount     int
		Root, RootCid hexBytes
		Proofs        []struct {
			Index   int
			Encoded hexBytes
		}
	}
	Manifests []struct {
		Name                   string
		TreeCid, Encoded, Cid  hexBytes
		BlockSize, DatasetSize int
		Filename, Mimetype     string
	}
}

type vectorMessage struct {
	Name     string
	WantList struct {
		Entries []struct {
			Address      vectorAddress
			Priority     int32
			Cancel       bool
			WantType     uint8
			SendDontHave bool
		}
		Full bool
	}
	Payload []struct {
		Cid, Data hexBytes
		Address   vectorAddress
		Proof     *struct {
			Hash, Index, Leaves uint64
			Path                []hexBytes
		}
	}
	BlockPresences []struct {
		Address vectorAddress
		Type    uint8
		Price   hexBytes
	}
	PendingBytes     uint64
	Account, Payment hexBytes
	Encoded, Prefix  hexBytes
}

type vectorAddress struct {
	Leaf      bool
	Tree, Cid hexBytes
	Index     uint64
}

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := hex.DecodeString(s)
	*h = v
	return err
}

func loadVectors(t *testing.T) vectors {
	t.Helper()
	var v vectors
	if err := json.Unmarshal(vectorFile, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func mustCid(t *testing.T, b []byte) cid.Cid {
	t.Helper()
	c, err := cid.Cast(b)
	if err != nil {
		t.Fatalf("cid %x: %v", b, err)
	}
	return c
}

// message builds from its listed fields what a recorded message says.
func (v vectorMessage) message(t *testing.T) Message {
	address := func(a vectorAddress) Address {
		if a.Leaf {
			return Leaf(mustCid(t, a.Tree), a.Index)
		}
		return Block(mustCid(t, a.Cid))
	}
	m := Message{PendingBytes: v.PendingBytes, Account: v.Account, Payment: v.Payment}
	m.WantList.Full = v.WantList.Full
	for _, e := range v.WantList.Entries {
		m.WantList.Entries = append(m.WantList.Entries, Entry{
			Address: address(e.Address), Priority: e.Priority, Cancel: e.Cancel, Type: e.WantType, SendDontHave: e.SendDontHave,
		})
	}
	for _, d := range v.Payload {
		out := Delivery{Cid: mustCid(t, d.Cid), Data: d.Data, Address: address(d.Address)}
		if d.Proof != nil {
			out.Proof = &Proof{Hash: d.Proof.Hash, Index: d.Proof.Index, Leaves: d.Proof.Leaves}
			for _, node := range d.Proof.Path {
				out.Proof.Path = append(out.Proof.Path, node)
			}
		}
		m.Deliveries = append(m.Deliveries, out)
	}
	for _, p := range v.BlockPresences {
		m.Presences = append(m.Presences, Presence{Address: address(p.Address), Type: p.Type, Price: p.Price})
	}
	return m
}

func TestMessagesAreWrittenAndReadAsTheReferenceDoes(t *testing.T) {
	for _, v := range loadVectors(t).Messages {
		t.Run(v.Name, func(t *testing.T) {
			want := v.message(t)
			if got := Encode(want); !bytes.Equal(got, v.Encoded) {
				t.Errorf("the fields encode to\n%x, want\n%x", got, []byte(v.Encoded))
			}
			got, err := Decode(v.Encoded)
			if err != nil {
				t.Fatalf("decode: %v", err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the bytes decode to\n%+v, want\n%+v", got, want)
			}
			frame, err := Vector(v.Name)
			if err != nil {
				t.Fatal(err)
			}
			if want := Frame(v.Encoded); !bytes.Equal(frame, want) {
				t.Errorf("Frame gives %x, want %x", want, frame)
			}
		})
	}
	if _, err := Vector("no such message"); err == nil {
		t.Error("Vector gives a message for a name that is not in the file")
	}
}

// TestOddMessages shows the decoder to be as tolerant, as strict and as fragile
// as the reference's, whose outcome is recorded.
func TestOddMessages(t *testing.T) {
	for _, v := range loadVectors(t).OddMessages {
		t.Run(v.Name, func(t *testing.T) {
			b, err := hex.DecodeString(v.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			m, err := Decode(b)
			switch {
			case strings.HasPrefix(v.Outcome, "ok: "):
				if err != nil {
					t.Fatalf("got %v, want %s", err, v.Outcome)
				}
				if got := "ok: " + outcome(m); got != v.Outcome {
					t.Errorf("got  %s\nwant %s", got, v.Outcome)
				}
			case strings.HasPrefix(v.Outcome, "error: "):
				if err == nil || errors.Is(err, errCrash) {
					t.Errorf("got %v, want an error that costs only the stream (%s)", err, v.Outcome)
				}
			case strings.HasPrefix(v.Outcome, "DEFECT "):
				if !errors.Is(err, errCrash) {
					t.Errorf("got %v, want a crash (%s)", err, v.Outcome)
				}
			default:
				t.Fatalf("outcome %q is none that this test knows", v.Outcome)
			}
		})
	}
}

// outcome describes a message in the words of the recorded outcomes.
func outcome(m Message) string {
	s := fmt.Sprintf("entries=%d payload=%d presences=%d pendingBytes=%d full=%t",
		len(m.WantList.Entries), len(m.Deliveries), len(m.Presences), m.PendingBytes, m.WantList.Full)
	for _, e := range m.WantList.Entries {
		kind := map[uint8]string{WantBlock: "WantBlock", WantHave: "WantHave"}[e.Type]
		s += fmt.Sprintf(" {leaf=%t prio=%d cancel=%t type=%s sdh=%t}", e.Address.Leaf, e.Priority, e.Cancel, kind, e.SendDontHave)
	}
	for _, p := range m.Presences {
		kind := map[uint8]string{Have: "Have", DontHave: "DontHave"}[p.Type]
		s += fmt.Sprintf(" {presence leaf=%t type=%s price=%dB}", p.Address.Leaf, kind, len(p.Price))
	}
	return s
}

func TestMalformedMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		hex  string
		want error
	}{
		"cut within a field":         {"0a05", errCut},
		"cut within a length":        {"0a80", errCut},
		"cut within a tag":           {"80", errCut},
		"cut within a fixed64":       {"7900", errCut},
		"length beyond the end":      {"0a8080808010", errCut},
		"padded varint":              {"288000", errVarint},
		"padded length":              {"0a8000", errVarint},
		"padded tag":                 {"a80000", errVarint},
		"varint of 65 bits":          {"28ffffffffffffffffff02", errVarint},
		"varint of 11 bytes":         {"28ffffffffffffffffffff01", errVarint},
		"end of group":               {"0c", errGroup},
		"wire type 6":                {"0e", errGroup},
		"negative priority":          {"0a0d0a0b10ffffffffffffffffff01", errCrash},
		"priority 2^32":              {"0a080a06108080808010", errCrash},
		"bad field within an entry":  {"0a030a010b", errGroup},
		"block under another's hash": {"1a2e0a2601829a031220e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855120400000000", errHash},
		"data without a cid":         {"1a03120100", errHash},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := hex.DecodeString(tc.hex)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := Decode(b); !errors.Is(err, tc.want) {
				t.Errorf("got %v, %v, want %v", m, err, tc.want)
			}
		})
	}
}

func TestFieldsOfOtherTypesAreSkipped(t *testing.T) {
	// A want list as a number, pendingBytes as bytes, fixed numbers of both
	// sizes under unknown numbers, then pendingBytes twice.
	b, err := hex.DecodeString("0805" + "2a00" + "79" + "0102030405060708" + "7d" + "01020304" + "2801" + "2807")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Decode(b)
	if err != nil || !reflect.DeepEqual(m, Message{PendingBytes: 7}) {
		t.Errorf("got %+v, %v, want nothing but 7 bytes pending: the last of the two", m, err)
	}
}

func TestCids(t *testing.T) {
	for _, v := range loadVectors(t).Cids {
		t.Run(v.Name, func(t *testing.T) {
			raw, err := hex.DecodeString(v.Cid)
			if err != nil {
				t.Fatal(err)
			}
			c, err := parseCid(raw)
			if err != nil {
				t.Fatalf("parse: %v", err)
			}
			if c.Prefix().Codec>>8 == 0xCD && cidString(c) != v.Str {
				t.Errorf("text is %s, want %s", cidString(c), v.Str)
			}
			data := bytes.Repeat([]byte{v.Fill}, v.Size)
			if v.Data != nil {
				data = *v.Data
			}
			err = checkHash(c, data)
			if c.Prefix().MhType == 0xCD10 {
				if !errors.Is(err, errHash) {
					t.Errorf("hash of a kind that is not implemented here: got %v, want a refusal", err)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
			if err := checkHash(c, append(data, 0)); !errors.Is(err, errHash) {
				t.Errorf("with a byte more: got %v, want %v", err, errHash)
			}
		})
	}
	if _, err := parseCid([]byte{1, 0x99, 0x7f, 0x12, 1, 0}); err == nil {
		t.Error("a cid of an unknown content codec was read, want an error")
	}
}

// leafDigests is the digests of n blocks of 64 KiB, block i of bytes i mod 256.
func leafDigests(n int) [][32]byte {
	leaves := make([][32]byte, n)
	for i := range leaves {
		_, d, err := digest(BlockCid(bytes.Repeat([]byte{byte(i)}, 65536)))
		if err != nil {
			panic(err)
		}
		leaves[i] = [32]byte(d)
	}
	return leaves
}

func TestTreesAndProofs(t *testing.T) {
	for _, v := range loadVectors(t).Trees {
		t.Run(fmt.Sprint(v.LeafCount), func(t *testing.T) {
			leaves := leafDigests(v.LeafCount)
			tree := layers(leaves)
			root := rootOf(tree)
			if !bytes.Equal(root[:], v.Root) {
				t.Fatalf("root is %x, want %x", root, []byte(v.Root))
			}
			rootCid := treeCid(root)
			if !bytes.Equal(rootCid.Bytes(), v.RootCid) {
				t.Errorf("tree cid is %x, want %x", rootCid.Bytes(), []byte(v.RootCid))
			}
			for _, pv := range v.Proofs {
				if got := EncodeProof(prove(tree, pv.Index)); !bytes.Equal(got, pv.Encoded) {
					t.Errorf("proof of leaf %d is\n%x, want\n%x", pv.Index, got, []byte(pv.Encoded))
				}
				proof, err := DecodeProof(pv.Encoded)
				if err != nil {
					t.Fatalf("proof of leaf %d: %v", pv.Index, err)
				}
				block := BlockCid(bytes.Repeat([]byte{byte(pv.Index)}, 65536))
				if err := verify(block, Leaf(rootCid, uint64(pv.Index)), proof); err != nil {
					t.Errorf("proof of leaf %d: %v", pv.Index, err)
				}
			}
		})
	}
}

func TestStrictVerification(t *testing.T) {
	leaves := leafDigests(5)
	tree := layers(leaves)
	root := treeCid(rootOf(tree))
	block := func(i int) cid.Cid { return BlockCid(bytes.Repeat([]byte{byte(i)}, 65536)) }
	longer := prove(tree, 0)
	longer.Path = append(longer.Path, noChild[:])
	alias := prove(tree, 0) // leaf 0 as index 8 of a larger tree
	alias.Index, alias.Leaves = 8, 1000
	filled := prove(tree, 4)
	filled.Path[0] = bytes.Repeat([]byte{1}, 32)
	short := prove(tree, 0)
	short.Path[1] = short.Path[1][:31]
	elsewhere := prove(tree, 0)
	elsewhere.Path[2] = bytes.Repeat([]byte{1}, 32)
	outside := prove(tree, 4)
	outside.Leaves = 4
	otherHash := prove(tree, 0)
	otherHash.Hash = 0x16
	good := prove(tree, 0)

	for name, tc := range map[string]struct {
		block  cid.Cid
		a      Address
		proof  *Proof
		want   string // "" if it is to pass
		passes bool   // in the reference
	}{
		"good":                    {block(0), Leaf(root, 0), &good, "", true},
		"none":                    {block(0), Leaf(root, 0), nil, "no proof", false},
		"of another index":        {block(0), Leaf(root, 1), &good, "of index 0, want 1", false},
		"by another hash":         {block(0), Leaf(root, 0), &otherHash, "want the same", false},
		"of another block":        {block(1), Leaf(root, 0), &good, "leads to root", true},
		"to another root":         {block(0), Leaf(root, 0), &elsewhere, "leads to root", true},
		"too long":                {block(0), Leaf(root, 0), &longer, "of 4 nodes for 5 leaves, want 3", true},
		"index beyond the tree":   {block(4), Leaf(root, 4), &outside, "index 4 in a tree of 4", true},
		"aliased index":           {block(0), Leaf(root, 8), &alias, "want 10", true},
		"node where there's none": {block(4), Leaf(root, 4), &filled, "want zeros", true},
		"short node":              {block(0), Leaf(root, 0), &short, "is 31 bytes", true},
	} {
		t.Run(name, func(t *testing.T) {
			err := verify(tc.block, tc.a, tc.proof)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if _, _, err := checkProof(tc.block, tc.a, tc.proof); (err == nil) != tc.passes {
				t.Errorf("as the reference looks at it: got %v, want acceptance %t", err, tc.passes)
			}
		})
	}
}

func TestManifests(t *testing.T) {
	for _, v := range loadVectors(t).Manifests {
		t.Run(v.Name, func(t *testing.T) {
			got := encodeManifest(manifest{
				tree: mustCid(t, v.TreeCid), blockSize: v.BlockSize, size: v.DatasetSize, name: v.Filename, mime: v.Mimetype,
			})
			if !bytes.Equal(got, v.Encoded) {
				t.Errorf("got %x, want %x", got, []byte(v.Encoded))
			}
			if c := mustSum(CodecManifest, got); !bytes.Equal(c.Bytes(), v.Cid) {
				t.Errorf("cid is %x, want %x", c.Bytes(), []byte(v.Cid))
			}
		})
	}
}
