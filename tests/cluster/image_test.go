package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestParseImage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, tt := range []struct {
		name string
		args []string
		want image
	}{
		{
			"plain", []string{"shiplog/webhook:dev", "webhook=w"},
			image{ref: "shiplog/webhook:dev", files: map[string]string{"webhook": filepath.Join(dir, "w")}},
		},
		{
			"registry and entrypoint", []string{"localhost:5000/shiplog/webhook:dev", "--entrypoint", "/webhook,-v", "webhook=w", "/x/y=/z"},
			image{ref: "shiplog/webhook:dev", entrypoint: []string{"/webhook", "-v"}, files: map[string]string{"webhook": filepath.Join(dir, "w"), "/x/y": "/z"}},
		},
		{
			"the node's address", []string{"10.1.0.2:5000/a:b", "a=/b"},
			image{ref: "a:b", files: map[string]string{"a": "/b"}},
		},
		{
			"a folder and a base", []string{"-C", "/bin/out", "a:b", "--from", "localhost:5000/busybox", "x=y", "z=/z"},
			image{ref: "a:b", base: "localhost:5000/busybox", files: map[string]string{"x": "/bin/out/y", "z": "/z"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseImage(tt.args)
			if err != nil {
				t.Fatal(err)
			}
			if got.ref != tt.want.ref || got.base != tt.want.base || !reflect.DeepEqual(got.entrypoint, tt.want.entrypoint) || !reflect.DeepEqual(got.files, tt.want.files) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestParseImageRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":                    nil,
		"no file":                    {"a:b"},
		"no name":                    {"x=y"},
		"two names":                  {"a:b", "c:d", "x=y"},
		"unknown flag":               {"--what", "a:b", "x=y"},
		"entrypoint without a value": {"a:b", "x=y", "--entrypoint"},
	} {
		t.Run(name, func(t *testing.T) {
			if img, err := parseImage(args); err == nil {
				t.Errorf("accepted: %+v", img)
			}
		})
	}
}

// layerEntries writes an image's layer and reads it back.
func layerEntries(t *testing.T, img image) map[string]tar.Header {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := img.writeLayer(f); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	entries := map[string]tar.Header{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := entries[h.Name]; twice {
			t.Errorf("%s is in the layer twice", h.Name)
		}
		entries[h.Name] = *h
	}
}

func TestLayer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bin")
	write(t, file, "program")
	entries := layerEntries(t, image{
		files: map[string]string{"/bin/busybox": file, "opt/a/b/c": file},
		links: map[string]string{"bin/sh": "/bin/busybox"},
		texts: map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"},
	})
	for _, want := range []tar.Header{
		{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, // as any user
		{Name: "bin/", Mode: 0o755, Typeflag: tar.TypeDir},
		{Name: "opt/a/b/", Mode: 0o755, Typeflag: tar.TypeDir},
		{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg, Size: 7},
		{Name: "opt/a/b/c", Mode: 0o755, Typeflag: tar.TypeReg, Size: 7},
		{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg, Size: 30},
		{Name: "bin/sh", Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"},
	} {
		got, ok := entries[want.Name]
		if !ok {
			t.Errorf("%s is not in the layer", want.Name)
			continue
		}
		if got.Mode != want.Mode || got.Typeflag != want.Typeflag || got.Size != want.Size || got.Linkname != want.Linkname {
			t.Errorf("%s: mode %o, type %c, size %d, link %q; want mode %o, type %c, size %d, link %q", want.Name,
				got.Mode, got.Typeflag, got.Size, got.Linkname, want.Mode, want.Typeflag, want.Size, want.Linkname)
		}
	}
}

func TestLayerOfAMissingFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (image{files: map[string]string{"x": "/does/not/exist"}}).writeLayer(f); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that the file is missing", err)
	}
}

// An unchanged image must keep its digest, or every load makes the kubelet pull again.
func TestLayerIsTheSameEachTime(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "f"), "x")
	files := map[string]string{}
	for _, name := range []string{"a", "b", "c", "d/e/f", "g/h"} {
		files[name] = filepath.Join(dir, "f")
	}
	var first []byte
	for i := range 20 {
		f, err := os.Create(filepath.Join(dir, "layer.tar"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(image{files: files, texts: map[string]string{"t": "1", "u": "2"}}.writeLayer(f), f.Close()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = b
		} else if !bytes.Equal(b, first) {
			t.Fatal("the layer differs")
		}
	}
}
