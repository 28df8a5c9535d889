package main

import (
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// hostileNames are what no object in Kubernetes can be named. The API server does not check the names in an owner reference, which a tenant types.
var hostileNames = map[string]string{
	"dot": ".", "dots": "..", "dots and slashes": "../../other/taskruns/theirs", "slash": "a/b", "leading slash": "/a", "encoded slash": "a%2fb", "encoded dots": "%2e%2e", "encoded twice": "%252e%252e",
	"backslash": `..\..\x`, "question mark": "a?watch=true", "hash": "a#b", "NUL": "a\x00b", "newline": "a\nb", "space": "a b", "upper case": "Build", "underscore": layout.NoPipelineRun,
	"unicode": "bücher", "fullwidth dots": "．．", "not UTF-8": "a\xff", "dots inside": "a..b", "trailing dot": "a.", "254 characters": strings.Repeat("a", 254), "form field": "${filename}",
}

// hostilePlaces are where such a name can come from. Each makes a world that is in order apart from it.
var hostilePlaces = map[string]func(f *fakeAPI, name string){
	"namespace of the token": func(f *fakeAPI, name string) {
		f.review.User.Username = "system:serviceaccount:" + name + ":builder"
		for _, at := range []string{podPath, taskRunPath, pipelineRunPath} {
			f.at(at, "metadata")["namespace"] = name
			f.objects[strings.Replace(at, "/team/", "/"+name+"/", 1)] = f.objects[at]
		}
	},
	"pod of the token": func(f *fakeAPI, name string) {
		f.review.User.Extra[podNameExtra] = authenticationv1.ExtraValue{name}
		f.at(podPath, "metadata")["name"] = name
		f.objects[path.Dir(podPath)+"/"+name] = f.objects[podPath]
	},
	"pod's own name":  func(f *fakeAPI, name string) { f.at(podPath, "metadata")["name"] = name },
	"pod's namespace": func(f *fakeAPI, name string) { f.at(podPath, "metadata")["namespace"] = name },
	"pod UID": func(f *fakeAPI, uid string) {
		f.review.User.Extra[podUIDExtra] = authenticationv1.ExtraValue{uid}
		f.at(podPath, "metadata")["uid"] = uid
	},
	"TaskRun":         ownerField(podPath, taskRunPath, "name"),
	"TaskRun UID":     ownerField(podPath, taskRunPath, "uid"),
	"PipelineRun":     ownerField(taskRunPath, pipelineRunPath, "name"),
	"PipelineRun UID": ownerField(taskRunPath, pipelineRunPath, "uid"),
}

// ownerField is the place of an owner's name or UID, which stands in the owner itself and where the object that it owns refers to it.
func ownerField(ownedPath, ownerPath, field string) func(f *fakeAPI, name string) {
	return func(f *fakeAPI, name string) {
		f.ownerRef(ownedPath)[field] = name
		f.at(ownerPath, "metadata")[field] = name
		if field == "name" {
			f.objects[path.Dir(ownerPath)+"/"+name] = f.objects[ownerPath]
		}
	}
}

// No name becomes a part of an object's name that could be a path, wherever it comes from; and it is the asker's fault, not the cluster's.
func TestTicketHostileNames(t *testing.T) {
	for place, world := range hostilePlaces {
		for what, name := range hostileNames {
			if strings.HasSuffix(place, "UID") && what == "upper case" {
				continue // a UID can be
			}
			t.Run(place+"/"+what, func(t *testing.T) {
				api, store := newFakeAPI(), &memoryStore{}
				world(api, name)
				s := startService(t, api, store)
				w := s.ask(t)
				if w.Code != http.StatusForbidden && w.Code != http.StatusUnauthorized {
					t.Errorf("status %d: %s\n%s", w.Code, w.Body, s.log)
				}
				if len(store.signed) > 0 || len(store.puts) > 0 {
					t.Errorf("signed %q, wrote %q", store.signed, store.puts)
				}
				for _, request := range api.requests {
					if _, at, _ := strings.Cut(request, " "); at != path.Clean(at) {
						t.Errorf("asked the API server for %q", request)
					}
				}
			})
		}
	}
}

// The names at the edge of what Kubernetes allows, through the same places.
func TestTicketLongestNames(t *testing.T) {
	for place, name := range map[string]string{
		"pod of the token": strings.Repeat("p", 253), "TaskRun": strings.Repeat("t", 253), "PipelineRun": strings.Repeat("r", 253), "namespace of the token": strings.Repeat("n", 63),
		"TaskRun UID": strings.Repeat("1", 64), "PipelineRun UID": strings.Repeat("2", 64), "pod UID": strings.Repeat("3", 64),
	} {
		t.Run(place, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{}
			hostilePlaces[place](api, name)
			s := startService(t, api, store)
			if w := s.ask(t); w.Code != http.StatusOK {
				t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
			namesAreGood(t, store)
		})
	}
}

// namesAreGood fails the test unless every object that was written, and every prefix that was signed, has a name that a reader takes for what it is.
func namesAreGood(t *testing.T, store *memoryStore) {
	t.Helper()
	for _, key := range store.puts {
		_, err := layout.ParseKey(key)
		if strings.HasPrefix(key, layout.IndexVersion+"/") {
			_, runErr := layout.ParseRunIndexKey(key)
			_, _, _, podErr := layout.ParsePodIndexKey(key)
			_, _, uidErr := layout.ParseUIDIndexKey(key)
			if runErr == nil || podErr == nil || uidErr == nil {
				err = nil
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
	for _, prefix := range store.signed {
		if _, err := layout.ParseKey(prefix + layout.PodFile); err != nil {
			t.Error(err)
		}
	}
	if len(store.puts) == 0 || len(store.signed) == 0 {
		t.Errorf("wrote %q, signed %q", store.puts, store.signed)
	}
}

// A tenant who may make pods or TaskRuns can write any owner reference into them. Within the namespace that puts a pod's log under a run that is not its own, beside what is there: never into another
// pod's log, and with no other record of the run than its own pods write. Nothing leads to another namespace.
func TestTicketForgedOwners(t *testing.T) {
	const (
		otherPod, otherUID   = "evil-pod", "99999999-9999-4999-8999-999999999999"
		otherRun, otherRunID = "evil", "88888888-8888-4888-8888-888888888888"
	)
	honest := &memoryStore{}
	if w := startService(t, newFakeAPI(), honest).ask(t); w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	// evil is a pod of the tenant's own in a namespace, as the API server has it.
	evil := func(f *fakeAPI, namespace string) object {
		f.review.User.Username = "system:serviceaccount:" + namespace + ":builder"
		f.review.User.Extra = map[string]authenticationv1.ExtraValue{podNameExtra: {otherPod}, podUIDExtra: {otherUID}}
		pod := maps.Clone(f.objects[podPath])
		meta := maps.Clone(pod["metadata"].(object))
		meta["name"], meta["namespace"], meta["uid"] = otherPod, namespace, otherUID
		pod["metadata"] = meta
		f.objects["/api/v1/namespaces/"+namespace+"/pods/"+otherPod] = pod
		return meta
	}
	controller := func(kind, name, uid string) []any {
		return []any{object{"apiVersion": "tekton.dev/v1", "kind": kind, "name": name, "uid": uid, "controller": true}}
	}
	for _, c := range []struct {
		name   string
		world  func(f *fakeAPI)
		prefix string // none: refused
	}{
		{"pod that claims a TaskRun of another's", func(f *fakeAPI) { evil(f, "team") }, "v1/team/build-7/" + pipelineRunUID + "/build-7-compile/" + otherUID + "/"},
		{"TaskRun of the tenant's that claims a PipelineRun of another's", func(f *fakeAPI) {
			evil(f, "team")["ownerReferences"] = controller("TaskRun", otherRun, otherRunID)
			f.objects["/apis/tekton.dev/v1/namespaces/team/taskruns/"+otherRun] = object{
				"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
				"metadata": object{"name": otherRun, "namespace": "team", "uid": otherRunID, "creationTimestamp": "2026-03-04T05:06:08Z", "ownerReferences": controller("PipelineRun", "build-7", pipelineRunUID)},
			}
		}, "v1/team/build-7/" + pipelineRunUID + "/" + otherRun + "/" + otherUID + "/"},
		{"pod that claims a TaskRun of another namespace", func(f *fakeAPI) { evil(f, "other") }, ""},
		{"pod that names another namespace in its labels and annotations", func(f *fakeAPI) {
			meta := evil(f, "other")
			meta["labels"] = object{"tekton.dev/taskRun": "build-7-compile", "tekton.dev/pipelineRun": "build-7", "tekton.dev/namespace": "team"}
			meta["annotations"] = object{"tekton.dev/namespace": "team"}
		}, ""},
		{"TaskRun that claims a PipelineRun of another namespace", func(f *fakeAPI) {
			evil(f, "other")["ownerReferences"] = controller("TaskRun", otherRun, otherRunID)
			f.objects["/apis/tekton.dev/v1/namespaces/other/taskruns/"+otherRun] = object{
				"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
				"metadata": object{"name": otherRun, "namespace": "other", "uid": otherRunID, "ownerReferences": controller("PipelineRun", "build-7", pipelineRunUID)},
			}
		}, ""},
		{"owner reference with a namespace", func(f *fakeAPI) {
			ref := controller("TaskRun", "build-7-compile", taskRunUID)
			ref[0].(object)["namespace"] = "team"
			evil(f, "other")["ownerReferences"] = ref
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{}
			c.world(api)
			s := startService(t, api, store)
			w := s.ask(t)
			if c.prefix == "" {
				if w.Code != http.StatusForbidden || len(store.puts) > 0 || len(store.signed) > 0 {
					t.Errorf("status %d: %s; wrote %q, signed %q", w.Code, w.Body, store.puts, store.signed)
				}
				if i := slices.IndexFunc(api.requests, func(r string) bool { return strings.Contains(r, "/team/") }); i >= 0 {
					t.Errorf("asked for %q, which is of another namespace", api.requests[i])
				}
				return
			}
			tk, err := ticket.Decode(w.Body.Bytes())
			if w.Code != http.StatusOK || err != nil || tk.Prefix != c.prefix {
				t.Fatalf("status %d, prefix %q, want %q: %s\n%s", w.Code, tk.Prefix, c.prefix, w.Body, s.log)
			}
			for key, body := range store.objects {
				was, there := honest.objects[key]
				switch {
				case there && body != was:
					t.Errorf("%s is overwritten with %s, was %s", key, body, was)
				case !there && !strings.Contains(key, otherUID) && !strings.Contains(key, otherRunID):
					t.Errorf("%s is new, and not of the tenant's own pod or TaskRun", key)
				case strings.Contains(key, podUID):
					t.Errorf("%s is another pod's", key)
				}
			}
			namesAreGood(t, store)
		})
	}
}

// FuzzTicketNames: whatever the API server says of a pod and its owners, there is either no ticket and nothing written, or every name is one that a reader takes for what it is, under the namespace of
// the token.
func FuzzTicketNames(f *testing.F) {
	f.Add("team", "pod", podUID, "task", taskRunUID, "run", pipelineRunUID, true)
	f.Add("team", "..", "..", "../../x", "a/b", "_", "%2e%2e", true)
	f.Add("a", strings.Repeat("a", 253), "1", "a.b", "2", "", "", false)
	f.Fuzz(func(t *testing.T, namespace, podName, podID, taskRun, taskRunID, run, runID string, inRun bool) {
		api, store := newFakeAPI(), &memoryStore{}
		pod, task, pipeline := api.objects[podPath], api.objects[taskRunPath], api.objects[pipelineRunPath]
		api.objects = map[string]object{
			"/api/v1/namespaces/" + namespace + "/pods/" + podName:                 pod,
			"/apis/tekton.dev/v1/namespaces/" + namespace + "/taskruns/" + taskRun: task,
			"/apis/tekton.dev/v1/namespaces/" + namespace + "/pipelineruns/" + run: pipeline,
		}
		for o, names := range map[*object][2]string{&pod: {podName, podID}, &task: {taskRun, taskRunID}, &pipeline: {run, runID}} {
			meta := (*o)["metadata"].(object)
			meta["namespace"], meta["name"], meta["uid"] = namespace, names[0], names[1]
		}
		ref := func(o object) object { return o["metadata"].(object)["ownerReferences"].([]any)[1].(object) }
		ref(pod)["name"], ref(pod)["uid"] = taskRun, taskRunID
		ref(task)["name"], ref(task)["uid"] = run, runID
		if !inRun {
			delete(task["metadata"].(object), "ownerReferences")
		}
		api.review.User.Username = "system:serviceaccount:" + namespace + ":builder"
		api.review.User.Extra = map[string]authenticationv1.ExtraValue{podNameExtra: {podName}, podUIDExtra: {podID}}
		s := startService(t, api, store)
		w := s.ask(t)
		if w.Code != http.StatusOK {
			if len(store.puts) > 0 || len(store.signed) > 0 {
				t.Errorf("status %d, wrote %q, signed %q", w.Code, store.puts, store.signed)
			}
			if w.Code >= 500 {
				t.Errorf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
			return
		}
		namesAreGood(t, store)
		for _, key := range append(slices.Clone(store.puts), store.signed...) {
			if !strings.HasPrefix(key, layout.NamespacePrefix(namespace)) && !strings.HasPrefix(key, layout.IndexVersion+"/"+namespace+"/") {
				t.Errorf("%q is not of namespace %q", key, namespace)
			}
		}
	})
}
