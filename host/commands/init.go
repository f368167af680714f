package commands

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cheggaaa/pb/v3"
	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host/repo"
)

// InitOutput is what init has made.
type InitOutput struct {
	ID       string
	RepoPath string
	Blocks   int      `json:",omitempty"` // taken from a repo of Kubo
	Bytes    int64    `json:",omitempty"` // in these
	Pins     int      `json:",omitempty"` // taken from there, too
	Notes    []string `json:",omitempty"` // what a person should know
}

func initCommand() *cmds.Command {
	const (
		profileOption = "profile"
		keyOption     = "key-type"
		kuboOption    = "from-kubo"
		runningOption = "while-kubo-runs"
	)
	var profiles strings.Builder
	for _, p := range repo.Profiles() {
		fmt.Fprintf(&profiles, "  %-8s %s\n", p.Name, strings.ReplaceAll(wrapTo(p.Description, helpWidth-11), "\n", "\n           "))
	}
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Make the repo of a node.",
			ShortDescription: `
Makes a directory with a configuration, a new identity and no blocks. It is
--repo-dir, else $` + repo.EnvDir + `, else ~/.codexchange, and has to be absent or
empty.

The identity is a secp256k1 key unless --key-type says ed25519. Classic Codex
nodes know only secp256k1; all others know both.

With --from-kubo the new repo has the identity, the blocks and the pins of a repo
of Kubo, blocks linked where the file system can do that, else copied. Nothing of
Kubo's is changed. Stop Kubo first, or say --while-kubo-runs. An import that was
interrupted goes on where it was when it is started again. Do not run both nodes at
a time: they have the same identity.

Profiles:
` + profiles.String(),
		},
		Options: []cmds.Option{
			cmds.DelimitedStringsOption(",", profileOption, "p", "Profiles to apply to the configuration, separated by commas."),
			cmds.StringOption(keyOption, "Type of the key: secp256k1 or ed25519. Default: secp256k1."),
			cmds.StringOption(kuboOption, "Directory of a repo of Kubo to take identity, blocks and pins from."),
			cmds.BoolOption(runningOption, "With --from-kubo: import although Kubo runs; what it adds meanwhile may be missing."),
		},
		NoRemote: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			e := env(environment)
			profiles := option[[]string](req, profileOption)
			keyType, kubo := option[string](req, keyOption), option[string](req, kuboOption)
			if kubo == "" {
				if option[bool](req, runningOption) {
					return fmt.Errorf("--%s is about --%s, which is missing", runningOption, kuboOption)
				}
				c, err := repo.Init(e.dir, repo.InitOptions{KeyType: keyType, Profiles: profiles})
				if err != nil {
					return err
				}
				return emitInit(re, e.dir, c, &InitOutput{})
			}
			if keyType != "" {
				return fmt.Errorf("both --%s and --%s, want one of them: the identity is that of Kubo", keyOption, kuboOption)
			}
			progress, stop := importProgress(e)
			done, err := repo.ImportKubo(req.Context, kubo, e.dir, repo.ImportOptions{
				Profiles: profiles, WhileRunning: option[bool](req, runningOption), Progress: progress,
			})
			stop()
			if err != nil {
				return err
			}
			return emitInit(re, e.dir, done.Config, &InitOutput{Blocks: done.Blocks, Bytes: done.Bytes, Pins: done.Pins, Notes: done.Notes})
		},
		Type: InitOutput{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *InitOutput) error {
				fmt.Fprintf(w, "initialized the repo in %s\n", out.RepoPath)
				if out.Blocks > 0 {
					fmt.Fprintf(w, "imported %s, %s, and %s\n", count(out.Blocks, "block", "blocks"), humanBytes(uint64(out.Bytes)), count(out.Pins, "pin", "pins"))
				}
				fmt.Fprintf(w, "peer identity: %s\n", out.ID)
				for _, note := range out.Notes {
					fmt.Fprintf(w, "note: %s\n", note)
				}
				where := ""
				if dir := option[string](req, repoOption); dir != "" {
					where = "--" + repoOption + " " + dir + " "
				}
				_, err := fmt.Fprintf(w, "Run 'host %sdaemon' to start the node.\n", where)
				return err
			}),
		},
	}
}

// emitInit reports a new repo.
func emitInit(re cmds.ResponseEmitter, dir string, c *repo.Config, out *InitOutput) error {
	if c == nil {
		return errors.New("init repo: it has no configuration")
	}
	out.ID, out.RepoPath = c.Identity.PeerID, dir
	if len(out.Notes) == 0 { // an import has said it
		key, err := c.Key()
		if err != nil {
			return err
		}
		if note := repo.KeyNote(key); note != "" {
			out.Notes = append(out.Notes, note)
		}
	}
	return cmds.EmitOnce(re, out)
}

// importProgress shows an import on a terminal.
func importProgress(e *Env) (progress func(repo.Imported), stop func()) {
	if !isTerminal(e.stderr) {
		return nil, func() {}
	}
	bar := pb.ProgressBarTemplate(`importing blocks {{counters .}} {{bar .}} {{speed . "%s/s"}} {{rtime . "%s left"}}`).
		New(0).SetWriter(e.stderr).Start()
	return func(i repo.Imported) {
		bar.SetTotal(int64(i.Total))
		bar.SetCurrent(int64(i.Blocks + i.Gone + i.Skipped))
	}, func() { bar.Finish() }
}
