package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// source is a package without its tests, read and type checked.
type source struct {
	name  string // of the package clause
	path  string // of an import
	dir   string // absolute
	short string // the folder, relative to the module's
	tests bool   // it has test files

	fset    *token.FileSet
	files   []*sourceFile
	info    *types.Info
	imports types.Importer
}

// sourceFile is one of its files.
type sourceFile struct {
	path  string // absolute
	short string // relative to the module's folder
	text  []byte
	tree  *ast.File
}

// listed is what "go list" says of a package.
type listed struct {
	Dir, ImportPath, Name, Export string
	GoFiles, CgoFiles             []string
	TestGoFiles, XTestGoFiles     []string
	DepOnly, Standard             bool
	Module                        *struct{ Dir string }
}

// load reads the package of a pattern, and builds what it imports.
func load(ctx context.Context, pattern string) (*source, error) {
	args := append([]string{"list", "-export", "-deps", "-json", pattern}, chooseImports...)
	cmd := exec.CommandContext(ctx, "go", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list %s: %w\n%s", pattern, err, stderr.Bytes())
	}
	exports := map[string]string{}
	var main *listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("list %s: %w", pattern, err)
		}
		exports[p.ImportPath] = p.Export
		if p.DepOnly || p.Standard {
			continue
		}
		if main != nil {
			return nil, fmt.Errorf("%s is more than one package", pattern)
		}
		main = &p
	}
	if main == nil || main.Module == nil {
		return nil, fmt.Errorf("%s is no package of a module", pattern)
	}
	if len(main.CgoFiles) > 0 {
		return nil, fmt.Errorf("%s has cgo, which cannot be changed here", pattern)
	}
	src := &source{
		name: main.Name, path: main.ImportPath, dir: main.Dir,
		tests: len(main.TestGoFiles)+len(main.XTestGoFiles) > 0,
		fset:  token.NewFileSet(),
	}
	if src.short, err = filepath.Rel(main.Module.Dir, main.Dir); err != nil {
		return nil, err
	}
	src.short = filepath.ToSlash(src.short)
	for _, name := range main.GoFiles {
		f := &sourceFile{path: filepath.Join(main.Dir, name), short: src.short + "/" + name}
		if f.text, err = os.ReadFile(f.path); err != nil {
			return nil, err
		}
		if f.tree, err = parser.ParseFile(src.fset, f.path, f.text, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return nil, err
		}
		src.files = append(src.files, f)
	}
	src.imports = importer.ForCompiler(src.fset, "gc", func(path string) (io.ReadCloser, error) {
		if exports[path] == "" {
			return nil, fmt.Errorf("%s is not built", path)
		}
		return os.Open(exports[path])
	})
	src.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	trees := make([]*ast.File, len(src.files))
	for i, f := range src.files {
		trees[i] = f.tree
	}
	if faults := src.check(src.fset, trees, src.info); len(faults) > 0 {
		return nil, fmt.Errorf("check %s: %w", pattern, faults[0])
	}
	return src, nil
}

// check type checks files as those of the package.
func (s *source) check(fset *token.FileSet, files []*ast.File, info *types.Info) (faults []types.Error) {
	conf := types.Config{
		Importer: s.imports,
		Sizes:    types.SizesFor("gc", runtime.GOARCH),
		Error: func(err error) {
			var e types.Error
			if errors.As(err, &e) {
				faults = append(faults, e)
			} else {
				faults = append(faults, types.Error{Fset: fset, Msg: err.Error()})
			}
		},
	}
	_, _ = conf.Check(s.path, fset, files, info) // Error has them all
	return faults
}

// of is the source text of a node.
func (s *source) of(f *sourceFile, n ast.Node) string {
	return string(f.text[s.offset(n.Pos()):s.offset(n.End())])
}

func (s *source) offset(p token.Pos) int { return s.fset.PositionFor(p, false).Offset }

// lineOf is the source text of the line at an offset, without the white space around it.
func (f *sourceFile) lineOf(offset int) string {
	start := bytes.LastIndexByte(f.text[:offset], '\n') + 1
	line, _, _ := strings.Cut(string(f.text[start:]), "\n")
	return strings.TrimSpace(line)
}
