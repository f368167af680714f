package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestBehaviours holds docs/behaviours.md to the code: it has a row for each number,
// each row names a test, and each test it names exists.
func TestBehaviours(t *testing.T) {
	doc, err := os.ReadFile("../docs/behaviours.md")
	if err != nil {
		t.Fatal(err)
	}
	exists := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range declared.FindAllSubmatch(src, -1) {
			exists[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`")
	for _, m := range named.FindAllSubmatch(doc, -1) {
		if name := string(m[1]); !exists[name] {
			t.Errorf("docs/behaviours.md names %s, which there is not", name)
		}
	}
	row := 0
	for _, line := range strings.Split(string(doc), "\n") {
		if !strings.HasPrefix(line, "| B") {
			continue
		}
		row++
		if want := fmt.Sprintf("| B%d |", row); !strings.HasPrefix(line, want) {
			t.Fatalf("row %d begins with %.8s, want %s", row, line, want)
		}
		if !named.MatchString(line) {
			t.Errorf("B%d names no test", row)
		}
	}
	if row != 39 {
		t.Errorf("docs/behaviours.md has %d rows, want 39", row)
	}
}
