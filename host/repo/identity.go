package repo

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/crypto/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The types of key that [Init] makes.
const (
	Secp256k1 = "secp256k1" // the default
	Ed25519   = "ed25519"
)

// newKey makes a key.
func newKey(keyType string) (key crypto.PrivKey, err error) {
	switch keyType {
	case "", Secp256k1:
		key, _, err = crypto.GenerateSecp256k1Key(rand.Reader)
	case Ed25519:
		key, _, err = crypto.GenerateEd25519Key(rand.Reader)
	default:
		err = fmt.Errorf("key type: got %q, want %s or %s", clip(keyType), Secp256k1, Ed25519)
	}
	return key, err
}

// KeyNote is what a person should know who gives a node this key; empty if there
// is nothing to say.
func KeyNote(key crypto.PrivKey) string {
	if key.Type() == pb.KeyType_Secp256k1 {
		return ""
	}
	return fmt.Sprintf("The identity is a key of type %s. Classic Codex nodes accept only secp256k1: they will not connect to this node, "+
		"nor it to them. All other peers accept it.", key.Type())
}

// newIdentity is the form of a key in the file.
func newIdentity(key crypto.PrivKey) (Identity, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return Identity{}, err
	}
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return Identity{}, err
	}
	return Identity{PeerID: id.String(), PrivKey: base64.StdEncoding.EncodeToString(b)}, nil
}

// key reads the private key, and which peer id it means. Its errors do not quote
// what they are about.
func (i *Identity) key() (crypto.PrivKey, peer.ID, error) {
	if i.PrivKey == "" {
		return nil, "", errors.New("found none, want a private key")
	}
	b, err := base64.StdEncoding.DecodeString(i.PrivKey)
	if err != nil {
		return nil, "", errors.New("found something that is not base64, want a private key")
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		return nil, "", errors.New("found something that is no private key of libp2p, want one")
	}
	id, err := peer.IDFromPrivateKey(key)
	return key, id, err
}
