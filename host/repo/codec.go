package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Problem is one value of a configuration that cannot be used.
type Problem struct {
	Key  string // dotted path: "Swarm.ConnMgr.LowWater"
	Text string // what was found, and what is wanted
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Text
	}
	return p.Key + ": " + p.Text
}

// A ConfigError has everything that is wrong with a configuration, never nothing.
type ConfigError struct{ Problems []Problem }

func (e *ConfigError) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d values cannot be used:", len(e.Problems))
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n\t%s", p)
	}
	return b.String()
}

// problems collects what is wrong.
type problems []Problem

// add notes what is wrong with the value at a path, unless something is known to
// be wrong with it or with what it is part of.
func (p *problems) add(path, format string, args ...any) {
	if !p.at(path) {
		*p = append(*p, Problem{path, fmt.Sprintf(format, args...)})
	}
}

// at reports whether a path, or something above it, has a problem.
func (p *problems) at(path string) bool {
	return slices.ContainsFunc(*p, func(q Problem) bool { return covers(q.Key, path) })
}

// covers reports whether path is key or below it.
func covers(key, path string) bool {
	rest, ok := strings.CutPrefix(path, key)
	return ok && (rest == "" || key == "" || rest[0] == '.' || rest[0] == '[')
}

func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return &ConfigError{p}
}

// A coder is a type with a JSON form of its own.
type coder interface {
	decode(p *problems, path string, raw json.RawMessage)
}

// An encoder is a type with a JSON form of its own; nil leaves its key out.
type encoder interface {
	encode() json.RawMessage
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	rawType      = reflect.TypeFor[json.RawMessage]()
	unknownType  = reflect.TypeFor[Unknown]()
)

// decode sets v, which is zero, to valid JSON. What does not fit is noted and
// leaves v, or the part of it, zero. It reports whether all of it fitted.
func (p *problems) decode(path string, raw json.RawMessage, v reflect.Value) bool {
	before := len(*p)
	raw = bytes.TrimSpace(raw)
	if c, ok := v.Addr().Interface().(coder); ok {
		c.decode(p, path, raw)
		return len(*p) == before
	}
	if string(raw) == "null" {
		return true
	}
	want := func(what string) { p.add(path, "found %s, want %s", p.found(path, raw), what) }
	switch v.Type() {
	case rawType:
		v.SetBytes(bytes.Clone(raw))
		return true
	case durationType:
		var text string
		d, err := time.Duration(0), json.Unmarshal(raw, &text)
		if err == nil {
			d, err = time.ParseDuration(text)
		}
		if err != nil {
			want(`a duration such as "90s" or "1h30m"`)
		}
		v.SetInt(int64(d))
		return err == nil
	}
	switch v.Kind() {
	case reflect.Struct:
		ms, err := members(raw)
		if err != nil {
			want("an object")
			break
		}
		p.decodeStruct(path, ms, v)
	case reflect.Map:
		ms, err := members(raw)
		if err != nil {
			want("an object")
			break
		}
		v.Set(reflect.MakeMap(v.Type()))
		for _, m := range p.once(path, ms) {
			e := reflect.New(v.Type().Elem()).Elem()
			p.decode(join(path, m.key), m.value, e)
			v.SetMapIndex(reflect.ValueOf(m.key), e)
		}
	case reflect.Slice:
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			want("a list")
			break
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
		for i, e := range list {
			p.decode(path+"["+strconv.Itoa(i)+"]", e, v.Index(i))
		}
	case reflect.String:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			want("a string")
		}
	case reflect.Bool:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			want("true or false")
		}
	case reflect.Int64:
		if json.Unmarshal(raw, v.Addr().Interface()) != nil {
			want("a whole number")
		}
	default:
		panic("config has a " + v.Type().String())
	}
	return len(*p) == before
}

func (p *problems) decodeStruct(path string, ms []member, v reflect.Value) {
	var unknown []member
	for _, m := range p.once(path, ms) {
		i, near := field(v.Type(), m.key)
		switch {
		case i >= 0:
			p.decode(join(path, m.key), m.value, v.Field(i))
		case near != "":
			p.add(join(path, m.key), "found this key, want it spelt %s", join(path, near))
		default:
			unknown = append(unknown, m)
		}
	}
	v.FieldByName("Unknown").Set(reflect.ValueOf(Unknown{unknown}))
}

// field is the number of the field that a key names, -1 if none does. If one does
// but for its case, near is its name.
func field(t reflect.Type, key string) (i int, near string) {
	for i := range t.NumField() {
		f := t.Field(i)
		switch {
		case f.Type == unknownType:
		case f.Name == key:
			return i, ""
		case strings.EqualFold(f.Name, key):
			near = f.Name
		}
	}
	return -1, near
}

// once is the members without those whose key came before, which are noted.
func (p *problems) once(path string, ms []member) []member {
	seen := make(map[string]bool, len(ms))
	return slices.DeleteFunc(ms, func(m member) bool {
		again := seen[m.key]
		seen[m.key] = true
		if again {
			p.add(join(path, m.key), "found twice, want it once")
		}
		return again
	})
}

// encode is the JSON of v, or nil if its key is to be left out.
func encode(v reflect.Value) json.RawMessage {
	if e, ok := v.Interface().(encoder); ok {
		return e.encode()
	}
	switch v.Type() {
	case rawType:
		return v.Bytes()
	case durationType:
		return quote(time.Duration(v.Int()).String())
	}
	var b bytes.Buffer
	switch v.Kind() {
	case reflect.Struct:
		var ms []member
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.Type == unknownType {
				continue
			}
			if value := encode(v.Field(i)); value != nil {
				ms = append(ms, member{f.Name, value})
			}
		}
		unknown := v.FieldByName("Unknown").Interface().(Unknown)
		return object(append(ms, unknown.members...))
	case reflect.Map:
		var ms []member
		values := make(map[string]json.RawMessage, v.Len())
		for it := v.MapRange(); it.Next(); {
			values[it.Key().String()] = encode(it.Value())
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			ms = append(ms, member{key, values[key]})
		}
		return object(ms)
	case reflect.Slice:
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(encode(v.Index(i)))
		}
		b.WriteByte(']')
		return b.Bytes()
	case reflect.String:
		return quote(v.String())
	case reflect.Bool:
		return strconv.AppendBool(nil, v.Bool())
	case reflect.Int64:
		return strconv.AppendInt(nil, v.Int(), 10)
	}
	panic("config has a " + v.Type().String())
}

// A member is one key of an object.
type member struct {
	key   string
	value json.RawMessage
}

// errNoObject is the answer of members to JSON that is something else.
var errNoObject = errors.New("not an object")

// members is what an object has, in order. The JSON is valid.
func members(raw json.RawMessage) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errNoObject
	}
	var ms []member
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: key.(string)}
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// object is the JSON of an object.
func object(ms []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range ms {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quote(m.key))
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

// quote is a string as JSON; "<" and "&" stay as they are.
func quote(s string) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(s) // strings can always be encoded
	return bytes.TrimSpace(b.Bytes())
}

// indent lays JSON out for people.
func indent(raw json.RawMessage) []byte {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return raw
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// found describes a JSON value of the wrong type, without what is secret.
func (p *problems) found(path string, raw json.RawMessage) string {
	if raw[0] == '"' && isSecret(strings.Split(path, ".")) {
		return "a string"
	}
	return found(raw)
}

func found(raw json.RawMessage) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "the string " + clip(string(raw))
	case 't', 'f', 'n':
		return string(raw)
	}
	return "the number " + clip(string(raw))
}

// clip shortens a text from a file for an error.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
