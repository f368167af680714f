package main

import (
	"fmt"
	"io"
	"os"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/codexchange/codexchange/host/demo"
)

// newProgress shows stages on w: as bars on a terminal, elsewhere as one line
// for each stage that has ended.
func newProgress(w io.Writer) demo.Progress {
	if f, ok := w.(*os.File); ok {
		// An error means that it is no terminal, width 0 that nobody knows
		// how wide it is.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return &bars{w: f}
		}
	}
	return &lines{w: w}
}

// lines is a demo.Progress for logs.
type lines struct {
	w     io.Writer
	stage string
	size  int64
}

func (l *lines) Begin(stage string, size int64) { l.stage, l.size = stage, size }
func (l *lines) Moved(int64)                    {}
func (l *lines) End(summary string) {
	fmt.Fprintf(l.w, "%s: %s, %s\n", l.stage, formatSize(l.size), summary)
}

// bars is a demo.Progress for a terminal. A bar that has ended stays there, with
// the summary in place of the counters.
type bars struct {
	w   io.Writer
	bar *pb.ProgressBar
}

const barTemplate pb.ProgressBarTemplate = `{{string . "stage"}} {{bar . "[" "=" ">" " " "]"}} {{with string . "summary"}}{{.}}{{else}}{{counters .}}{{end}}`

func (b *bars) Begin(stage string, size int64) {
	b.bar = barTemplate.New(0).SetTotal(size).SetWriter(b.w).
		Set(pb.Bytes, true).Set("stage", fmt.Sprintf("%-22s", stage)).Start()
}

func (b *bars) Moved(bytes int64) { b.bar.SetCurrent(bytes) }

func (b *bars) End(summary string) { b.bar.Set("summary", summary).Finish() }
