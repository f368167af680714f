package logging

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	golog "github.com/ipfs/go-log/v2"

	"github.com/codexchange/codexchange/exchange/errs"
)

// Errors are told by their text wherever they stand, everything else is as go-log has
// it, and the subsystem can be found.
func TestHandler(t *testing.T) {
	if err := golog.SetLogLevel("logging-test", "info"); err != nil {
		t.Fatal(err)
	}
	lines := golog.NewPipeReader(golog.PipeFormat(golog.JSONOutput), golog.PipeLevel(golog.LevelInfo))
	defer lines.Close()
	log := slog.New(Handler()).With(Subsystem, "logging-test")
	go log.With("with", errors.New("one")).Info("message",
		"err", fmt.Errorf("two: %w", errs.E(errs.Closed, errs.Ours, "open", "it", nil)),
		slog.Group("group", "inner", errors.New("three"), "n", 3), "none", error(nil), "text", "four")
	line, err := bufio.NewReader(lines).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"logger":"logging-test"`, `"msg":"message"`, `"with":"one"`, `"err":"two: open it: `, `"group":{"inner":"three","n":3}`, `"none":null`, `"text":"four"`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("got %swant %s in it", line, want)
		}
	}
	if list := golog.GetSubsystems(); !slices.Contains(list, "logging-test") {
		t.Errorf("subsystems are %q, want logging-test among them", list)
	}
}
