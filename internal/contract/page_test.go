package contract

import (
	"strings"
	"testing"
)

func TestPageAddress(t *testing.T) {
	for _, c := range []struct {
		name, base string
		page       Page
		want       string
	}{
		{"run", "https://logs.example.com", Page{Namespace: "team", UID: "uid-1"}, "https://logs.example.com/ui/team/uid-1"},
		{"task", "https://logs.example.com", Page{Namespace: "team", UID: "uid-1", Task: "build"}, "https://logs.example.com/ui/team/uid-1#task=build"},
		{"below a path", "https://example.com/logs/", Page{Namespace: "team", UID: "uid-1"}, "https://example.com/logs/ui/team/uid-1"},
		{"namespace named as the path", "https://example.com", Page{Namespace: "ui", UID: "ui"}, "https://example.com/ui/ui/ui"},
		{"path alone", "", Page{Namespace: "team", UID: "uid-1"}, "/ui/team/uid-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.page.Address(c.base)
			if got != c.want {
				t.Errorf("address %q, want %q", got, c.want)
			}
			if back, err := ParsePage(got); err != nil || back != c.page {
				t.Errorf("parsed %+v, %v, want %+v", back, err, c.page)
			}
		})
	}
}

func TestParsePage(t *testing.T) {
	for _, c := range []struct {
		name, address string
		want          Page
		bad           bool
	}{
		{name: "other parts of the fragment", address: "/ui/team/uid-1#L=120-140&task=build&wrap=1", want: Page{Namespace: "team", UID: "uid-1", Task: "build"}},
		{name: "fragment without a task", address: "/ui/team/uid-1#L=120", want: Page{Namespace: "team", UID: "uid-1"}},
		{name: "empty", bad: true},
		{name: "another path", address: "https://example.com/runs/team/uid-1", bad: true},
		{name: "no UID", address: "https://example.com/ui/team", bad: true},
		{name: "empty UID", address: "https://example.com/ui/team/", bad: true},
		{name: "more behind it", address: "https://example.com/ui/team/uid-1/logs", bad: true},
		{name: "path trick", address: "https://example.com/ui/../uid-1", bad: true},
		{name: "UID with a query", address: "https://example.com/ui/team/uid-1?x=1", bad: true},
		{name: "script for a task", address: "https://example.com/ui/team/uid-1#task=<script>", bad: true},
		{name: "javascript", address: "javascript:alert(1)//ui/Team/uid-1", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParsePage(c.address)
			if (err != nil) != c.bad || got != c.want {
				t.Errorf("parsed %+v, %v, want %+v and an error: %t", got, err, c.want, c.bad)
			}
		})
	}
}

func FuzzParsePage(f *testing.F) {
	f.Add("https://example.com/ui/team/uid-1#task=build")
	f.Add("/ui/ui/ui#a&task=b&task=")
	f.Fuzz(func(t *testing.T, address string) {
		p, err := ParsePage(address)
		if err != nil {
			return
		}
		again, err := ParsePage(p.Address("https://example.com"))
		if err != nil || again != p {
			t.Errorf("%q is %+v, and its address %+v, %v", address, p, again, err)
		}
		if strings.ContainsAny(p.Namespace+p.UID+p.Task, "/#?&<>\"' \\%") {
			t.Errorf("%q is %+v, which needs escaping", address, p)
		}
	})
}
