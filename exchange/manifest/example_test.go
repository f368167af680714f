package manifest_test

import (
	"bytes"
	"context"
	"fmt"

	blocks "github.com/ipfs/go-block-format"

	"github.com/codexchange/codexchange/exchange/codex"
	"github.com/codexchange/codexchange/exchange/manifest"
)

// A file becomes a dataset of three blocks, of which the last is filled up with
// zeros, and a manifest.
func ExampleBuild() {
	file := make([]byte, 150_000)
	for p := range file {
		file[p] = byte(p % 251)
	}
	opts := manifest.Options{Filename: "data.bin", MimeType: "application/octet-stream"}

	ds, err := manifest.Build(context.Background(), bytes.NewReader(file), opts,
		func(index uint64, block blocks.Block) error {
			fmt.Println("block", index, codex.String(block.Cid()), len(block.RawData()))
			return nil // after it is stored
		})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("tree", codex.String(ds.Manifest.TreeCid))

	block, err := ds.Manifest.Block()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("manifest", codex.String(block.Cid()), len(block.RawData()))

	// Output:
	// block 0 zDxWB8ED3dHw7Hob9QRy364ZULERsk7CRtaLCfVD2igGJgsgdpfj 65536
	// block 1 zDxWB8EDFgcRM8hkGVPZVS12QaHCaB2RJtEiTFeTYjT568kHLKiD 65536
	// block 2 zDxWB8ED6jixEvrwuaDWavyX21CnT8bGv8vJUWsTJJDi9riof3ST 65536
	// tree zDzSvJTezuE58sk9JhG8j9Er73Gbf1PQNeP4uGoV11fFR2v2SQch
	// manifest zDvZRwzkwsn2WPHQtdjT9f2voRFw5EU8EusnTptU1j6daXqD26HR 94
}

// A reader of bytes 100,000 to 149,999 asks for two blocks, and cuts the padding
// from the second.
func ExampleManifest_BlockRange() {
	m := manifest.Manifest{BlockSize: 65536, DatasetSize: 150_000}
	first, count := m.BlockRange(100_000, 50_000)
	fmt.Println("blocks:", count, "from", first)

	last, err := m.Trim(2, make([]byte, 65536))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("bytes of content in block 2:", len(last))

	// Output:
	// blocks: 2 from 1
	// bytes of content in block 2: 18928
}
