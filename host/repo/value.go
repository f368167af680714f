package repo

import (
	"encoding/json"
	"reflect"
	"time"
)

// An Optional is a value that may be left to the program: null or absent in the
// file, the default of the version that reads it. The zero value is that.
type Optional[T bool | int64 | string | time.Duration] struct {
	value T
	set   bool
}

// Some is a value that is set.
func Some[T bool | int64 | string | time.Duration](v T) Optional[T] {
	return Optional[T]{value: v, set: true}
}

// IsDefault reports whether the value is left to the program.
func (o Optional[T]) IsDefault() bool { return !o.set }

// Or is the value, or the default.
func (o Optional[T]) Or(byDefault T) T {
	if o.set {
		return o.value
	}
	return byDefault
}

func (o *Optional[T]) decode(p *problems, path string, raw json.RawMessage) {
	*o = Optional[T]{}
	v := reflect.ValueOf(&o.value).Elem()
	switch string(raw) {
	case "null":
		return
	case `""`, `"default"`, `"null"`: // Kubo reads them so where it wants a duration
		if v.Type() == durationType {
			return
		}
	}
	o.set = p.decode(path, raw, v)
}

func (o Optional[T]) encode() json.RawMessage {
	if !o.set {
		return nil
	}
	return encode(reflect.ValueOf(o.value))
}

// Strings is a list that may be written as a single string.
type Strings []string

func (s *Strings) decode(p *problems, path string, raw json.RawMessage) {
	*s = nil
	var list []string
	if raw[0] == '[' {
		if p.decode(path, raw, reflect.ValueOf(&list).Elem()) {
			*s = list
		}
		return
	}
	var one string
	if string(raw) == "null" || string(raw) == `""` {
		return
	}
	if raw[0] != '"' {
		p.add(path, "found %s, want a string or a list of strings", found(raw))
	} else if p.decode(path, raw, reflect.ValueOf(&one).Elem()) {
		*s = Strings{one}
	}
}

func (s Strings) encode() json.RawMessage {
	if len(s) == 1 && s[0] != "" { // which alone means none
		return encode(reflect.ValueOf(s[0]))
	}
	return encode(reflect.ValueOf([]string(s)))
}

// Unknown has the keys of an object that this version does not know, in the order
// in which they were read. It travels with the struct that it is embedded in, and
// is written with it. Its content is never changed, so structs that have it may be
// copied.
type Unknown struct{ members []member }
