//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// TestPage follows the link that a PipelineRun is annotated with, in a real browser: it leads over the login to the log.
func TestPage(t *testing.T) {
	t.Parallel()
	token := readerToken(t, "page", true)
	pr := newPipelineRun(t, nsOn, "page", `
pipelineSpec:
  tasks:
    - {name: build, taskSpec: {steps: [{name: compile, image: busybox, script: "echo '::error::from a real step'; exit 3"}]}}
`, nil)
	var link string
	err := poll(t.Context(), "the link", func(ctx context.Context) (bool, error) {
		var now tekton.PipelineRun
		err := env.client.Get(ctx, client.ObjectKeyFromObject(pr), &now)
		link = now.Annotations[contract.LogsAnnotation]
		return link != "", err
	})
	if err != nil {
		t.Fatal(err)
	}
	finishRun(t, pr)
	sealed(t, nsOn, pr.Name)

	// In the cluster's network, where the Service has its name. Its certificate is signed by shiplog's own CA, which the browser does not know.
	script := "#!/bin/sh\nexec"
	for _, arg := range append(inCluster(t), "chromium") {
		script += " '" + arg + "'"
	}
	wrapper := filepath.Join(t.TempDir(), "chromium")
	if err := os.WriteFile(wrapper, []byte(script+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(wrapper), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("no-proxy-server", true))...)
	defer stop()
	ctx, end := chromedp.NewContext(allocator)
	defer func() {
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("end the browser: %v", err)
		}
		end()
	}()
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	waitFor := func(expression string) chromedp.Action[chromedp.Void] {
		return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			_, err := chromedp.Poll[bool](expression, chromedp.WithPollingInterval(100*time.Millisecond), chromedp.WithPollingTimeout(time.Minute))(ctx, target)
			return chromedp.Void{}, err
		}
	}
	text := ""
	visit := func(actions ...chromedp.Action[chromedp.Void]) error {
		timed, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := chromedp.Do(timed, actions...)
		asked, cancelAsked := context.WithTimeout(ctx, 10*time.Second)
		defer cancelAsked()
		var textErr error
		text, textErr = chromedp.Run(asked, chromedp.Evaluate[string]("location + '\\n' + document.body.innerText"))
		return errors.Join(err, textErr)
	}
	// Other tests take what they can of the machine meanwhile: a page that says that the API server cannot be asked now is loaded again, as a person would.
	err = poll(t.Context(), "the failed step's log in the browser", func(context.Context) (bool, error) {
		err := visit(chromedp.Navigate(link), waitFor(`document.querySelector("#login, #go-failed") !== null`))
		if err == nil && strings.Contains(text, "Log in") {
			err = visit(chromedp.SetValue(`#login input[name="token"]`, token), chromedp.Click("#login button"))
		}
		if err == nil {
			err = visit(chromedp.WaitVisible("#go-failed"), chromedp.Click("#go-failed"), waitFor(`document.querySelector(".row.error")?.innerText.includes("from a real step") === true`))
		}
		if err != nil {
			t.Logf("%v; the page:\n%s", err, text)
		}
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("/ui/%s/%s#step=build/compile", nsOn, pr.UID), pr.Name, "exit 3", "verified", "failed"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}
