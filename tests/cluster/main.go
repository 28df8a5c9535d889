// Command cluster is a real Kubernetes with a real Tekton, cert-manager and S3 server on one Linux machine, built from Go modules, without a
// container engine and without pulling images. The demo and the end-to-end tests run on it.
//
// It owns how the components are pinned and built (versions.go, build.go, components/), how they run as one machine in namespaces of their own
// (machine.go, namespaces_linux.go, parts.go), what is installed in it (install.go, image.go), and that nothing is left when it is taken down
// (up.go, cgroups.go).
//
// SHIPLOG_CLUSTER_DIR is the folder of its state, SHIPLOG_CLUSTER_NET the first half of its addresses. A second cluster needs both of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const usage = `usage: go run ./tests/cluster COMMAND

  up                       build what is not cached, start everything, wait until it is ready
  down                     stop everything and leave nothing behind
  status                   say how each part is; exit 1 if one is not running
  env                      print the variables to reach it, as in: eval "$(go run ./tests/cluster env)"
  load-image [-C FOLDER] NAME:TAG [--entrypoint PATH] [--from IMAGE] PATH=FILE…
                           make an image of static binaries in its registry
  install PART…            install tekton or cert-manager, built from source, into the cluster of KUBECONFIG, with images in REGISTRY
  build [COMPONENT…]       only build, into the cache
  binary NAME              print the path of a built binary; build it if need be
  start PART, stop PART [SIGNAL-NUMBER]
                           start one part and wait until it serves, or stop it, for tests that break things
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("no command\n\n" + usage)
	}
	switch command, rest := args[0], args[1:]; command {
	case "up":
		return up(ctx, os.Stdout)
	case "down":
		return down(ctx, os.Stdout)
	case "status":
		return status(ctx, os.Stdout)
	case "env":
		n, err := loadNode()
		if err != nil {
			return err
		}
		fmt.Print(n.env())
		return nil
	case "load-image":
		img, err := parseImage(rest)
		if err != nil {
			return err
		}
		n, err := loadNode()
		if err != nil {
			return err
		}
		ref, err := img.push(ctx, n.images())
		if err != nil {
			return err
		}
		fmt.Println(ref)
		return nil
	case "install":
		return installElsewhere(ctx, os.Stdout, rest)
	case "build":
		if len(rest) == 0 {
			for _, c := range components {
				rest = append(rest, c.name)
			}
			rest = append(rest, slices.Collect(maps.Keys(tools))...)
		}
		if err := installPackages(ctx, os.Stdout, rest...); err != nil {
			return err
		}
		rest = slices.DeleteFunc(rest, func(name string) bool { return tools[name] != nil })
		_, err := buildAll(ctx, os.Stdout, rest...)
		return err
	case "binary":
		if len(rest) != 1 {
			return errors.New("usage: binary NAME")
		}
		name, err := binary(ctx, rest[0], os.Stderr)
		if err != nil {
			return err
		}
		fmt.Println(name)
		return nil
	case "start", "stop":
		return startStop(ctx, command, rest)
	case "machine": // started by up
		n, err := loadNode()
		if err != nil {
			return err
		}
		return runMachine(n)
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	default:
		return fmt.Errorf("unknown command %q\n\n%s", command, usage)
	}
}

func startStop(ctx context.Context, command string, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: start PART, stop PART [SIGNAL-NUMBER]")
	}
	if _, ok := findPart(args[0]); !ok {
		return fmt.Errorf("there is no part %q: see \"status\"", args[0])
	}
	sig := syscall.SIGTERM
	if len(args) > 1 {
		number, err := strconv.Atoi(args[1])
		if err != nil || number <= 0 {
			return fmt.Errorf("signal %q is not a positive number", args[1])
		}
		sig = syscall.Signal(number)
	}
	n, err := loadNode()
	if err != nil {
		return err
	}
	if machinePID(n) == 0 {
		return errNoCluster
	}
	client := newMachineClient(n)
	if err := client.call(ctx, command, args[0], sig); err != nil || command == "stop" {
		return err
	}
	return client.call(ctx, "await", args[0], 0)
}

// inCheckout says whether the command runs where the component modules are.
func inCheckout() error {
	dir, err := componentsDir()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "kubernetes", "go.mod")); err != nil {
		return fmt.Errorf("the checkout is not whole: %w", err)
	}
	return nil
}

// join is for messages.
func join(names []string) string { return strings.Join(names, ", ") }
