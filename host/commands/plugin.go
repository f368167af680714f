package commands

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	cmds "github.com/ipfs/go-ipfs-cmds"

	"github.com/codexchange/codexchange/plugin"
)

func pluginCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline: "The processes that exchanges run in.",
			ShortDescription: `
An exchange runs in a plugin unless Exchange.Plugins.<name>.InProcess is set. A plugin
that ends or hangs is started again, with pauses that grow, until it is given up.
`,
		},
		Subcommands: map[string]*cmds.Command{
			"ls":      pluginLsCommand(),
			"status":  pluginStatusCommand(),
			"restart": pluginRestartCommand(),
		},
	}
}

// PluginStatus is how things are with a plugin.
type PluginStatus struct {
	Name      string
	State     string
	Since     time.Time // of the state
	Pid       int       `json:",omitempty"`
	Restarts  int
	Crashes   int    // of late
	LastError string `json:",omitempty"`
	Streams   int    // that it has open
	Protocols []string
}

// PluginList are the plugins of a node.
type PluginList struct{ Plugins []PluginStatus }

// plugins are those of the node, or only the named ones.
func plugins(environment cmds.Environment, names []string) (*PluginList, []*plugin.Plugin, error) {
	n, err := env(environment).online()
	if err != nil {
		return nil, nil, err
	}
	out, list := &PluginList{Plugins: []PluginStatus{}}, []*plugin.Plugin(nil)
	add := func(name string, p *plugin.Plugin) {
		s, lent := p.Status(), p.Lent()
		st := PluginStatus{
			Name: name, State: s.State.String(), Since: s.Since, Pid: s.Pid, Restarts: s.Restarts, Crashes: s.Crashes,
			Streams: lent.Streams, Protocols: []string{},
		}
		if s.LastErr != nil {
			st.LastError = s.LastErr.Error()
		}
		for _, id := range lent.Protocols {
			st.Protocols = append(st.Protocols, string(id))
		}
		out.Plugins, list = append(out.Plugins, st), append(list, p)
	}
	known := make(map[string]*plugin.Plugin)
	for _, x := range n.Exchanges() {
		if p := x.Plugin(); p != nil {
			known[x.Name] = p
			if len(names) == 0 {
				add(x.Name, p)
			}
		}
	}
	for _, name := range names {
		p := known[name]
		if p == nil {
			return nil, nil, fmt.Errorf("no plugin %q runs: 'host plugin ls' lists those that do", name)
		}
		add(name, p)
	}
	return out, list, nil
}

func pluginLsCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "List the plugins.", ShortDescription: "Prints name, state and process of each plugin."},
		NoLocal:  true,
		Run: func(_ *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			out, _, err := plugins(environment, nil)
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type: PluginList{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *PluginList) error {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				for _, p := range out.Plugins {
					fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, p.State, process(p.Pid))
				}
				return t.Flush()
			}),
		},
	}
}

func process(pid int) string {
	if pid == 0 {
		return "no process"
	}
	return fmt.Sprintf("process %d", pid)
}

func pluginStatusCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Show how things are with plugins.",
			ShortDescription: "Prints state, restarts and last error of all plugins, or of the named ones.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("name", false, true, "The name of the plugin.")},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			out, _, err := plugins(environment, req.Arguments)
			if err != nil {
				return err
			}
			return cmds.EmitOnce(re, out)
		},
		Type: PluginList{},
		Encoders: cmds.EncoderMap{
			cmds.Text: cmds.MakeTypedEncoder(func(_ *cmds.Request, w io.Writer, out *PluginList) error {
				var b strings.Builder
				for _, p := range out.Plugins {
					fmt.Fprintf(&b, "%s\n\tstate: %s since %s, %s\n\trestarts: %d\n\tcrashes of late: %d\n\tstreams: %d\n\tprotocols: %s\n",
						p.Name, p.State, p.Since.Local().Format(time.DateTime), process(p.Pid), p.Restarts, p.Crashes, p.Streams,
						printable(strings.Join(p.Protocols, " ")))
					if p.LastError != "" {
						fmt.Fprintf(&b, "\tlast error: %s\n", printable(p.LastError))
					}
					if p.State == plugin.GivenUp.String() {
						fmt.Fprintf(&b, "\tstart it again with: host plugin restart %s\n", p.Name)
					}
				}
				_, err := io.WriteString(w, b.String())
				return err
			}),
		},
	}
}

func pluginRestartCommand() *cmds.Command {
	return &cmds.Command{
		Helptext: cmds.HelpText{
			Tagline:          "Start plugins anew.",
			ShortDescription: "Ends the process of a plugin and starts another, also after it was given up. What is being fetched goes on when the new one is ready.",
		},
		Arguments: []cmds.Argument{cmds.StringArg("name", true, true, "The name of the plugin.")},
		NoLocal:   true,
		Run: func(req *cmds.Request, re cmds.ResponseEmitter, environment cmds.Environment) error {
			_, list, err := plugins(environment, req.Arguments)
			if err != nil {
				return err
			}
			out := &stringList{}
			for i, p := range list {
				p.Restart()
				out.Strings = append(out.Strings, fmt.Sprintf("restart %s requested", req.Arguments[i]))
			}
			return cmds.EmitOnce(re, out)
		},
		Type:     stringList{},
		Encoders: listText(),
	}
}
