package daemon

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	cmdshttp "github.com/ipfs/go-ipfs-cmds/http"

	"github.com/codexchange/codexchange/host/repo"
)

// origins are those whose pages may use an API: those of the configuration, and
// those of this machine at the API's own port.
func origins(h http.Header, port int) []string {
	list := slices.Clone(h.Values(cmdshttp.ACAOrigin))
	for i, o := range list {
		list[i] = strings.ReplaceAll(o, "<port>", strconv.Itoa(port))
	}
	for _, name := range []string{"127.0.0.1", "[::1]", "localhost"} {
		for _, scheme := range []string{"http", "https"} {
			list = append(list, fmt.Sprintf("%s://%s:%d", scheme, name, port))
		}
	}
	return list
}

// A doorman turns away requests that a web page may have made behind the back of
// its reader.
type doorman struct {
	origins []string
	hosts   []string // names that the API answers to, beside addresses
	anyName bool     // answers to all names
	anyIP   bool     // answers to all addresses: it listens on all of them
}

// newDoorman is for a server that listens on addr, with what the configuration
// allows in headers.
func newDoorman(s *server, allowed []string) *doorman {
	d := &doorman{origins: allowed, hosts: []string{"localhost"}, anyIP: s.anyInterface(), anyName: s.unix()}
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok {
		d.hosts = append(d.hosts, a.AddrPort().Addr().Unmap().WithZone("").String())
	}
	for _, o := range allowed {
		if o == "*" {
			d.anyName = true // every page may come, so a name proves nothing
		} else if u, err := url.Parse(o); err == nil && u.Hostname() != "" {
			d.hosts = append(d.hosts, strings.ToLower(u.Hostname()))
		}
	}
	return d
}

// answersTo reports whether a Host header names this server. A page whose name was
// made to point here after it was loaded (DNS rebinding) is of the same origin as
// the API in the eyes of its browser, but for the name in this header.
func (d *doorman) answersTo(hostport string) bool {
	if d.anyName {
		return true
	}
	name := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.ToLower(strings.Trim(name, "[]")), ".")
	if ip, err := netip.ParseAddr(name); err == nil {
		// An address cannot be made to point elsewhere.
		return d.anyIP || ip.IsLoopback() || slices.Contains(d.hosts, ip.WithZone("").String())
	}
	return slices.Contains(d.hosts, name)
}

// allows reports whether a page of this origin may use the API; none is a client
// that is no browser.
func (d *doorman) allows(origin string) bool {
	return origin == "" || slices.Contains(d.origins, "*") || slices.Contains(d.origins, origin)
}

// guard lets only those requests through that the doorman accepts.
func (d *doorman) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !d.answersTo(r.Host):
			http.Error(w, fmt.Sprintf("403 - this API does not answer to the host %.100q: if it should, add its origin to API.HTTPHeaders.%s", r.Host, cmdshttp.ACAOrigin), http.StatusForbidden)
		case !d.allows(r.Header.Get("Origin")):
			http.Error(w, fmt.Sprintf("403 - this API does not serve pages of the origin %.100q: if it should, add it to API.HTTPHeaders.%s", r.Header.Get("Origin"), cmdshttp.ACAOrigin), http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// A credential is a secret that opens parts of the API.
type credential struct {
	sum   [sha256.Size]byte // of the Authorization header
	paths []string          // what it opens, and all below
}

// credentials are the authorizations of a configuration that was checked.
func credentials(c map[string]repo.Authorization) []credential {
	var list []credential
	for _, a := range c {
		kind, secret, typed := strings.Cut(a.AuthSecret, ":")
		header := ""
		switch {
		case !typed:
			header = "Bearer " + a.AuthSecret
		case kind == "bearer":
			header = "Bearer " + secret
		case kind == "basic" && strings.Contains(secret, ":"):
			header = "Basic " + base64.StdEncoding.EncodeToString([]byte(secret))
		case kind == "basic":
			header = "Basic " + secret // encoded already
		default:
			continue
		}
		list = append(list, credential{sha256.Sum256([]byte(header)), a.AllowedPaths})
	}
	return list
}

// opens reports whether the credential is for a path.
func (c credential) opens(p string) bool {
	if p == apiPath+"/version" {
		return true
	}
	return slices.ContainsFunc(c.paths, func(allowed string) bool {
		allowed = strings.TrimSuffix(allowed, "/")
		return p == allowed || strings.HasPrefix(p, allowed+"/")
	})
}

// authorize lets only those through who show a credential for what they ask. A
// question what may be asked (OPTIONS) needs none, and cannot carry any.
func authorize(list []credential, next http.Handler) http.Handler {
	if len(list) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := sha256.Sum256([]byte(r.Header.Get("Authorization")))
		allowed := r.Method == http.MethodOptions
		for _, c := range list { // all of them, so that time says nothing
			if subtle.ConstantTimeCompare(shown[:], c.sum[:]) == 1 {
				// Both as it is and as somebody behind might understand it.
				allowed = allowed || c.opens(r.URL.Path) && c.opens(path.Clean(r.URL.Path))
			}
		}
		if !allowed {
			http.Error(w, "403 - access denied: show an authorization that API.Authorizations has for this path", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
