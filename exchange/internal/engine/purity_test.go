package engine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestPurity reads the package's own sources. The engine decides and does
// nothing: it may know the time only as Step tells it, and nobody may have to wait
// for it or lock it.
func TestPurity(t *testing.T) {
	allowed := map[string]string{
		"container/heap":                        "the timers",
		"encoding/binary":                       "arithmetic",
		"math/rand/v2":                          "seeded by Config, never by the system",
		"slices":                                "work on memory alone",
		"time":                                  "moments and durations, not the clock",
		"github.com/ipfs/go-cid":                "names of blocks",
		"math/bits":                             "arithmetic",
		"github.com/libp2p/go-libp2p/core/peer": "names of peers",
		"github.com/codexchange/codexchange/exchange/wire": "addresses, lists, presences",
	}
	// Functions that ask the system for something, by package.
	impure := map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
		"rand": {"Int", "IntN", "Int64", "Uint32", "Uint64", "Float64", "Perm", "Shuffle", "N"},
	}
	// Where a map may be ranged over, because the order reaches no action.
	unordered := map[string]string{
		"Wantlist": "the caller is told that the order means nothing, and no action depends on it",
	}

	fset := token.NewFileSet()
	files := sources(t, fset)
	for _, f := range files {
		name := fset.Position(f.Pos()).Filename
		for _, imp := range f.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := allowed[path]; !ok {
				t.Errorf("%s imports %s, which is not among what a pure engine needs", name, path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			at := func() token.Position { return fset.Position(n.Pos()) }
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%v: a goroutine is started", at())
			case *ast.SelectStmt:
				t.Errorf("%v: select waits for something", at())
			case *ast.ChanType, *ast.SendStmt:
				t.Errorf("%v: a channel is used", at())
			case *ast.UnaryExpr:
				if n.Op == token.ARROW {
					t.Errorf("%v: a channel is used", at())
				}
			case *ast.SelectorExpr:
				if pkg, ok := n.X.(*ast.Ident); ok && pkg.Obj == nil && slices.Contains(impure[pkg.Name], n.Sel.Name) {
					t.Errorf("%v: %s.%s asks the system", at(), pkg.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
	seen := map[string]bool{}
	for _, r := range mapRanges(fset, files) {
		seen[r.fn] = true
		if _, ok := unordered[r.fn]; !ok {
			t.Errorf("%v: %s ranges over a map, whose order would reach actions; if it does not, say why here", r.at, r.fn)
		}
	}
	for fn := range unordered {
		if !seen[fn] {
			t.Errorf("%s does not range over a map any more, and need not be excused", fn)
		}
	}
}

// A mapRange is a range statement over a map, and the function it is in.
type mapRange struct {
	at token.Position
	fn string
}

// mapRanges finds them. Types of other packages are left unknown, for it does not
// matter what is in a map.
func mapRanges(fset *token.FileSet, files []*ast.File) (found []mapRange) {
	info := types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: empty{}, Error: func(error) {}}
	conf.Check("engine", fset, files, &info) // errors are expected: see above
	for _, f := range files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				if r, ok := n.(*ast.RangeStmt); ok {
					if typ := info.Types[r.X].Type; typ != nil {
						if _, isMap := typ.Underlying().(*types.Map); isMap {
							found = append(found, mapRange{fset.Position(r.Pos()), fn.Name.Name})
						}
					}
				}
				return true
			})
		}
	}
	return found
}

// empty imports every package as one that declares nothing.
type empty struct{}

func (empty) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, path[strings.LastIndexByte(path, '/')+1:])
	p.MarkComplete()
	return p, nil
}

func sources(t *testing.T, fset *token.FileSet) []*ast.File {
	t.Helper()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) < 10 {
		t.Fatalf("found %d source files of the engine, want all of them", len(files))
	}
	return files
}
