package page

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The least contrasts of text and of what else must be seen (WCAG 2.2, 1.4.3 and 1.4.11).
const (
	textContrast    = 4.5
	controlContrast = 3
)

// luminance is the relative luminance of a colour as #rgb or #rrggbb (WCAG 2.2).
func luminance(t *testing.T, colour string) float64 {
	t.Helper()
	digits := strings.TrimPrefix(colour, "#")
	if len(digits) == 3 {
		digits = string([]byte{digits[0], digits[0], digits[1], digits[1], digits[2], digits[2]})
	}
	n, err := strconv.ParseUint(digits, 16, 32)
	if err != nil || len(digits) != 6 || digits == colour {
		t.Fatalf("%q is no colour", colour)
	}
	linear := func(c uint64) float64 {
		v := float64(c&0xff) / 0xff
		if v <= 0.04045 {
			return v / 12.92
		}
		return math.Pow((v+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(n>>16) + 0.7152*linear(n>>8) + 0.0722*linear(n)
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	x, y := luminance(t, a), luminance(t, b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// rule is a selector of the style sheet, with what it sets.
type rule struct {
	selector string
	sets     map[string]string
}

// rules reads the style sheet. Of a media query, it has what is in it.
func rules(t *testing.T) (all []rule) {
	t.Helper()
	b, err := static.ReadFile("static/page.css")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(string(b), "")
	for _, m := range regexp.MustCompile(`([^{}]+)\{([^{}]*)\}`).FindAllStringSubmatch(text, -1) {
		r := rule{strings.TrimSpace(m[1]), map[string]string{}}
		for declaration := range strings.SplitSeq(m[2], ";") {
			if name, value, ok := strings.Cut(declaration, ":"); ok {
				r.sets[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
		}
		all = append(all, r)
	}
	return all
}

// themes are the variables of the style sheet: light, dark, and dark where the system is.
func themes(t *testing.T) map[string]map[string]string {
	t.Helper()
	all := map[string]map[string]string{}
	for _, r := range rules(t) {
		if !strings.HasPrefix(r.selector, ":root") {
			continue
		}
		v := map[string]string{}
		for name, value := range r.sets {
			if name, ok := strings.CutPrefix(name, "--"); ok {
				v[name] = value
			}
		}
		all[r.selector] = v
	}
	const light, dark, system = ":root", `:root[data-theme="dark"]`, `:root:not([data-theme="light"])`
	if diff := cmp.Diff(all[dark], all[system]); diff != "" || len(all) != 3 {
		t.Fatalf("%d themes; the dark one and the system's (-dark +system):\n%s", len(all), diff)
	}
	return map[string]map[string]string{"light": all[light], "dark": all[dark]}
}

// The colours that are behind text, and those of a log's text, which stands before the last two
// alone.
var (
	backs    = []string{"back", "panel", "log", "pick"}
	logText  = regexp.MustCompile(`^c\d+$`)
	border   = regexp.MustCompile(`^(border.*|outline|box-shadow)$`)
	coloured = regexp.MustCompile(`var\(--(\w+)\)|#[0-9a-f]{3,6}\b`)
)

// TestContrast: all text can be read, and what shows where a control is can be seen, in each theme.
// Not looked at is text whose two colours a log has asked for.
func TestContrast(t *testing.T) {
	pairs := 0
	for theme, variables := range themes(t) {
		value := func(s string) string {
			if name, ok := strings.CutPrefix(s, "var(--"); ok {
				return variables[strings.TrimSuffix(name, ")")]
			}
			return s
		}
		check := func(what, front, back string, least float64) {
			t.Helper()
			pairs++
			if got := contrast(t, value(front), value(back)); got < least {
				t.Errorf("%s: %s: %s on %s has a contrast of %.2f, want %.1f",
					theme, what, front, back, got, least)
			}
		}
		for _, r := range rules(t) {
			if strings.HasPrefix(r.selector, ":root") || strings.HasPrefix(r.selector, `[class*="g"].f`) {
				continue
			}
			if o := r.sets["opacity"]; o != "" && o != "1" || r.sets["filter"] != "" {
				t.Errorf("%s changes colours in a way that is not looked at", r.selector)
			}
			front, back := r.sets["color"], r.sets["background"]
			switch {
			case front == "" || front == "inherit":
			case back != "":
				check(r.selector, front, back, textContrast)
			default:
				m := coloured.FindStringSubmatch(front)
				if m == nil || m[1] == "" {
					t.Errorf("%s: the colour %q has no background, and is in no theme", r.selector, front)
					continue
				}
				behind := backs
				if logText.MatchString(m[1]) {
					behind = backs[2:]
				}
				for _, b := range behind {
					check(r.selector, front, "var(--"+b+")", textContrast)
				}
			}
			// A line between parts of the page need not be seen.
			control := strings.Contains(r.selector, "button") || strings.Contains(r.selector, "input") ||
				strings.Contains(r.selector, "focus") || r.sets["box-shadow"] != "" || r.sets["outline"] != ""
			for _, name := range slices.Sorted(maps.Keys(r.sets)) {
				colour := coloured.FindString(r.sets[name])
				if !control || colour == "" || !border.MatchString(name) {
					continue
				}
				for _, b := range backs {
					check(fmt.Sprintf("%s, %s", r.selector, name), colour, "var(--"+b+")", controlContrast)
				}
			}
		}
	}
	if pairs < 300 {
		t.Errorf("only %d pairs were looked at: is the style sheet read?", pairs)
	}
}

// seen is JavaScript that returns what on the page has too little contrast to what is behind it.
const seen = `(() => {
	const colour = (s) => s.match(/[\d.]+/g).map(Number);
	const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
	const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
	const contrast = (a, b) => {
		const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
		return (x + 0.05) / (y + 0.05);
	};
	const behind = (e) => {
		for (; e; e = e.parentElement) {
			const c = colour(getComputedStyle(e).backgroundColor);
			if (c.length === 3 || c[3] > 0) return c;
		}
		return [255, 255, 255];
	};
	const bad = [];
	for (const e of document.body.querySelectorAll("*")) {
		const asked = /\bg\d/.test(e.className) && /\bf\d/.test(e.className) || e.style.color;
		if (!e.checkVisibility() || asked) continue;
		const style = getComputedStyle(e), what = e.tagName + "." + e.className + " ";
		const field = e.matches("input[type=search], input[type=password], select");
		const text = field || [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
		const is = contrast(colour(style.color), behind(e));
		if (text && is < 4.5) bad.push(what + is.toFixed(2) + ": " + e.textContent.slice(0, 40));
		if (!field && !e.matches("button:not(.head, .fold), .button")) continue;
		const edge = contrast(colour(style.borderTopColor), behind(e.parentElement));
		if (edge < 3) bad.push("the edge of " + what + edge.toFixed(2));
	}
	return bad.join("\n");
})()`

// readable checks what is seen in both themes, and leaves the theme that was there.
func (b *browser) readable(what string) {
	b.Helper()
	before := evaluate[string](b, `document.documentElement.dataset.theme || ""`)
	for _, theme := range []string{"light", "dark", before} {
		set := fmt.Sprintf(`document.documentElement.dataset.theme = %q`, theme)
		bad := evaluate[string](b, "("+set+", "+seen+")")
		if bad != "" {
			b.Errorf("%s, %s: too little contrast:\n%s", what, theme, bad)
		}
	}
	if before == "" {
		evaluate[bool](b, `document.documentElement.removeAttribute("data-theme") === undefined`)
	}
}
