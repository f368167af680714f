package commands

import (
	"io"
	"os"

	"github.com/cheggaaa/pb/v3"
	"github.com/dustin/go-humanize"
	cmds "github.com/ipfs/go-ipfs-cmds"
	"golang.org/x/term"
)

const progressOption = "progress"

// progressFlag is the option of commands that report how far they are.
func progressFlag() cmds.Option {
	return cmds.BoolOption(progressOption, "p", "Show how far it is. Default: if stderr is a terminal.")
}

// defaultProgress is a PreRun that asks for progress if somebody can see it.
func defaultProgress(req *cmds.Request, environment cmds.Environment) error {
	if _, given := req.Options[progressOption]; !given {
		e, ok := environment.(*Env)
		req.Options[progressOption] = ok && isTerminal(e.stderr)
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	if p, ok := w.(paper); ok {
		w = p.Writer
	}
	f, ok := w.(*os.File)
	return ok && f != nil && term.IsTerminal(int(f.Fd()))
}

const (
	// wholeBar is for a known total.
	wholeBar pb.ProgressBarTemplate = `{{counters .}} {{bar .}} {{percent .}} {{speed . "%s/s" " "}} {{rtime . "%s left" "%s" ""}}`
	// openBar is for an unknown one.
	openBar pb.ProgressBarTemplate = `{{counters .}} {{speed . "%s/s" " "}} {{etime .}}`
)

// newBar shows bytes of a total, which is 0 if it is not known. If quiet, nothing is
// shown.
func newBar(w io.Writer, total int64, quiet bool) *pb.ProgressBar {
	if quiet {
		w = io.Discard
	}
	t := wholeBar
	if total == 0 {
		t = openBar
	}
	bar := t.New(0).SetTotal(total).Set(pb.Bytes, true)
	if isTerminal(w) {
		bar.Set(pb.Terminal, true) // SetWriter looks at files alone
	}
	return bar.SetWriter(w)
}

// clearLine removes a bar that has been drawn on a terminal.
const clearLine = "\r\033[2K"

// humanBytes is a size for people, as ipfs prints it.
func humanBytes(n uint64) string { return humanize.Bytes(n) }
