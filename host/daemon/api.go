package daemon

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"
	"strings"

	cmds "github.com/ipfs/go-ipfs-cmds"
	cmdshttp "github.com/ipfs/go-ipfs-cmds/http"

	"github.com/codexchange/codexchange/host/repo"
	"github.com/codexchange/codexchange/plugin"
)

// apiPath is where the commands are.
const apiPath = "/api/v0"

// api is what an API server answers.
func (d *daemon) api(s *server, c *repo.Config, root *cmds.Command, env cmds.Environment, m *metrics) http.Handler {
	headers := make(http.Header)
	for name, values := range c.API.HTTPHeaders {
		headers[http.CanonicalHeaderKey(name)] = values
	}
	allowed := origins(headers, s.port())

	mux := http.NewServeMux()
	mux.Handle(apiPath+"/", traced(m.count("api", rpc(headers, allowed, root, env)), "rpc", command))
	mux.Handle("GET /debug/metrics/prometheus", m.handler(d.log))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("POST /debug/pprof-mutex/", d.setRate("fraction", func(n int) { runtime.SetMutexProfileFraction(n) }))
	mux.HandleFunc("POST /debug/pprof-block/", d.setRate("rate", runtime.SetBlockProfileRate))

	outer := http.NewServeMux()
	outer.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	outer.HandleFunc("GET /readyz", d.ready)
	outer.Handle("/", authorize(credentials(c.API.Authorizations), mux))
	return newDoorman(s, allowed).guard(outer)
}

// rpc is what answers under apiPath: POST only, with go-ipfs-cmds' rules for
// Origin, Referer and User-Agent.
func rpc(headers http.Header, origins []string, root *cmds.Command, env cmds.Environment) http.Handler {
	c := cmdshttp.NewServerConfig()
	c.APIPath = apiPath
	c.SetAllowedOrigins(origins...)
	c.AddAllowedHeaders("Origin", "Accept", "Content-Type", "X-Requested-With", "Authorization")
	c.SetAllowedMethods(http.MethodPost)
	if methods := headers.Values(cmdshttp.ACAMethods); methods != nil {
		c.SetAllowedMethods(methods...)
	}
	c.SetAllowCredentials(strings.EqualFold(headers.Get(cmdshttp.ACACredentials), "true"))
	c.Headers = headers.Clone()
	for _, name := range []string{cmdshttp.ACAOrigin, cmdshttp.ACAMethods, cmdshttp.ACACredentials} {
		delete(c.Headers, name)
	}
	c.Headers["Server"] = []string{"codexchange/" + version()}
	return cmdshttp.NewHandler(env, root, c)
}

// setRate answers requests to change how much is profiled.
func (d *daemon) setRate(name string, set func(int)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text := r.URL.Query().Get(name)
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			http.Error(w, fmt.Sprintf("400 - %s is %.20q, want a number, 0 to switch it off", name, text), http.StatusBadRequest)
			return
		}
		d.log.Info("profiling changed", name, n)
		set(n)
	}
}

// ready says whether the node does all that it was configured to do. What is not
// ready still serves what is stored.
func (d *daemon) ready(w http.ResponseWriter, _ *http.Request) {
	var missing []string
	if !d.serving.Load() {
		missing = append(missing, "the daemon is starting or stopping")
	}
	for _, x := range d.node.Exchanges() {
		if p := x.Plugin(); p != nil {
			if s := p.Status(); s.State != plugin.Running {
				missing = append(missing, fmt.Sprintf("the plugin %s is %v: %v", x.Name, s.State, s.LastErr))
			}
		}
	}
	if len(missing) > 0 {
		http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
