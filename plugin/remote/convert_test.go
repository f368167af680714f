package remote

import (
	"fmt"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"
)

// filled is a T none of whose fields is zero. A field of a type that it does not
// know fails the test, so that nobody forgets it.
func filled[T any](t *testing.T) (x T) {
	t.Helper()
	v := reflect.ValueOf(&x).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch f.Kind() {
		case reflect.Uint64:
			f.SetUint(1<<40 + uint64(i))
		case reflect.Int64: // time.Duration
			f.SetInt(1<<40 + int64(i))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
			f.SetMapIndex(reflect.ValueOf(fmt.Sprint("key ", i)), reflect.ValueOf(i+1).Convert(f.Type().Elem()))
		default:
			t.Fatalf("field %s of %T is of kind %v: fill it here", name, x, f.Kind())
		}
		if f.IsZero() {
			t.Fatalf("field %s of %T is zero", name, x)
		}
	}
	return x
}

// sent is a message as it arrives.
func sent[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	return got.(M)
}

// What is a struct on both sides of the boundary loses no field on the way.
func TestStructsCrossWhole(t *testing.T) {
	stat := filled[Stat](t)
	if got := statOf(sent(t, stat.proto())); !reflect.DeepEqual(got, stat) {
		t.Errorf("statistics arrive as %+v, want %+v", got, stat)
	}
	ledger := filled[Ledger](t)
	if got := ledgerOf(sent(t, ledger.proto())); !reflect.DeepEqual(got, ledger) {
		t.Errorf("ledger arrives as %+v, want %+v", got, ledger)
	}
}
