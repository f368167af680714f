package commands

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	cmds "github.com/ipfs/go-ipfs-cmds"
)

func completionCommand() *cmds.Command {
	shell := func(name, how string, write func(io.Writer, *cmds.Command)) *cmds.Command {
		return &cmds.Command{
			Helptext: cmds.HelpText{Tagline: "Print completion for " + name + ".", ShortDescription: how},
			NoRemote: true,
			Run: func(req *cmds.Request, re cmds.ResponseEmitter, _ cmds.Environment) error {
				var b strings.Builder
				write(&b, req.Root)
				re.SetEncodingType(cmds.OctetStream)
				return re.Emit(strings.NewReader(b.String()))
			},
		}
	}
	return &cmds.Command{
		Helptext: cmds.HelpText{Tagline: "Completion for bash, zsh and fish.", ShortDescription: "Prints a script that completes commands, their subcommands and options in a shell."},
		NoRemote: true,
		Subcommands: map[string]*cmds.Command{
			"bash": shell("bash", "Put this into ~/.bashrc:\n\n  source <(host completion bash)\n", bashCompletion),
			"zsh":  shell("zsh", "Put this into ~/.zshrc:\n\n  source <(host completion zsh)\n", zshCompletion),
			"fish": shell("fish", "Run this once:\n\n  host completion fish > ~/.config/fish/completions/host.fish\n", fishCompletion),
		},
	}
}

// eachCommand visits all commands, with their paths, in order.
func eachCommand(c *cmds.Command, path []string, visit func(path []string, c *cmds.Command)) {
	visit(path, c)
	for _, name := range slices.Sorted(maps.Keys(c.Subcommands)) {
		eachCommand(c.Subcommands[name], append(slices.Clip(path), name), visit)
	}
}

// flags are the options of a command as they are typed.
func flags(c *cmds.Command) (list []string) {
	for _, o := range c.Options {
		for _, name := range o.Names() {
			if len(name) == 1 {
				list = append(list, "-"+name)
			} else {
				list = append(list, "--"+name)
			}
		}
	}
	slices.Sort(list)
	return list
}

// bashCompletion finds the command that is being typed by its words so far, and offers
// what may follow.
func bashCompletion(w io.Writer, root *cmds.Command) {
	io.WriteString(w, `_host_words() {
  case "$1" in
`)
	eachCommand(root, nil, func(path []string, c *cmds.Command) {
		fmt.Fprintf(w, "    %q) commands=%q; options=%q ;;\n",
			strings.Join(path, " "), strings.Join(slices.Sorted(maps.Keys(c.Subcommands)), " "), strings.Join(flags(c), " "))
	})
	io.WriteString(w, `    *) return 1 ;;
  esac
}

_host() {
  local commands options path="" word="${COMP_WORDS[COMP_CWORD]}" i
  _host_words ""
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${COMP_WORDS[i]}" in
      -*) ;;
      *)
        if [[ " $commands " == *" ${COMP_WORDS[i]} "* ]]; then
          path="${path:+$path }${COMP_WORDS[i]}"
          _host_words "$path"
        fi
        ;;
    esac
  done
  COMPREPLY=()
  if [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  elif [[ -n "$commands" ]]; then
    COMPREPLY=($(compgen -W "$commands" -- "$word"))
  fi
}
complete -o default -F _host host
`)
}

func zshCompletion(w io.Writer, root *cmds.Command) {
	io.WriteString(w, "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n")
	bashCompletion(w, root)
}

func fishCompletion(w io.Writer, root *cmds.Command) {
	io.WriteString(w, `function __host_at
    set -l words
    for w in (commandline -poc)[2..]
        string match -q -- '-*' $w; or set -a words $w
    end
    test "$words[1..(count $argv)]" = "$argv"
    and test (count $words) -ge (count $argv)
end

function __host_exactly
    set -l words
    for w in (commandline -poc)[2..]
        string match -q -- '-*' $w; or set -a words $w
    end
    test "$words" = "$argv"
end

`)
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", " ")
	eachCommand(root, nil, func(path []string, c *cmds.Command) {
		at := strings.Join(path, " ")
		for _, name := range slices.Sorted(maps.Keys(c.Subcommands)) {
			fmt.Fprintf(w, "complete -c host -f -n '__host_exactly %s' -a %s -d '%s'\n", at, name, quote.Replace(c.Subcommands[name].Helptext.Tagline))
		}
		for _, o := range c.Options {
			line := fmt.Sprintf("complete -c host -n '__host_at %s'", at)
			if o.Type() != cmds.Bool {
				line += " -r"
			}
			for _, name := range o.Names() {
				if len(name) == 1 {
					line += " -s " + name
				} else {
					line += " -l " + name
				}
			}
			fmt.Fprintf(w, "%s -d '%s'\n", line, quote.Replace(o.Description()))
		}
	})
}
