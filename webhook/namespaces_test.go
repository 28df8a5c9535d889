package main

import (
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// ownSettings are the settings of the namespace team-a, which has the annotations.
func ownSettings(t *testing.T, defaults settings,
	annotations map[string]string) func(string) (settings, error) {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"}) // is not asked
	if err != nil {
		t.Fatal(err)
	}
	n := newNamespaces(client, defaults, func(string) {}, slog.New(slog.DiscardHandler))
	kept, err := slimNamespace(&corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: "team-a", Annotations: annotations},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.store.Add(kept); err != nil {
		t.Fatal(err)
	}
	return n.own
}

func TestSettingsOfNamespace(t *testing.T) {
	for name, tc := range map[string]struct {
		defaults    func(*settings)
		annotations map[string]string
		want        func(*settings) // the change to the defaults, if there is no error
		err         []string        // parts of it; nil: none
	}{
		"none": {nil, nil, func(*settings) {}, nil},
		"others' annotations": {
			nil, map[string]string{"shiplog.dev/image": "x", "spool-limit": "1"}, func(*settings) {}, nil,
		},
		"all": {nil, map[string]string{
			contract.SpoolLimitAnnotation: "128Mi", contract.FlushIntervalAnnotation: "10s",
			contract.CPURequestAnnotation: "50m", contract.CPULimitAnnotation: "500m",
			contract.MemoryRequestAnnotation: "64Mi", contract.MemoryLimitAnnotation: "128Mi",
		}, func(s *settings) {
			s.spoolLimit, s.flushInterval, s.slowFlushInterval = 128<<20, 10*time.Second, 10*time.Second
			s.cpuRequest, s.cpuLimit = resource.MustParse("50m"), resource.MustParse("500m")
			s.memoryRequest, s.memoryLimit = resource.MustParse("64Mi"), resource.MustParse("128Mi")
		}, nil},
		"slow interval stays": {
			nil, map[string]string{contract.FlushIntervalAnnotation: "3s"},
			func(s *settings) { s.flushInterval = 3 * time.Second }, nil,
		},
		"least and most": {nil, map[string]string{
			contract.SpoolLimitAnnotation: "64Mi", contract.FlushIntervalAnnotation: "1m",
			contract.CPURequestAnnotation: "1m", contract.CPULimitAnnotation: "100m",
			contract.MemoryRequestAnnotation: "1Gi", contract.MemoryLimitAnnotation: "1Gi",
		}, func(s *settings) {
			s.spoolLimit, s.flushInterval, s.slowFlushInterval = 64<<20, time.Minute, time.Minute
			s.cpuRequest, s.cpuLimit = resource.MustParse("1m"), resource.MustParse("100m")
			s.memoryRequest, s.memoryLimit = resource.MustParse("1Gi"), resource.MustParse("1Gi")
		}, nil},
		"more spool than the default": {
			nil, map[string]string{contract.SpoolLimitAnnotation: "1025Mi"}, nil,
			[]string{contract.SpoolLimitAnnotation, "64Mi", "1Gi"},
		},
		"more spool where the operator allows it": {
			func(s *settings) { s.maxSpoolLimit = 4 << 30 },
			map[string]string{contract.SpoolLimitAnnotation: "4Gi"},
			func(s *settings) { s.spoolLimit = 4 << 30 }, nil,
		},
		"more spool than the operator allows": {
			func(s *settings) { s.maxSpoolLimit = 4 << 30 },
			map[string]string{contract.SpoolLimitAnnotation: "4097Mi"}, nil, []string{"4Gi"},
		},
		"spool that is of no use": {
			nil, map[string]string{contract.SpoolLimitAnnotation: "63Mi"}, nil, []string{"64Mi"},
		},
		"a small spool is the operator's": {
			func(s *settings) { s.spoolLimit = 16 << 20 },
			map[string]string{contract.SpoolLimitAnnotation: "16Mi"}, func(*settings) {}, nil,
		},
		"spool below a segment": {
			func(s *settings) { s.segmentBytes = 128 << 20 },
			map[string]string{contract.SpoolLimitAnnotation: "127Mi"}, nil, []string{"128Mi"},
		},
		"faster than the operator": {
			nil, map[string]string{contract.FlushIntervalAnnotation: "999ms"}, nil,
			[]string{contract.FlushIntervalAnnotation, "1s", "1m0s"},
		},
		"too slow": {
			nil, map[string]string{contract.FlushIntervalAnnotation: "61s"}, nil, []string{"1m0s"},
		},
		"as slow as the operator": {
			func(s *settings) { s.flushInterval, s.slowFlushInterval = time.Hour, time.Hour },
			map[string]string{contract.FlushIntervalAnnotation: "1h"}, func(*settings) {}, nil,
		},
		"no duration": {
			nil, map[string]string{contract.FlushIntervalAnnotation: "5"}, nil, []string{`"5"`},
		},
		"no quantity": {
			nil, map[string]string{contract.CPULimitAnnotation: "$(X)"}, nil, []string{`"$(X)"`},
		},
		"empty": {
			nil, map[string]string{contract.SpoolLimitAnnotation: ""}, nil,
			[]string{contract.SpoolLimitAnnotation},
		},
		"negative": {
			nil, map[string]string{contract.CPURequestAnnotation: "-1"}, nil,
			[]string{contract.CPURequestAnnotation},
		},
		"no request": {
			nil, map[string]string{contract.CPURequestAnnotation: "0"}, nil,
			[]string{contract.CPURequestAnnotation},
		},
		"request above the limit": {
			nil, map[string]string{contract.MemoryRequestAnnotation: "65Mi"}, nil,
			[]string{contract.MemoryRequestAnnotation, "the limit 64Mi"},
		},
		"limit below the request": {
			nil, map[string]string{
				contract.CPURequestAnnotation: "300m", contract.CPULimitAnnotation: "200m",
			}, nil, []string{contract.CPURequestAnnotation, "the limit 200m"},
		},
		"memory that it is killed with": {
			nil, map[string]string{contract.MemoryLimitAnnotation: "31Mi"}, nil,
			[]string{contract.MemoryLimitAnnotation, "32Mi"},
		},
		"memory request that a LimitRange could make the limit": {
			nil, map[string]string{contract.MemoryRequestAnnotation: "8Mi"}, nil, []string{"32Mi"},
		},
		"too little CPU": {
			nil, map[string]string{contract.CPULimitAnnotation: "99m"}, nil, []string{"100m"},
		},
		"fits on no node": {nil, map[string]string{
			contract.CPURequestAnnotation: "1000", contract.CPULimitAnnotation: "1000",
			contract.MemoryRequestAnnotation: "1Ti", contract.MemoryLimitAnnotation: "1Ti",
		}, nil, []string{contract.CPULimitAnnotation, contract.MemoryLimitAnnotation, "1Gi"}},
		"as large as the operator's": {
			func(s *settings) {
				s.cpuLimit, s.memoryLimit = resource.MustParse("8"), resource.MustParse("2Gi")
			}, map[string]string{
				contract.CPULimitAnnotation: "8", contract.MemoryLimitAnnotation: "2Gi",
			}, func(*settings) {}, nil,
		},
		"one that is bad spoils all": {nil, map[string]string{
			contract.SpoolLimitAnnotation: "128Mi", contract.FlushIntervalAnnotation: "x",
		}, nil, []string{contract.FlushIntervalAnnotation}},
		"every fault is told": {nil, map[string]string{
			contract.SpoolLimitAnnotation: "1", contract.FlushIntervalAnnotation: "1ms",
		}, nil, []string{contract.SpoolLimitAnnotation, contract.FlushIntervalAnnotation}},
	} {
		t.Run(name, func(t *testing.T) {
			defaults := testSettings()
			if tc.defaults != nil {
				tc.defaults(&defaults)
			}
			want := defaults
			if tc.want != nil {
				tc.want(&want)
			}
			got, err := ownSettings(t, defaults, tc.annotations)("team-a")
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(settings{})); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if (err != nil) != (tc.err != nil) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			for _, part := range tc.err {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %v, want %q in it", err, part)
				}
			}
			if err := got.validate(); err != nil {
				t.Errorf("the settings are not valid: %v", err)
			}
			other, err := ownSettings(t, defaults, tc.annotations)("team-b")
			if diff := cmp.Diff(defaults, other, cmp.AllowUnexported(settings{})); diff != "" ||
				err != nil {
				t.Errorf("of a namespace that is not known: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// namespacesAreFollowed: what is annotated on a namespace holds for its next pod, and what is wrong
// with it is said once in a place where people look.
func namespacesAreFollowed(t *testing.T, api realAPI) {
	const namespace = "own-settings"
	api.namespace(t, namespace)
	api.label(t, namespace, contract.InjectKey, contract.InjectEnabled)
	client, err := kubernetes.NewForConfig(api.asWebhook(t))
	if err != nil {
		t.Fatal(err)
	}
	var replicas [2]*namespaces
	var logs [2]strings.Builder
	for i := range replicas {
		replicas[i] = newNamespaces(client, testSettings(), func(string) {},
			slog.New(slog.NewTextHandler(&logs[i], nil)))
	}
	stop := beside(t, replicas[0].run, replicas[1].run)
	defer stop()
	for _, n := range replicas {
		until(t, "the namespace in the watch",
			func() bool { return n.informer.HasSynced() && n.injects(namespace) })
	}
	p := newTestAdmission()
	p.settings = replicas[1].own
	annotate := func(annotations map[string]any) {
		t.Helper()
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"annotations": annotations},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = api.Core.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType,
			patch, metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	// admit returns the spool limit and the flush interval of a pod, and the warnings.
	admit := func() (limit int64, flush time.Duration, warnings []string) {
		t.Helper()
		raw := podWith("", "")
		req := creation(raw)
		req.Namespace = namespace
		resp := p.Handle(t.Context(), admission.Request{AdmissionRequest: req})
		pod, err := decodePod(apply(t, raw, resp.Patches))
		if err != nil {
			t.Fatal(err)
		}
		i := injectedShipper(pod)
		if i < 0 {
			t.Fatalf("the pod is not injected: %+v", resp)
		}
		config, err := contract.Decode(pod.Spec.InitContainers[i].Env[0].Value)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range placedContainers(&pod.Spec) {
			if slices.Equal(c.Command, []string{contract.TeePath}) {
				tee, err := contract.ParseTee(c.Args)
				if err != nil {
					t.Fatal(err)
				}
				limit = tee.Limit
			}
		}
		return limit, time.Duration(config.FlushInterval), resp.Warnings
	}
	expect := func(what string, limit int64, flush time.Duration, warning string) {
		t.Helper()
		until(t, what, func() bool {
			l, f, w := admit()
			warned := strings.Join(w, "\n")
			return l == limit && f == flush && (warned == "") == (warning == "") &&
				strings.Contains(warned, warning)
		})
	}
	expect("the defaults", 1<<30, time.Second, "")
	annotate(map[string]any{
		contract.SpoolLimitAnnotation: "128Mi", contract.FlushIntervalAnnotation: "7s",
	})
	expect("the annotations", 128<<20, 7*time.Second, "")
	annotate(map[string]any{contract.SpoolLimitAnnotation: "2Gi"})
	expect("the defaults in the place of bad annotations", 1<<30, time.Second,
		contract.SpoolLimitAnnotation)
	var events *corev1.EventList
	until(t, "an event in the namespace", func() bool {
		events, err = api.Core.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(events.Items) > 0
	})
	annotate(map[string]any{"example.com/other": "x"}) // is nothing new of these settings
	annotate(map[string]any{contract.SpoolLimitAnnotation: nil})
	expect("what is left of the annotations", 1<<30, 7*time.Second, "")
	api.label(t, namespace, contract.InjectKey, "off")
	expect("the defaults where it is off", 1<<30, time.Second, "")

	for _, n := range replicas { // what it is told of it hears in order
		until(t, "every replica to be there", func() bool { return !n.injects(namespace) })
	}
	stop() // nothing more is said
	events, err = api.Core.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]int{}
	for _, e := range events.Items {
		if strings.Contains(e.Message, contract.SpoolLimitAnnotation) {
			said[e.InvolvedObject.Kind+" "+e.InvolvedObject.Name+" "+e.Reason]++
		}
	}
	if want := map[string]int{"Namespace " + namespace + " ShiplogSettings": 1}; !maps.Equal(
		said, want) {
		t.Errorf("events %v, want one of both replicas: %v", said, want)
	}
	for i := range logs {
		if n := strings.Count(logs[i].String(), "cannot be used"); n != 1 {
			t.Errorf("replica %d has %d lines in its log, want one:\n%s", i, n, logs[i].String())
		}
	}
}
