package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/ipfs/boxo/files"
	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/host/repo"
)

// ConfigField is one value of the configuration.
type ConfigField struct {
	Key   string
	Value any
}

// maxConfig is the largest configuration that is read from outside, bytes.
const maxConfig = 16 << 20

func configCommand() *cmds.Command {
	const jsonOption, boolOption = "json", "bool"
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Read and change the configuration.",
			ShortDescription: `
With one argument prints the value of a key, with two sets it. Keys are dotted
paths, as in Kubo where they mean the same. A value is a string unless --json or
--bool says otherwise; null gives the key its default back. What does not fit is
refused, and the file left as it is.

A running daemon goes on with what it has read, until it is started again.

  host config Datastore.StorageMax 20GB
  host config --json Exchange.Use '["blockexc","bitswap"]'
  host config --json Swarm.ConnMgr.HighWater 200
`,
		},
		Arguments: []cmds.Argument{
			cmds.StringArg("key", true, false, "The key, such as Addresses.API."),
			cmds.StringArg("value", false, false, "The value to set."),
		},
		Options: []cmds.Option{
			cmds.BoolOption(boolOption, "The value is true or false."),
			cmds.BoolOption(jsonOption, "The value is JSON."),
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			f, done, err := env(environment).config()
			if err != nil {
				return err
			}
			defer done()
			key := req.Arguments[0]
			if len(req.Arguments) == 2 {
				value, err := repo.Value(req.Arguments[1], option[bool](req, jsonOption), option[bool](req, boolOption))
				if err == nil {
					err = f.Set(key, value)
				}
				if err != nil {
					return err
				}
			}
			raw, err := f.Get(key)
			if err != nil {
				return err
			}
			out := &ConfigField{Key: key}
			if err := json.Unmarshal(raw, &out.Value); err != nil {
				return fmt.Errorf("read config key %s: %w", key, err)
			}
			return cmds.EmitOnce(re, out)
		},
		Type: ConfigField{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(req *cmds.Request, w io.Writer, out *ConfigField) error {
				if len(req.Arguments) == 2 {
					return nil
				}
				if s, ok := out.Value.(string); ok {
					_, err := fmt.Fprintln(w, s)
					return err
				}
				text, err := json.MarshalIndent(out.Value, "", "  ")
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(w, "%s\n", text)
				return err
			}),
		},
		Subcommands: map[string]*cmds.Command{
			"show":    configShowCommand(),
			"replace": configReplaceCommand(),
			"edit":    configEditCommand(),
			"profile": {
				Helptext: cmds.HelpText{Tagline: "Sets of values for one kind of use."},
				Subcommands: map[string]*cmds.Command{
					"apply": configApplyCommand(),
				},
			},
		},
	}
}

func configShowCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Print the configuration.",
			ShortDescription: `
Prints the file without what is secret in it: the private key, and the secrets of
API.Authorizations. What it prints may be changed and given to 'host config
replace'; the secrets stay.
`,
		},
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			text, err := showConfig(env(environment))
			if err != nil {
				return err
			}
			raw := json.RawMessage(text)
			return cmds.EmitOnce(re, &raw)
		},
		Type: json.RawMessage{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *json.RawMessage) error {
				var b bytes.Buffer
				if err := json.Indent(&b, bytes.TrimSpace(*out), "", "  "); err != nil {
					return err
				}
				_, err := fmt.Fprintf(w, "%s\n", &b)
				return err
			}),
		},
	}
}

func showConfig(e *Env) ([]byte, error) {
	f, done, err := e.config()
	if err != nil {
		return nil, err
	}
	defer done()
	return f.Show()
}

func configReplaceCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Replace the configuration by a file.",
			ShortDescription: `
The identity stays, and so do secrets that the file leaves out. A file with a
mistake is refused, and everything that is wrong with it is said.
`,
		},
		Arguments: []cmds.Argument{
			cmds.FileArg("file", true, false, "The new configuration, JSON.").EnableStdin(),
		},
		Run: func(req *cmds.Request, _ cmds.ResponseEmitter, environment cmds.Environment) error {
			it := req.Files.Entries()
			if !it.Next() {
				return errors.Join(errors.New("replace config: no file was given"), it.Err())
			}
			file := files.FileFromEntry(it)
			if file == nil {
				return errors.New("replace config: found a directory, want a file")
			}
			defer file.Close()
			text, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
			if err != nil {
				return err
			}
			if len(text) > maxConfig {
				return fmt.Errorf("replace config: the file is larger than %d bytes", maxConfig)
			}
			f, done, err := env(environment).config()
			if err != nil {
				return err
			}
			defer done()
			return f.Replace(text)
		},
	}
}

func configApplyCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Apply a profile to the configuration.",
			ShortDescription: "Sets the values of a profile; 'host init --help' lists them.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("profile", true, false, "The name of the profile.")},
		Run: func(req *cmds.Request, _ cmds.ResponseEmitter, environment cmds.Environment) error {
			e := env(environment)
			e.editing.Lock()
			defer e.editing.Unlock()
			f, done, err := e.config()
			if err != nil {
				return err
			}
			defer done()
			c, err := f.Config()
			if err != nil {
				return err
			}
			if err := c.Apply(req.Arguments[0]); err != nil {
				return err
			}
			return f.Write(c)
		},
	}
}

func configEditCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "Edit the configuration.",
			ShortDescription: `
Opens the configuration, without what is secret in it, in $VISUAL or $EDITOR, and
replaces it by what was saved. If that has a mistake, the configuration stays as it
is, and what was edited is kept in a file that is named.
`,
		},
		Extra:    here(), // here is the editor
		NoRemote: true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			e := env(environment)
			if e.stderr == nil {
				return errors.New("edit config: only a command line has an editor")
			}
			editor := os.Getenv("VISUAL")
			if editor == "" {
				editor = os.Getenv("EDITOR")
			}
			command := strings.Fields(editor)
			if len(command) == 0 {
				return errors.New("edit config: neither $VISUAL nor $EDITOR is set, want the name of an editor")
			}
			before, err := callConfig(req, e, "show", nil)
			if err != nil {
				return err
			}
			tmp, err := os.CreateTemp("", "codexchange-config-*.json")
			if err != nil {
				return err
			}
			if _, err = tmp.Write(before); err == nil {
				err = tmp.Close()
			}
			if err != nil {
				return err
			}
			run := exec.CommandContext(req.Context, command[0], append(command[1:], tmp.Name())...)
			run.Stdin, run.Stdout, run.Stderr = os.Stdin, os.Stdout, os.Stderr
			if err := run.Run(); err != nil {
				os.Remove(tmp.Name())
				return fmt.Errorf("edit config with %s: %w", editor, err)
			}
			after, err := os.ReadFile(tmp.Name())
			if err != nil {
				return err
			}
			if !bytes.Equal(before, after) {
				if _, err := callConfig(req, e, "replace", after); err != nil {
					return fmt.Errorf("%w; what you wrote is in %s", err, tmp.Name())
				}
			}
			return os.Remove(tmp.Name())
		},
	}
}

// callConfig runs another command about the configuration, where that runs, and
// returns what it prints.
func callConfig(req *cmds.Request, e *Env, name string, body []byte) ([]byte, error) {
	opts := cmds.OptMap{cmds.EncLong: cmds.Text}
	for _, o := range []string{apiOption, authOption} {
		if v, ok := req.Options[o]; ok {
			opts[o] = v
		}
	}
	var dir files.Directory
	if body != nil {
		dir = files.NewMapDirectory(map[string]files.Node{"config": files.NewBytesFile(body)})
	}
	call, err := cmds.NewRequest(req.Context, []string{"config", name}, opts, nil, dir, req.Root)
	if err != nil {
		return nil, err
	}
	where, err := executor(call, e)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	re, err := cmds.NewWriterResponseEmitter(nopCloser{&out}, call)
	if err != nil {
		return nil, err
	}
	failed := &firstError{ResponseEmitter: re}
	if err := where.Execute(call, failed, e); err != nil {
		return nil, err
	}
	if failed.err != nil {
		return nil, failed.err
	}
	return out.Bytes(), context.Cause(req.Context)
}

// firstError keeps the error that a command ends with.
type firstError struct {
	cmds.ResponseEmitter
	err error
}

func (f *firstError) CloseWithError(err error) error {
	if err != nil && err != io.EOF && f.err == nil {
		f.err = err
	}
	return f.ResponseEmitter.CloseWithError(nil)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
