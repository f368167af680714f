package subprocess

import (
	"os"
	"slices"
	"strings"
)

// passedOn are the variables of the host's environment that a plugin finds in
// its own. Nothing here is a secret of the node.
var passedOn = []string{
	"PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR",
	"GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "GOCOVERDIR", "GORACE",
	"GOLOG_LOG_LEVEL", "CODEXDEBUG",
}

// passedOnPrefix is of the variables of OpenTelemetry, which are passed on too:
// a plugin that traces sends to the same collector as its host. Headers may hold
// a password for that and are left out; a plugin that needs them has them in its
// configuration.
const passedOnPrefix = "OTEL_"

// passOn are the variables of host that a plugin finds.
func passOn(host []string) []string {
	var env []string
	for _, kv := range host {
		key, _, _ := strings.Cut(kv, "=")
		if slices.Contains(passedOn, key) || strings.HasPrefix(key, passedOnPrefix) && !strings.HasSuffix(key, "_HEADERS") {
			env = append(env, kv)
		}
	}
	return env
}

// environment is that of a plugin: what is passed on, what the configuration
// adds, and what the handshake needs, which nobody can override.
func (c *Config) environment(handshake []string) []string {
	return slices.Concat(passOn(os.Environ()), c.Env, handshake, []string{
		NameKey + "=" + c.Name,
		socketDirKey + "=" + c.Dir,
	})
}
