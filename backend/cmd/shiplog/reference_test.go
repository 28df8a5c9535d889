package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
)

// TestReference compares docs/cli.md with the commands and flags that there are; -update writes it.
func TestReference(t *testing.T) {
	t.Setenv(envNamespace, "")
	t.Setenv(envServerCA, "")
	var b bytes.Buffer
	b.WriteString("# The command line\n\nMade by `go test ./backend/cmd/shiplog -run TestReference -update`.\n\n")
	var write func(c *cobra.Command)
	write = func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c.HasParent() {
			return
		}
		c.DisableAutoGenTag = true
		if err := doc.GenMarkdownCustom(c, &b, func(link string) string {
			return "#" + strings.ReplaceAll(strings.TrimSuffix(link, ".md"), "_", "-")
		}); err != nil {
			t.Fatal(err)
		}
		for _, sub := range c.Commands() {
			write(sub)
		}
	}
	write(newRoot(&settings{out: bufio.NewWriter(io.Discard), stdout: io.Discard, stderr: io.Discard}))
	golden(t, "../../../docs/cli.md", b.String())
}

// TestCompletion has each shell's script made, and a shell's question answered. A shell that is installed parses its script; of the others, the script has what that shell needs, and its blocks end.
func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		shell string
		check []string
		has   []string
	}{
		{"bash", []string{"bash", "-n"}, []string{"__start_shiplog()", "complete -o default", "__complete"}},
		{"zsh", []string{"bash", "-n"}, []string{"#compdef shiplog", "compdef _shiplog shiplog", "_shiplog()", "__complete"}}, // whose blocks are the same
		{"zsh", []string{"zsh", "-n"}, nil},
		{"fish", []string{"fish", "--no-execute"}, []string{"function __shiplog_perform_completion", "complete -c shiplog", "__complete"}},
		{"powershell", nil, []string{"Register-ArgumentCompleter -CommandName 'shiplog'", "__complete"}},
	} {
		t.Run(c.shell, func(t *testing.T) {
			got, code := said(t, []string{"completion", c.shell})
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, got)
			}
			for _, want := range c.has {
				if !strings.Contains(got, want) {
					t.Errorf("the script has no %q", want)
				}
			}
			if c.shell == "fish" { // blocks of fish
				opened, ended := 0, 0
				for line := range strings.Lines(got) {
					word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
					switch word {
					case "function", "if", "for", "while", "switch", "begin":
						opened++
					case "end":
						ended++
					}
				}
				if opened == 0 || opened != ended {
					t.Errorf("%d blocks begin, %d end", opened, ended)
				}
			}
			if c.shell == "powershell" && strings.Count(got, "{") != strings.Count(got, "}") {
				t.Errorf("%d {, %d }", strings.Count(got, "{"), strings.Count(got, "}"))
			}
			if len(c.check) == 0 {
				return
			}
			if _, err := exec.LookPath(c.check[0]); err != nil {
				return
			}
			cmd := exec.CommandContext(t.Context(), c.check[0], c.check[1:]...)
			cmd.Stdin = strings.NewReader(got)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", c.check, err, out)
			}
		})
	}
	t.Run("runs", func(t *testing.T) {
		store, config := archivetest.Start(t)
		fill(t, store)
		useBucket(t, config)
		got, code := said(t, []string{cobra.ShellCompNoDescRequestCmd, "logs", "-n", "ns", ""})
		if plugin, pluginCode := said(t, append(arguments("/usr/bin/kubectl_complete-shiplog", nil), "logs", "-n", "ns", "")); plugin != got || pluginCode != code {
			t.Errorf("kubectl is told %q, a shell %q", plugin, got)
		}
		lines := strings.Split(got, "\n")
		if diff := cmp.Diff([]string{"run", "broken", ":4"}, lines[:min(3, len(lines))]); code != 0 || diff != "" {
			t.Errorf("exit code %d (-want +got):\n%s", code, diff)
		}
	})
}

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		name string
		want []string
	}{
		{"shiplog", []string{"logs", "-n", ""}},
		{"/usr/local/bin/kubectl-shiplog", []string{"logs", "-n", ""}},
		{"/usr/local/bin/kubectl_complete-shiplog", []string{"__complete", "logs", "-n", ""}},
		{"kubectl_complete-shiplog.exe", []string{"__complete", "logs", "-n", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, arguments(c.name, []string{"logs", "-n", ""})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestExamples: what the help and the documents show can be typed.
func TestExamples(t *testing.T) {
	var examples []string
	var collect func(c *cobra.Command)
	collect = func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			examples = append(examples, strings.TrimSpace(line))
		}
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(newRoot(&settings{out: bufio.NewWriter(io.Discard), stdout: io.Discard, stderr: io.Discard}))
	for _, document := range []string{"../../../README.md", "../../../docs/reading.md"} {
		b, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		code := false
		for line := range strings.Lines(string(b)) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			if strings.HasPrefix(line, "```") {
				code = !code
			}
			if !code {
				continue
			}
			for _, program := range []string{"shiplog ", "kubectl shiplog ", "tkn shiplog "} {
				if command, ok := strings.CutPrefix(line, program); ok {
					examples = append(examples, "shiplog "+command)
				}
			}
		}
	}
	if len(examples) < 20 {
		t.Errorf("only %d examples", len(examples))
	}
	for _, example := range examples {
		t.Run(example, func(t *testing.T) {
			args := words(t, example)
			root := newRoot(&settings{out: bufio.NewWriter(io.Discard), stdout: io.Discard, stderr: io.Discard})
			c, args, err := root.Find(args[1:])
			if err != nil {
				t.Fatal(err)
			}
			if c == root || !c.Runnable() {
				t.Fatalf("%s is no command", example)
			}
			c.InitDefaultHelpFlag()
			if err := c.ParseFlags(args); err != nil {
				t.Fatal(err)
			}
			if err := c.ValidateArgs(c.Flags().Args()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNoFlagHidesAnother: what a flag of all commands means, it means everywhere.
func TestNoFlagHidesAnother(t *testing.T) {
	root := newRoot(&settings{out: bufio.NewWriter(io.Discard), stdout: io.Discard, stderr: io.Discard})
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if root.PersistentFlags().Lookup(f.Name) != nil || f.Shorthand != "" && root.PersistentFlags().ShorthandLookup(f.Shorthand) != nil {
				t.Errorf("%s: --%s -%s is a flag of all commands", c.CommandPath(), f.Name, f.Shorthand)
			}
		})
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(root)
}

// words are those of a shell's command, up to where its output is sent elsewhere, or a comment begins.
func words(t *testing.T, command string) (all []string) {
	t.Helper()
	for i, part := range strings.Split(command, "'") {
		if i%2 == 1 {
			all = append(all, part)
			continue
		}
		for _, word := range strings.Fields(part) {
			if strings.HasPrefix(word, "#") || word == ">" || word == "|" {
				return all
			}
			all = append(all, word)
		}
	}
	return all
}
