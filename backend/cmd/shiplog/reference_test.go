package main

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
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

// TestCompletion has each shell's script made, and a shell's question answered.
func TestCompletion(t *testing.T) {
	for shell, check := range map[string][]string{"bash": {"bash", "-n"}, "zsh": nil, "fish": nil, "powershell": nil} {
		t.Run(shell, func(t *testing.T) {
			got, code := said(t, []string{"completion", shell})
			if code != 0 || !strings.Contains(got, "shiplog") {
				t.Fatalf("exit code %d, %d bytes", code, len(got))
			}
			if check == nil {
				return
			}
			cmd := exec.CommandContext(t.Context(), check[0], check[1:]...)
			cmd.Stdin = strings.NewReader(got)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", check, err, out)
			}
		})
	}
	t.Run("runs", func(t *testing.T) {
		store, config := archivetest.Start(t)
		fill(t, store)
		t.Setenv(objectstore.EnvBucket, config.Bucket)
		t.Setenv(objectstore.EnvEndpoint, config.Endpoint)
		t.Setenv(objectstore.EnvRegion, config.Region)
		t.Setenv("AWS_ACCESS_KEY_ID", config.Credentials.AccessKeyID)
		t.Setenv("AWS_SECRET_ACCESS_KEY", string(config.Credentials.SecretAccessKey))
		got, code := said(t, []string{cobra.ShellCompNoDescRequestCmd, "logs", "-n", "ns", ""})
		lines := strings.Split(got, "\n")
		if diff := cmp.Diff([]string{"run", "broken", ":4"}, lines[:min(3, len(lines))]); code != 0 || diff != "" {
			t.Errorf("exit code %d (-want +got):\n%s", code, diff)
		}
	})
}
