package commands

import (
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/files"
	pin "github.com/ipfs/boxo/pinning/pinner"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"github.com/ipfs/go-ipfs-cmds/cli"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multicodec"
	mh "github.com/multiformats/go-multihash"

	"github.com/codexchange/codexchange/host"
)

// BlockStat is a block.
type BlockStat struct {
	Key  string
	Size int
}

// bigOption is for blocks that peers would refuse.
const bigOption = "allow-big-block"

// softBlock is the largest block that is stored without bigOption, as in Kubo.
const softBlock = host.MaxChunk

func bigFlag() cmds.Option {
	return cmds.BoolOption(bigOption, "Store blocks that are larger than 2 MiB. Most peers will not take them.").WithDefault(false)
}

func checkSize(req *cmds.Request, size int) error {
	if size > softBlock && !option[bool](req, bigOption) {
		return fmt.Errorf("store block: it is %d bytes, want at most %d: larger ones are not taken by most peers; --%s stores it", size, softBlock, bigOption)
	}
	return nil
}

func blockCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Single blocks.",
			ShortDescription: "Commands for single blocks, as they are stored and as peers exchange them.",
		},
		Subcommands: map[string]*cmds.Command{
			"get":  blockGetCommand(),
			"put":  blockPutCommand(),
			"stat": blockStatCommand(),
			"rm":   blockRmCommand(),
		},
	}
}

// block gets the block that the first argument names.
func block(req *cmds.Request, environment cmds.Environment) (blocks.Block, error) {
	r, err := newReader(req, environment)
	if err != nil {
		return nil, err
	}
	c, err := r.resolve(req.Arguments[0])
	if err != nil {
		return nil, err
	}
	return blockservice.NewSession(r.ctx, r.blocks).GetBlock(r.ctx, c)
}

func blockGetCommand() *cmds.Command {
	return &cmds.Command{
		Helptext:  cmds.HelpText{Tagline: "Print a block.", ShortDescription: "Writes the bytes of a block to stdout."},
		Arguments: []cmds.Argument{cmds.StringArg("cid", true, false, "The CID of the block.").EnableStdin()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			b, err := block(req, environment)
			if err != nil {
				return err
			}
			re.SetEncodingType(cmds.OctetStream)
			re.SetContentType("application/vnd.ipld.raw")
			return re.Emit(files.NewBytesFile(b.RawData()))
		},
	}
}

func blockStatCommand() *cmds.Command {
	return &cmds.Command{
		Helptext:  cmds.HelpText{Tagline: "Show the size of a block.", ShortDescription: "Prints the CID of a block and its size in bytes."},
		Arguments: []cmds.Argument{cmds.StringArg("cid", true, false, "The CID of the block.").EnableStdin()},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			enc, err := encoder(req)
			if err != nil {
				return err
			}
			b, err := block(req, environment)
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, &BlockStat{Key: enc.Encode(b.Cid()), Size: len(b.RawData())})
		},
		Type: BlockStat{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *BlockStat) error {
				_, err := fmt.Fprintf(w, "Key: %s\nSize: %d\n", out.Key, out.Size)
				return err
			}),
		},
	}
}

func blockPutCommand() *cmds.Command {
	const codecOption, hashOption, lengthOption, formatOption = "cid-codec", "mhtype", "mhlen", "format"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Store files as blocks.",
			ShortDescription: `
Stores each file as one block and prints its CID, of version 1 and codec raw unless
--cid-codec says otherwise. Whether the bytes are of that codec is not looked at.
`,
		},
		Arguments: []cmds.Argument{cmds.FileArg("data", true, true, "The file.").EnableStdin()},
		Options: []cmds.Option{
			cmds.StringOption(codecOption, "The codec of the CID.").WithDefault("raw"),
			cmds.StringOption(hashOption, "The hash function.").WithDefault("sha2-256"),
			cmds.IntOption(lengthOption, "Length of the hash, bytes; -1 is all of it.").WithDefault(-1),
			cmds.BoolOption(pinOption, "Pin the blocks and what they link to.").WithDefault(false),
			bigFlag(),
			cmds.StringOption(formatOption, "f", "Old name of --cid-codec; v0 is dag-pb with a CID of version 0."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			enc, err := encoder(req)
			if err != nil {
				return err
			}
			prefix, err := blockPrefix(option[string](req, codecOption), option[string](req, formatOption), option[string](req, hashOption), option[int](req, lengthOption))
			if err != nil {
				return err
			}
			n, err := env(environment).Node()
			if err != nil {
				return err
			}
			put := func(file files.File) error {
				data, err := io.ReadAll(io.LimitReader(file, 64<<20+1))
				if err != nil {
					return err
				}
				if len(data) > 64<<20 {
					return errors.New("store block: it is larger than 64 MiB, want less in any case")
				}
				if err := checkSize(req, len(data)); err != nil {
					return err
				}
				c, err := prefix.Sum(data)
				if err != nil {
					return err
				}
				b, err := blocks.NewBlockWithCid(data, c)
				if err != nil {
					return err
				}
				if option[bool](req, pinOption) {
					defer n.GCLocker().PinLock(req.Context).Unlock(req.Context)
				}
				if err := n.BlockService().AddBlock(req.Context, b); err != nil {
					return err
				}
				if option[bool](req, pinOption) {
					if err := n.Pinner().PinWithMode(req.Context, c, pin.Recursive, ""); err != nil {
						return err
					}
					if err := n.Pinner().Flush(req.Context); err != nil {
						return err
					}
				}
				return re.Emit(&BlockStat{Key: enc.Encode(c), Size: len(data)})
			}
			it := req.Files.Entries()
			for it.Next() {
				file := files.FileFromEntry(it)
				if file == nil {
					return fmt.Errorf("store block: %s is no file", it.Name())
				}
				err := put(file)
				file.Close()
				if err != nil {
					return err
				}
			}
			return it.Err()
		},
		Type: BlockStat{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *BlockStat) error {
				_, err := fmt.Fprintln(w, out.Key)
				return err
			}),
		},
	}
}

// blockPrefix is what the CID of a block is made of.
func blockPrefix(codec, format, hash string, length int) (cid.Prefix, error) {
	p := cid.Prefix{Version: 1, MhLength: length}
	var ok bool
	if p.MhType, ok = mh.Names[hash]; !ok {
		return p, fmt.Errorf("--mhtype: got %q, want a hash function of multihash, such as sha2-256", hash)
	}
	switch {
	case format != "" && codec != "raw":
		return p, errors.New("both --format and --cid-codec, want only one of them")
	case format == "v0":
		if p.MhType != mh.SHA2_256 || length != -1 && length != 32 {
			return p, errors.New("--format v0: a CID of version 0 has a whole sha2-256 hash")
		}
		p.Version, codec = 0, "dag-pb"
	case format == "protobuf":
		codec = "dag-pb"
	case format == "cbor":
		codec = "dag-cbor"
	case format != "":
		codec = format
	}
	var c multicodec.Code
	if err := c.Set(codec); err != nil {
		return p, fmt.Errorf("--cid-codec: got %q, want a codec of multicodec, such as raw or dag-pb", codec)
	}
	p.Codec = uint64(c)
	return p, nil
}

// RemovedBlock is a block that was removed, or why it was not.
type RemovedBlock struct {
	Hash  string `json:",omitempty"`
	Error string `json:",omitempty"`
}

func blockRmCommand() *cmds.Command {
	const forceOption = "force"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Remove blocks from the store.",
			ShortDescription: "Blocks that are pinned, also as part of something else, are not removed.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("cid", true, true, "The CID of the block.")},
		Options: []cmds.Option{
			cmds.BoolOption(forceOption, "f", "Say nothing of blocks that are not there."),
			cmds.BoolOption(quietOption, "q", "Print nothing of blocks that were removed."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			r, err := newReader(req, environment)
			if err != nil {
				return err
			}
			var list []cid.Cid
			for _, arg := range req.Arguments {
				c, err := r.resolve(arg)
				if err != nil {
					return err
				}
				list = append(list, c)
			}
			// Nobody may pin between the question and the removal.
			defer r.node.GCLocker().GCLock(r.ctx).Unlock(r.ctx)
			pinned, err := r.node.Pinner().CheckIfPinned(r.ctx, list...)
			if err != nil {
				return err
			}
			why := make(map[cid.Cid]error)
			for _, p := range pinned {
				if p.Pinned() {
					why[p.Key] = fmt.Errorf("pinned: %s", p.String())
				}
			}
			for _, c := range list {
				err := why[c]
				if err == nil {
					var has bool
					if has, err = r.node.Blockstore().Has(r.ctx, c); err == nil && !has && !option[bool](req, forceOption) {
						err = ipld.ErrNotFound{Cid: c}
					} else if err == nil {
						err = r.node.Blockstore().DeleteBlock(r.ctx, c)
					}
				}
				out := &RemovedBlock{Hash: r.enc.Encode(c)}
				if err != nil {
					out.Error = err.Error()
				} else if option[bool](req, quietOption) {
					continue
				}
				if err := re.Emit(out); err != nil {
					return err
				}
			}
			return nil
		},
		PostRun: cmds.PostRunMap{
			cmds.CLI: func(res cmds.Response, re cmds.ResponseEmitter) error {
				failed := 0
				for {
					v, err := res.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						return err
					}
					out, ok := v.(*RemovedBlock)
					if !ok {
						return fmt.Errorf("print removed blocks: got %T, want %T", v, out)
					}
					if out.Error != "" {
						failed++
						fmt.Fprintf(re.(cli.ResponseEmitter).Stderr(), "cannot remove %s: %s\n", out.Hash, out.Error)
						continue
					}
					if _, err := fmt.Fprintf(re.(cli.ResponseEmitter).Stdout(), "removed %s\n", out.Hash); err != nil {
						return err
					}
				}
				if failed > 0 {
					return fmt.Errorf("%d blocks were not removed", failed)
				}
				return nil
			},
		},
		Type: RemovedBlock{},
	}
}
