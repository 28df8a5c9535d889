package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// suiteLabel is the label of the namespaces that Tekton's tests make.
const suiteLabel = "tekton.dev/test-e2e"

// suite is Tekton's end-to-end suite.
type suite struct {
	dir    string // its sources, where its tests expect to run
	binary string
	tests  []suiteTest
}

type suiteTest struct {
	name    string
	serial  bool   // it changes Tekton's settings, so it runs alone
	leftOut string // why it cannot run here
}

// What tests use that is outside of the cluster, or is not in it.
var outside = []struct {
	pattern *regexp.Regexp
	reason  string
}{
	{regexp.MustCompile(`https://(github|raw\.githubusercontent|hub)\b`), "needs the network"},
	{regexp.MustCompile(`\b[gG]itea[A-Z.]|gitea\.yaml`), "needs Gitea"},
	{regexp.MustCompile(`\b(registry|kaniko|dockerize)Image\b`), "needs an image that is not here"},
	{regexp.MustCompile(`exec\.Command(Context)?\([^)]*"(ko|docker)"`), "needs ko"},
	{regexp.MustCompile(`\bspire\b|enforce-nonfalsifiability": "spire`), "needs SPIRE"},
}

// findTests reads which tests there are and what they use, they or the functions that they call.
func findTests(dir string, im images) ([]suiteTest, error) {
	context := build.Default
	context.BuildTags = []string{"e2e"}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	files := token.NewFileSet()
	functions := map[string]*function{}
	for _, name := range names {
		if ok, err := context.MatchFile(dir, filepath.Base(name)); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(files, name, source, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				text := source[files.Position(f.Pos()).Offset:files.Position(f.End()).Offset]
				functions[f.Name.Name] = &function{
					text: string(text), serial: strings.Contains(commentText(f.Doc), "@test:execution=serial"),
					calls: functionsIn(f),
				}
			}
		}
	}
	var tests []suiteTest
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		if strings.HasPrefix(name, "Test") && name != "TestMain" {
			f := functions[name]
			leftOut := lacks(im, functions, name)
			tests = append(tests, suiteTest{name: name, serial: f.serial, leftOut: leftOut})
		}
	}
	return tests, nil
}

// function is one of the suite's functions.
type function struct {
	text   string
	serial bool
	calls  []string // every name in it
}

func commentText(group *ast.CommentGroup) (text string) {
	if group == nil {
		return ""
	}
	for _, c := range group.List {
		text += c.Text + "\n"
	}
	return text
}

// functionsIn names what may be a function of the package in f, so neither fields nor variables.
func functionsIn(f *ast.FuncDecl) (names []string) {
	var visit func(ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			ast.Inspect(n.X, visit)
			return false
		case *ast.KeyValueExpr:
			if _, field := n.Key.(*ast.Ident); field {
				ast.Inspect(n.Value, visit)
				return false
			}
		case *ast.Ident:
			if n.Obj == nil || n.Obj.Kind == ast.Fun { // nil is of another file
				names = append(names, n.Name)
			}
		}
		return true
	}
	ast.Inspect(f.Body, visit)
	return names
}

// lacks says why a test cannot run here, or nothing.
func lacks(im images, functions map[string]*function, test string) string {
	var text strings.Builder
	seen := map[string]bool{}
	var walk func(name string)
	walk = func(name string) {
		f := functions[name]
		if f == nil || seen[name] {
			return
		}
		seen[name] = true
		text.WriteString(f.text + "\n")
		for _, call := range f.calls {
			walk(call)
		}
	}
	walk(test)
	supplied := comment.ReplaceAllString(im.supply(text.String()), "")
	if images := im.lacking(supplied); len(images) > 0 {
		return "needs " + strings.Join(images, ", ")
	}
	for _, o := range outside {
		if o.pattern.MatchString(supplied) {
			return o.reason
		}
	}
	return ""
}

// buildSuite builds the suite with images that the local registry has. Its binary is kept beside
// the cluster's.
func (c *cluster) buildSuite(ctx context.Context) (*suite, error) {
	s := &suite{dir: filepath.Join(c.module.Dir, "test")}
	var err error
	if s.tests, err = findTests(s.dir, c.images); err != nil {
		return nil, err
	}
	changed, err := changedSources(c.module.Dir, c.images)
	if err != nil {
		return nil, err
	}
	key := sha256.New()
	fmt.Fprintln(key, c.module.Version, runtime.Version())
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		fmt.Fprintln(key, name, len(changed[name]), changed[name])
	}
	cache := filepath.Dir(filepath.Dir(c.vars["CRANE"])) // where the cluster's binaries are
	folder := "tekton-suite-" + hex.EncodeToString(key.Sum(nil))[:16]
	s.binary = filepath.Join(cache, folder, "suite.test")
	if _, err := os.Stat(s.binary); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	// A copy, since go takes no overlay of what is in its module cache.
	work, err := os.MkdirTemp("", "tekton-suite-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, os.DirFS(c.module.Dir)); err != nil {
		return nil, err
	}
	for name, text := range changed {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(os.Stderr, "building Tekton's end-to-end suite (only the first time)\n")
	// The binary appears when it is whole.
	if err := os.MkdirAll(filepath.Dir(s.binary), 0o755); err != nil {
		return nil, err
	}
	half := s.binary + ".half"
	_, err = c.output(ctx, work, "env", "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0",
		"go", "test", "-c", "-trimpath", "-tags", "e2e", "-o", half, "./test")
	if err != nil {
		return nil, fmt.Errorf("build Tekton's end-to-end suite: %w", err)
	}
	return s, os.Rename(half, s.binary)
}

// annotationsMatch is where Tekton's tests compare a run's annotations with those of what it made.
// Each object has shiplog's annotations of its own, as docs/transparency.md says.
const (
	annotationsMatch = "for key, expectedVal := range expectedAnnotations {\n"
	annotationPrefix = "shiplog.dev/"
)

// changedSources are the texts, by the name of their file in the module, of the suite's sources and
// of those that it takes images from, where they differ from the module's.
func changedSources(dir string, im images) (map[string]string, error) {
	changed := map[string]string{}
	rule := false
	for _, root := range []string{"test", "pkg"} {
		err := filepath.WalkDir(filepath.Join(dir, root), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || filepath.Ext(path) != ".go" {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text := im.supply(string(b))
			if root == "test" && strings.Contains(text, annotationsMatch) {
				rule = true
				text = strings.ReplaceAll(text, annotationsMatch, annotationsMatch+
					fmt.Sprintf("\t\tif strings.HasPrefix(key, %q) {\n\t\t\tcontinue\n\t\t}\n",
						annotationPrefix))
			}
			if text == string(b) {
				return nil
			}
			name, err := filepath.Rel(dir, path)
			changed[name] = text
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if !rule {
		return nil, fmt.Errorf("%s: no test compares annotations in the way that is known here", dir)
	}
	return changed, nil
}

// testRun is what came of a test: the state of it and each of its subtests.
type testRun struct {
	states     map[string]string // by name: PASS, FAIL or SKIP
	namespaces []string          // that it made
	file       string            // what it printed
	why        string            // the first line that says why it failed or was skipped
}

var (
	stateLine     = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)
	namespaceLine = regexp.MustCompile(`Create namespace (\S+) to deploy to`)
	reasonLine    = regexp.MustCompile(
		`(?m)^\s+\w+\.go:\d+: (.*(?i:fail|error|skip|expect|timed out|want|wait).*)$`)
)

func parseTest(name, output string) testRun {
	t := testRun{states: map[string]string{}}
	for _, m := range stateLine.FindAllStringSubmatch(output, -1) {
		t.states[m[2]] = m[1]
	}
	if t.states[name] == "" { // it was killed or has panicked
		t.states[name] = "FAIL"
	}
	for _, m := range namespaceLine.FindAllStringSubmatch(output, -1) {
		t.namespaces = append(t.namespaces, m[1])
	}
	if m := reasonLine.FindStringSubmatch(output); m != nil {
		t.why = m[1]
	}
	return t
}

// compareTests returns in which tests and subtests two runs differ.
func compareTests(without, with testRun) []difference {
	names := maps.Clone(without.states)
	maps.Copy(names, with.states)
	var found []difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a, b := without.states[name], with.states[name]; a != b {
			found = append(found, difference{name, a, b})
		}
	}
	return found
}

// runTests runs tests on one side, each in a process of its own: one that hangs or panics is one.
func (c *cluster) runTests(ctx context.Context, s *suite, tests []suiteTest, side string, o options,
	then func(suiteTest, testRun),
) (map[string]testRun, error) {
	if len(tests) == 0 {
		return nil, nil
	}
	if err := c.labelSuite(ctx, side == with); err != nil {
		return nil, err
	}
	logs := filepath.Join(c.root, "bin", "tekton", side)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	runs := map[string]testRun{}
	var mu sync.Mutex // guards runs
	one := func(t suiteTest) error {
		if err := c.addVolumes(ctx, 2); err != nil {
			return err
		}
		run, err := c.runTest(ctx, s, t, filepath.Join(logs, t.name+".log"), o)
		if err != nil {
			return err
		}
		for _, ns := range run.namespaces { // a test that fails leaves its own
			if err := c.deleteNamespace(ctx, ns); err != nil {
				return err
			}
		}
		then(t, run)
		mu.Lock()
		defer mu.Unlock()
		runs[t.name] = run
		return nil
	}
	var g errgroup.Group
	g.SetLimit(o.parallel)
	for _, t := range tests {
		if !t.serial {
			g.Go(func() error { return one(t) })
		}
	}
	if err := g.Wait(); err != nil {
		return runs, err
	}
	for _, t := range tests {
		if t.serial {
			// What it has changed it does not always change back.
			if err := errors.Join(one(t), c.set(ctx, c.settings)); err != nil {
				return runs, err
			}
		}
	}
	return runs, nil
}

func (c *cluster) runTest(
	ctx context.Context, s *suite, t suiteTest, file string, o options,
) (testRun, error) {
	limited, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	var output bytes.Buffer
	cmd := exec.CommandContext(limited, s.binary,
		"-test.v", "-test.run", "^"+t.name+"$", "-kubeconfig", c.vars["KUBECONFIG"])
	cmd.Dir = s.dir
	path := filepath.Dir(c.vars["KUBECTL"]) + ":" + os.Getenv("PATH")
	cmd.Env = append(c.environ(), "SYSTEM_NAMESPACE=tekton-pipelines", "PATH="+path)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return testRun{}, ctx.Err()
	}
	if err := os.WriteFile(file, output.Bytes(), 0o600); err != nil {
		return testRun{}, err
	}
	run := parseTest(t.name, output.String())
	run.file = file
	if limited.Err() != nil {
		run.why = "it did not end in " + o.limit.String()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && limited.Err() == nil {
		return run, fmt.Errorf("run %s: %w", t.name, err)
	}
	return run, nil
}

// The sides of the suite, which are the names of folders too.
const (
	without      = "without"
	with         = "with"
	withoutAgain = "without-again"
)

// runSuite runs those of the suite's tests that can run here: all without shiplog, then those that
// pass with it, and then without it again those that differ.
func (c *cluster) runSuite(ctx context.Context, o options, r *report) (err error) {
	s, err := c.buildSuite(ctx)
	if err != nil {
		return err
	}
	var tests []suiteTest
	for _, t := range s.tests {
		switch {
		case !o.run.MatchString(t.name):
		case o.list || t.leftOut != "":
			r.outcomes = append(r.outcomes, outcome{name: t.name, leftOut: t.leftOut})
		default:
			tests = append(tests, t)
		}
	}
	if len(tests) == 0 {
		return nil
	}
	defer func() { err = errors.Join(err, c.labelSuite(context.WithoutCancel(ctx), false)) }()
	outcomes := map[string]*outcome{}
	var mu sync.Mutex // guards outcomes
	first, err := c.runTests(ctx, s, tests, without, o, func(t suiteTest, run testRun) {
		result := &outcome{name: t.name}
		switch state := run.states[t.name]; state {
		case "PASS":
		case "SKIP":
			result.unusable = "it skips itself: " + run.why
		default:
			result.unusable = "it fails here without shiplog too: " + run.why
		}
		progress(t.name, "without shiplog: "+run.states[t.name])
		mu.Lock()
		defer mu.Unlock()
		outcomes[t.name] = result
	})
	if err != nil {
		return err
	}
	tests = slices.DeleteFunc(tests, func(t suiteTest) bool { return outcomes[t.name].unusable != "" })
	var differ []suiteTest
	_, err = c.runTests(ctx, s, tests, with, o, func(t suiteTest, run testRun) {
		var found outcome
		found.name = t.name
		found.differs = compareTests(first[t.name], run)
		differs := len(found.differs) > 0
		if differs {
			printed := difference{"what it printed", first[t.name].file, run.file}
			found.differs = append(found.differs, printed)
		}
		found.err = c.verifyAll(ctx, run.namespaces, &found)
		progress(t.name, found.state())
		mu.Lock()
		defer mu.Unlock()
		*outcomes[t.name] = found
		if differs {
			differ = append(differ, t)
		}
	})
	if err != nil {
		return err
	}
	_, err = c.runTests(ctx, s, differ, withoutAgain, o, func(t suiteTest, run testRun) {
		mu.Lock()
		defer mu.Unlock()
		result := outcomes[t.name]
		noise := map[string]bool{}
		for _, d := range compareTests(first[t.name], run) {
			noise[d.what] = true
		}
		result.differs = slices.DeleteFunc(result.differs, func(d difference) bool {
			return noise[d.what]
		})
		if len(result.differs) == 1 { // only where to read what it printed
			result.differs, result.unusable = nil, "without shiplog it is not always the same either"
		}
	})
	for _, result := range outcomes {
		r.outcomes = append(r.outcomes, *result)
	}
	return err
}

// verifyAll verifies every log of the runs of namespaces that are being deleted. It waits until
// they are gone: then nothing more comes.
func (c *cluster) verifyAll(ctx context.Context, namespaces []string, o *outcome) error {
	for _, ns := range namespaces {
		what := "namespace " + ns + " to be deleted"
		err := poll(ctx, settleLimit, what, func(ctx context.Context) (bool, error) {
			err := c.client.Get(ctx, client.ObjectKey{Name: ns}, &corev1.Namespace{})
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		})
		if err != nil {
			return err
		}
		out, err := c.shiplog(ctx, "ls", "-n", ns, "--limit", "0", "-o", "json")
		if err != nil {
			return err
		}
		decoder := json.NewDecoder(strings.NewReader(out))
		for decoder.More() {
			var run struct{ Name string }
			if err := decoder.Decode(&run); err != nil {
				return fmt.Errorf("runs of %s: %w", ns, err)
			}
			if err := c.verifyRun(ctx, ns, run.Name, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// onPurpose are the reasons, as "shiplog verify" names them, for which a pod is left alone so that
// its build is not harmed.
var onPurpose = []string{"results-at-risk"}

// emptyLimit is how long a run without any log is asked for: most such had no pod.
const emptyLimit = 15 * time.Second

// verifyRun waits until every log of a run is verified. One that never is, is a difference.
func (c *cluster) verifyRun(ctx context.Context, namespace, name string, o *outcome) error {
	var v verification
	var last error
	begin := time.Now()
	err := poll(ctx, settleLimit, "the archive", func(ctx context.Context) (bool, error) {
		var out string
		out, last = c.shiplog(ctx, "verify", "-n", namespace, name)
		v = parseVerify(out)
		some := v.verified+len(v.notCaptured) > 0
		return len(v.other) == 0 && (last == nil || some || time.Since(begin) > emptyLimit), nil
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	o.verified += v.verified
	o.skipped = append(o.skipped, v.notCaptured...)
	what := "archive of " + namespace + "/" + name
	if v.verified+len(v.notCaptured)+len(v.other) == 0 && last != nil {
		o.skipped = append(o.skipped, what+": "+last.Error())
	}
	for _, line := range v.other {
		o.differs = append(o.differs, difference{what, "a verified log", line})
	}
	return nil
}

// verification is what "shiplog verify" says of a run's logs.
type verification struct {
	verified    int
	notCaptured []string // each with its reason, and what is missed on purpose
	other       []string
}

func parseVerify(out string) (v verification) {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		_, status, _ := strings.Cut(line, "  ")
		switch status = strings.TrimSpace(status); {
		case line == "":
		case strings.HasPrefix(status, "verified "):
			v.verified++
		case strings.HasPrefix(status, "not captured "),
			strings.HasPrefix(status, "missed ") && slices.ContainsFunc(onPurpose, func(why string) bool {
				return strings.HasSuffix(status, ": "+why)
			}):
			v.notCaptured = append(v.notCaptured, line)
		default:
			v.other = append(v.other, line)
		}
	}
	return v
}

// labelSuite has the namespaces of the suite made with shiplog's label, or no longer. It waits
// until that is so.
func (c *cluster) labelSuite(ctx context.Context, on bool) error {
	name := "shiplog-tekton-tests"
	policy := &admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	binding := &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, object := range []client.Object{binding, policy} {
		if err := c.client.Delete(ctx, object); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	if on {
		fail, never := admissionv1.Fail, admissionv1.NeverReinvocationPolicy
		namespaces := admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule: admissionv1.Rule{
				APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"namespaces"},
			},
		}
		policy.Labels = map[string]string{runLabel: "true"}
		policy.Spec = admissionv1.MutatingAdmissionPolicySpec{
			FailurePolicy: &fail, ReinvocationPolicy: never,
			MatchConstraints: &admissionv1.MatchResources{
				ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: namespaces}},
			},
			MatchConditions: []admissionv1.MatchCondition{{
				Name:       "of-the-suite",
				Expression: fmt.Sprintf("%q in object.metadata.?labels.orValue({})", suiteLabel),
			}},
			Mutations: []admissionv1.Mutation{{
				PatchType: admissionv1.PatchTypeApplyConfiguration,
				ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: fmt.Sprintf(
					"Object{metadata: Object.metadata{labels: {%q: %q}}}",
					contract.InjectKey, contract.InjectEnabled,
				)},
			}},
		}
		binding.Spec = admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name}
		for _, object := range []client.Object{policy, binding} {
			if err := c.client.Create(ctx, object); err != nil {
				return fmt.Errorf("label the suite's namespaces: %w", err)
			}
		}
	}
	what := "the label of the suite's namespaces"
	return poll(ctx, settleLimit, what, func(ctx context.Context) (bool, error) {
		probe := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			GenerateName: "tekton-probe-", Labels: map[string]string{suiteLabel: "true"},
		}}
		if err := c.client.Create(ctx, probe, client.DryRunAll); err != nil {
			return false, err
		}
		return (probe.Labels[contract.InjectKey] == contract.InjectEnabled) == on, nil
	})
}
