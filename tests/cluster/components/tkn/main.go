// Command tkn is Tekton's CLI for tests, as far as it can be built from Go modules alone: the commands for runs, and how it finds plug-ins.
// What is here stands for cmd/tkn/main.go and pkg/cmd/root.go of github.com/tektoncd/cli, which import a module that cannot be had.
package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/tektoncd/cli/pkg/cli"
	"github.com/tektoncd/cli/pkg/cmd/pipelinerun"
	"github.com/tektoncd/cli/pkg/cmd/taskrun"
	"github.com/tektoncd/cli/pkg/plugins"
)

func main() {
	params := &cli.TektonParams{}
	tkn := &cobra.Command{Use: "tkn", SilenceUsage: true}
	tkn.AddCommand(pipelinerun.Command(params), taskrun.Command(params))
	if found, _, _ := tkn.Find(os.Args[1:]); found == tkn && len(os.Args) > 1 { // as cmd/tkn does: what is no command may be a plug-in
		if plugin, err := plugins.FindPlugin(os.Args[1]); err == nil {
			err := syscall.Exec(plugin, append([]string{plugin}, os.Args[2:]...), os.Environ())
			fmt.Fprintf(os.Stderr, "tkn: start %s: %v\n", plugin, err)
			os.Exit(127)
		}
	}
	if err := tkn.Execute(); err != nil {
		os.Exit(1)
	}
}
