package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// example is one of the YAML files in Tekton's module.
type example struct {
	name    string // as "taskruns/beta/workspace-in-sidecar"
	text    string // with images that the local registry has
	leftOut string // why it cannot run here
}

var (
	remote    = regexp.MustCompile(`(?m)^\s*(?:- )?resolver: *(git|http|hub|bundles)\b`)
	claim     = regexp.MustCompile(`(?m)kind: PersistentVolumeClaim\b|volumeClaimTemplate:`)
	defaultNS = regexp.MustCompile(`(?m)namespace: default\b`)
)

// findExamples reads the examples that Tekton's own tests run: those in no-ci are not.
func findExamples(dir string, im images) ([]example, error) {
	var found []example
	root := filepath.Join(dir, "examples", "v1")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && entry.Name() == "no-ci":
			return filepath.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".yaml":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, strings.TrimSuffix(path, ".yaml"))
		if err != nil {
			return err
		}
		found = append(found, newExample(name, string(b), im))
		return nil
	})
	return found, err
}

func newExample(name, text string, im images) example {
	e := example{name: name, text: im.supply(text)}
	if images := im.lacking(e.text); len(images) > 0 {
		e.leftOut = "needs " + strings.Join(images, ", ")
	} else if m := remote.FindStringSubmatch(e.text); m != nil {
		e.leftOut = "needs the network for its resolver: " + m[1]
	}
	return e
}

// objects are what an example consists of, for a namespace. A generated name gets a fixed end, so
// that it is the same on all sides.
func (e example) objects(namespace string) ([]*unstructured.Unstructured, error) {
	text := defaultNS.ReplaceAllString(e.text, "namespace: "+namespace)
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), 4096)
	var all []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("example %s: %w", e.name, err)
		}
		if len(object.Object) == 0 {
			continue
		}
		object.SetNamespace(namespace)
		if prefix := object.GetGenerateName(); prefix != "" {
			object.SetGenerateName("")
			object.SetName(fmt.Sprintf("%srun%d", prefix, len(all)))
		}
		all = append(all, object)
	}
}

// side is one of the runs of an example: twice without shiplog, once with it.
type side struct {
	prefix  string
	shiplog bool
	facts   facts
	pods    []corev1.Pod
	ns      string
}

// runExamples runs those examples that can run here.
func (c *cluster) runExamples(ctx context.Context, o options, r *report) error {
	examples, err := findExamples(c.module.Dir, c.images)
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards r.outcomes
	var g errgroup.Group
	g.SetLimit(o.parallel)
	for _, e := range examples {
		switch {
		case !o.run.MatchString(e.name):
			continue
		case o.list || e.leftOut != "":
			mu.Lock()
			r.outcomes = append(r.outcomes, outcome{name: e.name, leftOut: e.leftOut})
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			result := c.compareExample(ctx, e, o)
			progress(e.name, result.state())
			mu.Lock()
			defer mu.Unlock()
			r.outcomes = append(r.outcomes, result)
			return nil
		})
	}
	return g.Wait()
}

// noticing are examples that print what docs/transparency.md says a build can notice. Their logs
// are compared with the archive alone.
var noticing = map[string]bool{
	"taskruns/run-steps-as-non-root": true, // its processes
	"taskruns/steps-run-in-order":    true, // the root's folders
}

// normal are the side's facts without what differs in each run.
func (s *side) normal() facts { return s.facts.normalise(s.ns) }

// compareExample runs an example on three sides at once.
func (c *cluster) compareExample(ctx context.Context, e example, o options) outcome {
	off, on := "tekton-off-", "tekton-on-"
	sides := []*side{{prefix: off}, {prefix: off}, {prefix: on, shiplog: true}}
	g, gctx := errgroup.WithContext(ctx)
	for _, s := range sides {
		g.Go(func() error { return c.runExample(gctx, e, s, o) })
	}
	result := outcome{name: e.name, err: g.Wait()}
	if result.err == nil {
		without, again, with := sides[0], sides[1], sides[2]
		result.differs = compare(without.normal(), again.normal(), with.normal())
		if noticing[e.name] {
			result.differs = slices.DeleteFunc(result.differs, func(d difference) bool {
				return strings.HasSuffix(d.what, ": log")
			})
		}
		if without.facts.fields[allEnded] == "false" && again.facts.fields[allEnded] == "false" {
			result.unusable = "it does not end here without shiplog either"
		}
		c.checkArchive(ctx, with, &result)
	}
	if !o.keep {
		for _, s := range sides {
			if s.ns != "" {
				result.err = errors.Join(result.err, c.deleteNamespace(context.WithoutCancel(ctx), s.ns))
			}
		}
	}
	return result
}

// runExample runs an example on one side until all of its runs have ended.
func (c *cluster) runExample(ctx context.Context, e example, s *side, o options) error {
	var err error
	if s.ns, err = c.makeNamespace(ctx, s.prefix, s.shiplog); err != nil {
		return err
	}
	if err := c.addVolumes(ctx, len(claim.FindAllString(e.text, -1))); err != nil {
		return err
	}
	objects, err := e.objects(s.ns)
	if err != nil {
		return err
	}
	runs := 0
	for _, object := range objects {
		if kind := object.GetKind(); kind == "TaskRun" || kind == "PipelineRun" {
			runs++
		}
		if err := c.client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	ended := true
	err = poll(ctx, o.limit, "runs of "+e.name, func(ctx context.Context) (bool, error) {
		return c.runsDone(ctx, s.ns, runs)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		ended, err = false, nil // a fact like others
	}
	if err == nil {
		s.facts, s.pods, err = c.gather(ctx, s.ns)
	}
	if err == nil {
		s.facts.set(fmt.Sprint(ended), allEnded)
	}
	return err
}

const allEnded = "all runs have ended"

// runsDone says whether all runs of a namespace have ended, which are at least those made here.
func (c *cluster) runsDone(ctx context.Context, namespace string, made int) (bool, error) {
	var runs tekton.PipelineRunList
	var tasks tekton.TaskRunList
	in := client.InNamespace(namespace)
	if err := errors.Join(c.client.List(ctx, &runs, in), c.client.List(ctx, &tasks, in)); err != nil {
		return false, err
	}
	for i := range runs.Items {
		if !runs.Items[i].IsDone() {
			return false, nil
		}
	}
	for i := range tasks.Items {
		if !tasks.Items[i].IsDone() {
			return false, nil
		}
	}
	return len(runs.Items)+len(tasks.Items) >= made, nil
}

// checkArchive waits until each captured container's log is verified, and compares it with what the
// kubelet has.
func (c *cluster) checkArchive(ctx context.Context, s *side, o *outcome) {
	for i := range s.pods {
		pod := &s.pods[i]
		if !slices.ContainsFunc(pod.Spec.InitContainers, func(container corev1.Container) bool {
			return container.Name == contract.ShipperContainer
		}) {
			o.skipped = append(o.skipped, pod.Name+": "+pod.Annotations[contract.SkippedAnnotation])
			continue
		}
		for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			what := pod.Name + " " + container.Name
			switch {
			case container.Name == contract.ShipperContainer:
			case !captured(&container):
				o.skipped = append(o.skipped, what+": "+pod.Annotations[contract.SkippedAnnotation])
			case hasRun(pod, container.Name):
				text, err := c.archived(ctx, pod, container.Name)
				if err != nil {
					what += ": archive"
					o.differs = append(o.differs, difference{what, "a verified log", err.Error()})
					continue
				}
				o.verified++
				kubelet := s.facts.logs[what]
				what += ", the archive's beside the kubelet's"
				o.differs = append(o.differs, compareArchive(what, kubelet, text)...)
			}
		}
	}
}

// captured says whether a container's command is shiplog's tee.
func captured(container *corev1.Container) bool {
	return len(container.Command) > 0 && strings.HasPrefix(container.Command[0], contract.TeeMount+"/")
}

// archived is a container's log from the archive, once that is verified: only then is the exit code
// of the CLI 0.
func (c *cluster) archived(
	ctx context.Context, pod *corev1.Pod, container string,
) (string, error) {
	var text string
	var last error
	err := poll(ctx, settleLimit, "the archive", func(ctx context.Context) (bool, error) {
		text, last = c.shiplog(ctx,
			"logs", "-n", pod.Namespace, "--raw", "--container", container, pod.Name)
		return last == nil, nil
	})
	if err != nil {
		return "", errors.Join(err, last)
	}
	return text, nil
}
