package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/codexchange/codexchange/host"
	"github.com/codexchange/codexchange/host/demo"
)

const demoHelp = `Usage: host demo [flags] [FILE]

Starts two nodes on 127.0.0.1, adds FILE to one as UnixFS, and fetches it on the
other: by the Codex block exchange and, beside it, by Bitswap. Before each run
the fetching node is emptied, and the order alternates. What arrived is compared
with FILE by SHA-256. Without FILE, pseudo-random data is moved.

The nodes live in a directory for temporary files ($TMPDIR), which takes twice
the size of FILE and is removed at the end.

Flags:

  --runs N      how often each exchange has its turn (default 3)
  --size SIZE   how much data to make if there is no FILE (default 64MiB)
  --chunk SIZE  size of the blocks that FILE is cut into, 256B to 2MiB
                (default 256KiB)
  --in-process  run the Codex block exchange in the nodes' process; otherwise
                each node has it as a plugin, in a process of its own
  --json        print the medians as one JSON object

The table shows medians over the runs of each exchange: the time from asking for
the file to having all of it stored, MB/s in units of 10^6 bytes of the file,
blocks received, blocks received more than once, and the CPU time of both nodes
with their plugins.

Exit status: 0 if what arrived was right in every run, 1 if it was not or a run
failed, 2 if the command line is wrong, 130 if interrupted.
`

// errUnverified is the failure of a demo that ran to its end and brought
// something else than the file.
var errUnverified = errors.New("the file that arrived differs from the one that was sent")

func (c *cli) demo(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	runs := flags.Int("runs", 3, "")
	dataSize, chunk := size(64<<20), size(host.DefaultChunk)
	flags.Var(&dataSize, "size", "")
	flags.Var(&chunk, "chunk", "")
	inProcess := flags.Bool("in-process", false, "")
	asJSON := flags.Bool("json", false, "")
	operands, err := c.parse(flags, demoHelp, args)
	if err != nil {
		return err
	}
	sizeGiven := false
	flags.Visit(func(f *flag.Flag) { sizeGiven = sizeGiven || f.Name == "size" })
	switch {
	case len(operands) > 1:
		return usageErrorf("%d files (%s), want at most one", len(operands), strings.Join(operands, ", "))
	case len(operands) == 1 && sizeGiven:
		return usageErrorf("both FILE and --size, want only one of them")
	case dataSize < 1:
		return usageErrorf("--size is %v, want at least 1 byte", &dataSize)
	case *runs < 1:
		return usageErrorf("--runs is %d, want at least 1", *runs)
	case chunk < host.MinChunk || chunk > host.MaxChunk:
		return usageErrorf("--chunk is %v, want %s to %s", &chunk, formatSize(host.MinChunk), formatSize(host.MaxChunk))
	}

	source := demo.Generated(int64(dataSize))
	if len(operands) == 1 {
		if source, err = demo.File(operands[0]); err != nil {
			return err
		}
	}
	config := demo.Config{
		Source:    source,
		Exchanges: host.Exchanges(),
		InProcess: *inProcess,
		Log:       slog.New(slog.NewTextHandler(c.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Runs:      *runs,
		Chunk:     int64(chunk),
		Progress:  newProgress(c.stderr),
		Inspect:   c.inspect,
	}
	result, err := config.Run(ctx)
	if err != nil {
		return err
	}
	rows := result.Medians(config.Exchanges)
	if *asJSON {
		err = json.NewEncoder(c.stdout).Encode(struct {
			Runs []demo.Run `json:"runs"`
		}{rows})
	} else {
		_, err = io.WriteString(c.stdout, report(result, rows, *runs))
	}
	if err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	if !result.Verified() {
		return errUnverified
	}
	return nil
}

// report is the table of medians, and what it says in words.
func report(result *demo.Result, rows []demo.Run, runs int) string {
	cells := [][]string{{"exchange", "where it runs", "time", "MB/s", "blocks", "duplicates", "CPU seconds"}}
	for _, r := range rows {
		where := "in process"
		if r.Plugin {
			where = "plugin"
		}
		cells = append(cells, []string{
			r.Exchange, where,
			fmt.Sprintf("%.2f s", r.Seconds),
			fmt.Sprintf("%.1f", r.MBPerS),
			fmt.Sprint(r.Blocks),
			fmt.Sprint(r.Duplicates),
			fmt.Sprintf("%.2f", r.CPUSeconds),
		})
	}
	var b strings.Builder
	b.WriteByte('\n')
	writeTable(&b, cells, 2)
	if runs > 1 {
		fmt.Fprintf(&b, "\nMedians of %d runs of each. ", runs)
	} else {
		b.WriteString("\nOne run of each. ")
	}
	b.WriteString(sentence(result, rows))
	b.WriteByte('\n')
	return b.String()
}

// sentence says in words how the first row compares to the others.
func sentence(result *demo.Result, rows []demo.Run) string {
	var b strings.Builder
	first := rows[0]
	fmt.Fprintf(&b, "%s moved %s in %.2f s", first.Exchange, formatSize(result.Size), first.Seconds)
	for _, other := range rows[1:] {
		if other.MBPerS > 0 {
			fmt.Fprintf(&b, ", %.2f times the throughput of %s", first.MBPerS/other.MBPerS, other.Exchange)
		}
	}
	if result.Verified() {
		b.WriteString("; every byte of every run was verified by SHA-256.")
		return b.String()
	}
	var wrong []string
	for _, r := range rows {
		if !r.Verified {
			wrong = append(wrong, r.Exchange)
		}
	}
	fmt.Fprintf(&b, "; but WHAT ARRIVED IS NOT WHAT WAS SENT by %s.", strings.Join(wrong, " and "))
	return b.String()
}

// writeTable aligns cells in columns: the first left ones to the left, the
// others, which are numbers, to the right.
func writeTable(w io.Writer, cells [][]string, left int) {
	width := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	for _, row := range cells {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			if i < left {
				fmt.Fprintf(&line, "%-*s", width[i], cell)
			} else {
				fmt.Fprintf(&line, "%*s", width[i], cell)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
