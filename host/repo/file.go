package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/codexchange/codexchange/exchange/errs"
)

// A ConfigFile reads and changes the config file of a repo that this process
// holds. Each method reads the file anew, so what a person edits meanwhile is not
// lost; a running node goes on with what it has. Its methods may be called from
// any goroutine.
//
// Keys are dotted paths, "Swarm.ConnMgr.LowWater". Keys that have a dot
// themselves cannot be named, only replaced with what they are part of.
type ConfigFile struct {
	dir  string
	lock *lock // nil if a Repo has it

	mu     sync.Mutex
	closed bool
	last   *Config // the last that was read or written, if all of it could be used
}

// OpenConfig opens the config file of the repo in dir without its stores, for
// commands that only change the configuration: also one that [Open] refuses. It
// holds the repo until Close.
func OpenConfig(dir string) (*ConfigFile, error) {
	lock, err := hold("open config of", dir)
	if err != nil {
		return nil, err
	}
	return &ConfigFile{dir: dir, lock: lock}, nil
}

// Close gives up the repo, if the file came from [OpenConfig]. It may be called
// more than once.
func (f *ConfigFile) Close() error {
	if f.lock == nil || !f.end() {
		return nil
	}
	if err := f.lock.release(); err != nil {
		return errs.E(errs.Storage, errs.Ours, "close config of", f.dir, err)
	}
	return nil
}

// end stops everything that comes. It reports whether this is the first call.
func (f *ConfigFile) end() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !f.closed
	f.closed = true
	return first
}

// Path is the path of the file.
func (f *ConfigFile) Path() string { return filepath.Join(f.dir, configName) }

// read returns what is in the file. The caller holds mu.
func (f *ConfigFile) read(op string) ([]byte, error) {
	if f.closed {
		return nil, errs.E(errs.Closed, errs.Caller, op, f.Path(), nil)
	}
	data, err := readFile(f.Path(), maxConfig)
	if err != nil {
		return nil, errs.E(errs.Storage, errs.Ours, op, f.Path(), err)
	}
	return data, nil
}

// Config is what the file says, for the caller to keep. Everything that is wrong
// with it is in one *ConfigError.
func (f *ConfigFile) Config() (*Config, error) {
	const op = "read config"
	f.mu.Lock()
	defer f.mu.Unlock()
	data, err := f.read(op)
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(data)
	if err != nil {
		return nil, errs.E(errs.Invalid, errs.Caller, op, f.Path(), err)
	}
	f.last = c
	return c.Clone(), nil
}

// Get returns the value of a key as it is in the file, without what is secret in
// it. A key that is not in the file is an error of kind errs.NotFound.
func (f *ConfigFile) Get(key string) (json.RawMessage, error) {
	op := "get config key"
	keys := strings.Split(key, ".")
	if isSecret(keys) {
		return nil, errs.E(errs.Invalid, errs.Caller, op, key, errors.New("it is secret and not shown"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	raw, err := f.scrubbed(op)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		ms, _ := members(raw)
		i := slices.IndexFunc(ms, func(m member) bool { return m.key == k })
		if i < 0 {
			return nil, errs.E(errs.NotFound, errs.Caller, op, key, errors.New("the config does not have it"))
		}
		raw = ms[i].value
	}
	return raw, nil
}

// Show returns the file without what is secret in it, laid out for people.
func (f *ConfigFile) Show() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw, err := f.scrubbed("show config")
	if err != nil {
		return nil, err
	}
	return indent(raw), nil
}

// scrubbed is the file without what is secret in it. The caller holds mu.
func (f *ConfigFile) scrubbed(op string) (json.RawMessage, error) {
	data, err := f.read(op)
	if err == nil {
		if serr := checkJSON(data); serr != nil {
			err = errs.E(errs.Invalid, errs.Caller, op, f.Path(), serr)
		}
	}
	if err != nil {
		return nil, err
	}
	raw := json.RawMessage(data)
	for _, s := range secrets {
		raw = without(raw, s)
	}
	return raw, nil
}

// Value is the JSON for a value from a command line: the text as a string, or as
// JSON (--json), or as true or false (--bool).
func Value(text string, asJSON, asBool bool) (json.RawMessage, error) {
	fail := func(err error) (json.RawMessage, error) {
		return nil, errs.E(errs.Invalid, errs.Caller, "read value", "", err)
	}
	switch {
	case asJSON && asBool:
		return fail(errors.New("got --json and --bool, want one"))
	case asBool && text != "true" && text != "false":
		return fail(fmt.Errorf("got %q, want true or false", clip(text)))
	case asJSON || asBool:
		if err := checkJSON([]byte(text)); err != nil {
			return fail(err)
		}
		return json.RawMessage(text), nil
	}
	return quote(text), nil
}

// Set changes the value of one key; null sets its default. The key must be one
// that is known, or in the file. The identity cannot be changed. What was wrong
// with the file before does not stop Set, so that it may be mended key by key.
func (f *ConfigFile) Set(key string, value json.RawMessage) error {
	const op = "set config key"
	fail := func(err error) error { return errs.E(errs.Invalid, errs.Caller, op, key, err) }
	keys := strings.Split(key, ".")
	if keys[0] == "Identity" {
		return fail(errors.New("the identity cannot be changed"))
	}
	if err := checkJSON(value); err != nil {
		return fail(fmt.Errorf("value: %w", err))
	}
	value = bytes.TrimSpace(value)
	err := f.change(op, "", true, func(old json.RawMessage) (json.RawMessage, error) {
		if !has(old, keys) {
			if err := known(keys); err != nil {
				return nil, fail(err)
			}
		}
		raw, err := with(old, "", keys, value)
		if err != nil {
			return nil, fail(err)
		}
		return raw, nil
	})
	var wrong *ConfigError
	if errors.As(err, &wrong) && wrong.Problems[0].Key == key && value[0] == '"' {
		err = errs.E(errs.Invalid, errs.Caller, op, "", fmt.Errorf("%w (lists, objects and numbers need --json, true and false need --bool)", wrong))
	}
	return err
}

// Replace makes data the content of the file. The identity stays, and so do
// secrets that data leaves out: what [ConfigFile.Show] returns may be edited and
// given back.
func (f *ConfigFile) Replace(data []byte) error {
	const op = "replace config"
	return f.change(op, f.Path(), false, func(old json.RawMessage) (json.RawMessage, error) {
		if err := checkJSON(data); err != nil {
			return nil, errs.E(errs.Invalid, errs.Caller, op, f.Path(), err)
		}
		raw := json.RawMessage(data)
		if ms, err := members(old); err == nil {
			for _, m := range ms {
				if m.key == "Identity" {
					if kept, err := with(raw, "", []string{m.key}, m.value); err == nil {
						raw = kept
					}
				}
			}
		}
		for _, s := range secrets {
			raw = keep(raw, old, s)
		}
		return raw, nil
	})
}

// Write makes c the content of the file.
func (f *ConfigFile) Write(c *Config) error {
	return f.change("write config", f.Path(), false, func(json.RawMessage) (json.RawMessage, error) {
		return c.Encode(), nil
	})
}

// change replaces the file by what edit makes of it. Unless lenient, nothing may
// be wrong with that; otherwise nothing more than before.
func (f *ConfigFile) change(op, subject string, lenient bool, edit func(old json.RawMessage) (json.RawMessage, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, err := f.read(op)
	if err != nil {
		return err
	}
	if err := checkJSON(old); err != nil {
		return errs.E(errs.Invalid, errs.Caller, op, f.Path(), err)
	}
	raw, err := edit(old)
	if err != nil {
		return err
	}
	c, wrong := parseConfig(raw)
	data := c.Encode()
	if len(wrong) > 0 {
		fresh := wrong
		if lenient {
			_, before := parseConfig(old)
			fresh = slices.DeleteFunc(slices.Clone(wrong), func(p Problem) bool { return slices.Contains(before, p) })
		}
		if err := fresh.err(); err != nil {
			return errs.E(errs.Invalid, errs.Caller, op, subject, err)
		}
		data = indent(raw)
	}
	if err := writeFile(f.Path(), data, 0o600); err != nil {
		return errs.E(errs.Storage, errs.Ours, op, subject, err)
	}
	if len(wrong) == 0 {
		f.last = c
	}
	return nil
}

// secrets are the keys that are not shown; "*" is any.
var secrets = [][]string{
	{"Identity", "PrivKey"},
	{"API", "Authorizations", "*", "AuthSecret"},
}

// isSecret reports whether a key is secret, or part of what is.
func isSecret(keys []string) bool {
	return slices.ContainsFunc(secrets, func(s []string) bool {
		return len(keys) >= len(s) && slices.EqualFunc(s, keys[:len(s)], matches)
	})
}

func matches(pattern, key string) bool { return pattern == "*" || pattern == key }

// without is JSON without the keys that match a pattern.
func without(raw json.RawMessage, pattern []string) json.RawMessage {
	ms, err := members(raw)
	if err != nil {
		return raw
	}
	var left []member
	for _, m := range ms {
		if matches(pattern[0], m.key) {
			if len(pattern) == 1 {
				continue
			}
			m.value = without(m.value, pattern[1:])
		}
		left = append(left, m)
	}
	return object(left)
}

// keep is JSON with the keys of old that match a pattern, where raw has what they
// were part of and not them.
func keep(raw, old json.RawMessage, pattern []string) json.RawMessage {
	ms, err := members(raw)
	before, oerr := members(old)
	if err != nil || oerr != nil {
		return raw
	}
	for _, o := range before {
		if !matches(pattern[0], o.key) {
			continue
		}
		i := slices.IndexFunc(ms, func(m member) bool { return m.key == o.key })
		switch {
		case len(pattern) == 1 && i < 0:
			ms = append(ms, o)
		case len(pattern) > 1 && i >= 0:
			ms[i].value = keep(ms[i].value, o.value, pattern[1:])
		}
	}
	return object(ms)
}

// has reports whether JSON has a key.
func has(raw json.RawMessage, keys []string) bool {
	for _, k := range keys {
		ms, _ := members(raw)
		i := slices.IndexFunc(ms, func(m member) bool { return m.key == k })
		if i < 0 {
			return false
		}
		raw = ms[i].value
	}
	return true
}

// with is JSON with a key set, and what it is part of made where it is missing.
func with(raw json.RawMessage, path string, keys []string, value json.RawMessage) (json.RawMessage, error) {
	if len(keys) == 0 {
		return value, nil
	}
	ms, err := members(raw)
	if err != nil && string(raw) != "null" {
		return nil, fmt.Errorf("%s is %s, want an object", path, found(raw))
	}
	i := slices.IndexFunc(ms, func(m member) bool { return m.key == keys[0] })
	if i < 0 {
		i, ms = len(ms), append(ms, member{keys[0], json.RawMessage("{}")})
	}
	if ms[i].value, err = with(ms[i].value, join(path, keys[0]), keys[1:], value); err != nil {
		return nil, err
	}
	return object(ms), nil
}

// known is an error if a Config cannot have a key.
func known(keys []string) error {
	t, path := reflect.TypeFor[Config](), ""
	for _, key := range keys {
		switch {
		case t == rawType:
			return nil
		case t.Kind() == reflect.Map:
			if key == "" {
				return errors.New("want a name after the last dot")
			}
			t = t.Elem()
		case t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[coder]()):
			i, near := field(t, key)
			if near != "" {
				return fmt.Errorf("there is no such key, want %s", join(path, near))
			}
			if i < 0 {
				return fmt.Errorf("there is no key %s", clip(join(path, key)))
			}
			t = t.Field(i).Type
		default:
			return fmt.Errorf("%s has no keys", path)
		}
		path = join(path, key)
	}
	return nil
}
