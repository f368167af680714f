package integration

import (
	"os"
	"strings"
	"testing"
)

// The README shows the template plugin as it is, and that is short.
func TestReadmeShowsTemplate(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	must(t, "read", err)
	template, err := os.ReadFile("../plugin/examples/gateway/main.go")
	must(t, "read", err)
	_, code, ok := strings.Cut(string(template), "\nfunc main()")
	if code = "func main()" + strings.TrimRight(code, "\n"); !ok || !strings.Contains(string(readme), "```go\n"+code+"\n```") {
		t.Errorf("the README does not show this, the template plugin:\n%s", code)
	}
	if lines := strings.Count(string(template), "\n"); lines >= 50 {
		t.Errorf("the template plugin has %d lines, want fewer than 50", lines)
	}
}
