package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// summarize writes a table in Markdown for each suite in the files, or in in if
// there are none, with targets if they are to be shown.
func summarize(files []string, targets bool, in io.Reader, out io.Writer) error {
	var all []record
	read := func(name string, r io.Reader) error {
		for d := json.NewDecoder(r); ; {
			var r record
			if err := d.Decode(&r); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return fmt.Errorf("read figures from %s: record %d: %w", name, len(all)+1, err)
			}
			all = append(all, r)
		}
	}
	if len(files) == 0 {
		if err := read("standard input", in); err != nil {
			return err
		}
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = read(name, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	shown := columns
	if targets {
		shown = slices.Concat(columns, targetColumns)
	}
	var tables []*table
	for _, s := range suites {
		t, err := newTable(s, all)
		if err != nil {
			return err
		}
		tables = append(tables, t)
		if text := t.markdown(shown); text != "" {
			if _, err := fmt.Fprintf(out, "### %s: %s\n\n%s\n", s.name, s.about, text); err != nil {
				return err
			}
		}
	}
	if !targets {
		return nil
	}
	return conclude(tables, out)
}

// A row is all runs of one case by one exchange.
type row struct {
	name, exchange string
	runs           []record // those that ended well
	failed         []string
}

// A table is the records of one suite.
type table struct {
	suite   suite
	mib     int    // of all records; 0 if they do not say
	rows    []*row // as they came first
	skipped []string
	byRun   map[runKey]record
}

// A runKey finds what a run is compared with: all in the same round.
type runKey struct {
	run, name, exchange string
	round               int
}

// newTable takes what belongs to a suite. Figures of data sets of different sizes
// do not belong into one table.
func newTable(s suite, all []record) (*table, error) {
	t := &table{suite: s, byRun: make(map[runKey]record)}
	rows := make(map[[2]string]*row)
	for _, r := range all {
		if r.Suite != s.name {
			continue
		}
		if t.mib == 0 {
			t.mib = r.MiB
		} else if r.MiB != t.mib {
			return nil, fmt.Errorf("summarize suite %s: some figures are of -mib %d, others of %d: want those of one size", s.name, t.mib, r.MiB)
		}
		if r.Skipped != "" {
			reason := strings.TrimPrefix(strings.TrimSuffix(r.Case+"/"+r.Exchange, "/")+": "+r.Skipped, ": ")
			if !slices.Contains(t.skipped, reason) {
				t.skipped = append(t.skipped, reason)
			}
			continue
		}
		key := [2]string{r.Case, r.Exchange}
		if rows[key] == nil {
			rows[key] = &row{name: r.Case, exchange: r.Exchange}
			t.rows = append(t.rows, rows[key])
		}
		if r.Failed != "" {
			rows[key].failed = append(rows[key].failed, r.Failed)
			continue
		}
		rows[key].runs = append(rows[key].runs, r)
		t.byRun[runKey{r.Run, r.Case, r.Exchange, r.Round}] = r
	}
	return t, nil
}

// speed is what is compared: throughput, or how many blocks come one after the
// other in a second.
func speed(r record) float64 {
	if v, ok := r.Figures["MBps"]; ok {
		return v
	}
	if v, ok := r.Figures["p50_us"]; ok {
		return 1e6 / v
	}
	return math.NaN()
}

// row is all runs of a case; of none if it has not run.
func (t *table) row(name, exchange string) *row {
	for _, w := range t.rows {
		if w.name == name && w.exchange == exchange {
			return w
		}
	}
	return &row{name: name, exchange: exchange}
}

// ratios are the speeds of a row as parts of those of another case or exchange in
// the same round.
func (t *table) ratios(w *row, name, exchange string) []float64 {
	return t.parts(w, name, exchange, speed)
}

// parts is ratios of anything that runs yield; what is not known is left out.
func (t *table) parts(w *row, name, exchange string, of func(record) float64) (list []float64) {
	if name == w.name && exchange == w.exchange {
		return nil
	}
	for _, r := range w.runs {
		if other, ok := t.byRun[runKey{r.Run, name, exchange, r.Round}]; ok {
			if v := of(r) / of(other); !math.IsNaN(v) {
				list = append(list, v)
			}
		}
	}
	return list
}

// anchored are the speeds of a row as parts of what its suite compares with.
func (t *table) anchored(w *row) []float64 {
	if t.suite.anchor == nil {
		return nil
	}
	name, bare := t.suite.anchor(w.name)
	if bare {
		return t.ratios(w, name, "")
	}
	return t.ratios(w, name, w.exchange)
}

func (w *row) figure(name string) (list []float64) {
	for _, r := range w.runs {
		if v, ok := r.Figures[name]; ok {
			list = append(list, v)
		}
	}
	return list
}

// A column is one column of all tables; it is left out where it has nothing.
type column struct {
	title string
	cell  func(*table, *row) string
}

func figureColumn(title, name string) column {
	return column{title, func(_ *table, w *row) string { return middle(w.figure(name)) }}
}

// someColumn says nothing of figures that are zero.
func someColumn(title, name string) column {
	return column{title, func(_ *table, w *row) string {
		if median(w.figure(name)) == 0 {
			return ""
		}
		return middle(w.figure(name))
	}}
}

func spreadColumn(title, name string) column {
	return column{title, func(_ *table, w *row) string { return spread(w.figure(name)) }}
}

func ratioColumn(exchange string) column {
	return column{"÷ " + exchange, func(t *table, w *row) string {
		if w.exchange == "" {
			return ""
		}
		return spread(t.ratios(w, w.name, exchange))
	}}
}

// placeColumn is what it costs to run in a process of its own.
var placeColumn = column{"÷ " + inProcess, func(t *table, w *row) string {
	if w.exchange != asPlugin {
		return ""
	}
	return spread(t.ratios(w, w.name, inProcess))
}}

const anchorTitle = "÷ anchor" // stands for the suite's own

var columns = []column{
	{"case", func(_ *table, w *row) string { return w.name }},
	{"exchange", func(_ *table, w *row) string { return w.exchange }},
	{"runs", func(_ *table, w *row) string {
		if w.failed == nil {
			return fmt.Sprint(len(w.runs))
		}
		return fmt.Sprintf("%d of %d", len(w.runs), len(w.runs)+len(w.failed))
	}},
	spreadColumn("MB/s", "MBps"),
	spreadColumn("p50 µs", "p50_us"),
	spreadColumn("p99 µs", "p99_us"),
	ratioColumn("bitswap"),
	ratioColumn("floor"),
	ratioColumn(kubo),
	placeColumn,
	{anchorTitle, func(t *table, w *row) string { return middle(t.anchored(w)) }},
	figureColumn("CPU s/GB", "cpu_s_per_GB"),
	figureColumn("RSS seeder MiB", "rss_seeder_mib"),
	spreadColumn("RSS leecher MiB", "rss_leecher_mib"),
	figureColumn("sent by seeders", "sent_by_seeders"),
	someColumn("sent by leechers", "sent_by_leechers"),
	someColumn("duplicates", "duplicates"),
	figureColumn("time ÷ bound", "time_over_bound"),
	spreadColumn("RSS node MiB", "rss_node_mib"),
	spreadColumn("cores of node", "cores_node"),
	figureColumn("cores of others", "cores_others"),
}

// markdown is "" for a table with nothing in it.
func (t *table) markdown(columns []column) string {
	var out strings.Builder
	var titles []string
	cells := make([][]string, len(t.rows))
	for _, c := range columns {
		var texts []string
		for _, w := range t.rows {
			texts = append(texts, c.cell(t, w))
		}
		if strings.Join(texts, "") == "" {
			continue
		}
		titles = append(titles, strings.Replace(c.title, anchorTitle, "÷ "+t.suite.anchored, 1))
		for i, s := range texts {
			cells[i] = append(cells[i], s)
		}
	}
	if len(cells) > 0 {
		line := func(cells []string) { fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | ")) }
		line(titles)
		line(strings.Split(strings.Repeat("---,", len(titles)-1)+"---", ","))
		for _, c := range cells {
			line(c)
		}
	}
	for _, reason := range t.skipped {
		fmt.Fprintf(&out, "\nSkipped: %s\n", reason)
	}
	for _, w := range t.rows {
		for _, reason := range w.failed {
			fmt.Fprintf(&out, "\n%s %s failed: %s\n", w.name, w.exchange, reason)
		}
	}
	return out.String()
}

// middle is the median, "" for no values.
func middle(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	return short(median(values))
}

// spread is the median, with the smallest and the largest if there are several.
func spread(values []float64) string {
	if len(values) < 2 {
		return middle(values)
	}
	return fmt.Sprintf("%s (%s–%s)", middle(values), short(quantile(values, 0)), short(quantile(values, 1)))
}

// short shows three digits or so.
func short(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
