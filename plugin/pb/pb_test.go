package pb

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

var update = flag.Bool("update", false, "write testdata/contract.txt anew")

// messages are all messages of the contract, nested ones too.
func messages() (all []protoreflect.MessageType) {
	var walk func(protoreflect.MessageDescriptors)
	walk = func(list protoreflect.MessageDescriptors) {
		for i := range list.Len() {
			d := list.Get(i)
			if d.IsMapEntry() {
				continue
			}
			all = append(all, messageType(d))
			walk(d.Messages())
		}
	}
	walk(File_plugin_proto.Messages())
	return all
}

func messageType(d protoreflect.MessageDescriptor) protoreflect.MessageType {
	for i := range file_plugin_proto_msgTypes {
		if mt := &file_plugin_proto_msgTypes[i]; mt.Descriptor() == d {
			return mt
		}
	}
	return dynamicpb.NewMessageType(d)
}

// fill sets every field of m to something that is not its zero value; of each
// oneof it sets the member with the given number, counted over all that there
// are. It reports whether there are more.
func fill(m protoreflect.Message, member, depth int) (more bool) {
	n := 0
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if one := f.ContainingOneof(); one != nil {
			last := one.Fields().Len() - 1
			more = more || member < last
			if f.Index() != one.Fields().Get(min(member, last)).Index() {
				continue
			}
		}
		n++
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), scalar(f.MapValue(), n))
		case f.IsList() && f.Message() != nil:
			if depth > 0 {
				list := m.Mutable(f).List()
				for range 2 {
					e := list.NewElement()
					fill(e.Message(), member, depth-1)
					list.Append(e)
				}
			}
		case f.IsList():
			list := m.Mutable(f).List()
			list.Append(scalar(f, n))
			list.Append(scalar(f, n+100))
		case f.Message() != nil:
			if depth > 0 {
				more = fill(m.Mutable(f).Message(), member, depth-1) || more
			}
		default:
			m.Set(f, scalar(f, n))
		}
	}
	return more
}

func scalar(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint(f.Name(), n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(fmt.Append(nil, f.Name(), n))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(-n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(-n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<40 + uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) + 0.5)
	}
	panic(fmt.Sprintf("%s: no value for kind %v", f.FullName(), f.Kind()))
}

// each calls f with every message of the contract, filled, once for each member
// that a oneof in it can have.
func each(t *testing.T, f func(t *testing.T, m proto.Message)) {
	for _, mt := range messages() {
		t.Run(string(mt.Descriptor().Name()), func(t *testing.T) {
			for member, more := 0, true; more; member++ {
				m := mt.New()
				more = fill(m, member, 3)
				f(t, m.Interface())
			}
		})
	}
}

// Every field of every message arrives as it was sent.
func TestRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, m) {
			t.Errorf("got %v, want %v", got, m)
		}
	})
}

// Fields that a later version may add are ignored: what is known of the message
// is read as before. That goes for the members of a oneof too, which then has
// none.
func TestUnknownFields(t *testing.T) {
	var later []byte
	later = protowire.AppendTag(later, 1000, protowire.BytesType)
	later = protowire.AppendString(later, "what nobody knows yet")
	later = protowire.AppendTag(later, 1001, protowire.VarintType)
	later = protowire.AppendVarint(later, 7)
	later = protowire.AppendTag(later, 1002, protowire.Fixed64Type)
	later = protowire.AppendFixed64(later, 7)
	each(t, func(t *testing.T, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got := m.ProtoReflect().New().Interface()
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(append(append([]byte(nil), later...), append(b, later...)...), got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, m) {
			t.Errorf("got %v, want %v", got, m)
		}
	})
	var c Command
	var e Event
	var r Result
	for _, m := range []proto.Message{&c, &e, &r} {
		if err := proto.Unmarshal(later, m); err != nil {
			t.Errorf("%T of an unknown kind: %v", m, err)
		}
	}
	if c.Do != nil || e.What != nil || r.What != nil {
		t.Errorf("unknown members read as %v, %v, %v, want none", c.Do, e.What, r.What)
	}
}

// The contract changes on purpose only: the numbers and types of all fields, and
// the methods, are those that are written down. After an addition, run the test
// with -update; a line that is changed or lost needs a new version of the
// handshake.
func TestContract(t *testing.T) {
	var b strings.Builder
	services := File_plugin_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			m := s.Methods().Get(j)
			stream := func(is bool) string {
				if is {
					return "stream "
				}
				return ""
			}
			fmt.Fprintf(&b, "%s.%s(%s%s) %s%s\n", s.Name(), m.Name(), stream(m.IsStreamingClient()), m.Input().Name(), stream(m.IsStreamingServer()), m.Output().Name())
		}
	}
	for _, mt := range messages() {
		d := mt.Descriptor()
		for i := range d.Fields().Len() {
			f := d.Fields().Get(i)
			kind := f.Kind().String()
			if f.Message() != nil {
				kind = string(f.Message().Name())
			}
			if f.IsList() {
				kind = "repeated " + kind
			}
			fmt.Fprintf(&b, "%s %d %s %s\n", strings.TrimPrefix(string(d.FullName()), "codexchange.plugin.v1."), f.Number(), kind, f.Name())
		}
	}
	const name = "testdata/contract.txt"
	if *update {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(b.String(), "\n")
	have := make(map[string]bool, len(got))
	for _, line := range got {
		have[line] = true
	}
	for line := range strings.Lines(string(want)) {
		line = strings.TrimSuffix(line, "\n")
		if !have[line] {
			t.Errorf("contract no longer has: %s", line)
		}
		delete(have, line)
	}
	delete(have, "")
	for line := range have {
		t.Errorf("%s lacks: %s", name, line)
	}
}
