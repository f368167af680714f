package exchange

import (
	"reflect"
	"testing"

	"github.com/codexchange/codexchange/exchange/internal/engine"
)

// Everything that the engine counts is in Stat, under the same name.
func TestStatLeavesNothingOut(t *testing.T) {
	var counted engine.Stats
	from := reflect.ValueOf(&counted).Elem()
	for i := range from.NumField() {
		if f := from.Field(i); f.CanUint() {
			f.SetUint(uint64(i + 1))
		} else {
			f.SetInt(int64(i + 1))
		}
	}
	to := reflect.ValueOf(statOf(counted))
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		f := to.FieldByName(name)
		if !f.IsValid() {
			t.Errorf("engine.Stats.%s: there is no such field in Stat", name)
			continue
		}
		if !f.Equal(from.Field(i)) {
			t.Errorf("Stat.%s: got %v, want %v", name, f, from.Field(i))
		}
	}
}
