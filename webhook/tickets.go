package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// uploadStore is what the ticket service needs of package objectstore.
type uploadStore interface {
	Put(ctx context.Context, key string, body []byte) error
	SignUpload(ctx context.Context, prefix string, maxBytes int64, lifetime time.Duration) (ticket.Ticket, error)
	SignDownload(ctx context.Context, key string, lifetime time.Duration) (string, error)
}

// ticketConfig configures the ticket service. Only REST and Store have no default.
type ticketConfig struct {
	REST  *rest.Config
	Store uploadStore
	// Lifetime of a ticket; 0 means 6 hours. The store shortens it where its own credentials end before.
	Lifetime time.Duration
	// MaxBytes is the size of the largest object; 0 means 64 MiB.
	MaxBytes int64
	// Concurrency is the number of requests that are worked on at once; 0 means 64. Others wait, for as long as Timeout.
	Concurrency int
	// Doubtful is the number of those of which it is not known whether the API server has signed
	// their token. 0 means 8. No more than doubtfulRate of them begin in a second.
	Doubtful int
	// Burst is how many requests one pod may make at once; 0 means 10. Then it may make one in
	// podInterval: a shipper needs one in some hours.
	Burst int
	// Timeout bounds a request; 0 means 20 seconds.
	Timeout time.Duration
	// Known, if not nil, is what is known of a PipelineRun or TaskRun already, or nil. What it does not know is asked for.
	Known func(runKey) *runObject
	// Issued, if not nil, hears of the pod of each ticket. It must not wait: the answer does.
	Issued func(ownedPod)
	// Metrics nil means controller-runtime's registry, which its metrics server shows.
	Metrics prometheus.Registerer
	// Log nil means slog's default.
	Log *slog.Logger
}

const (
	// retryAfter is what a shipper is told to wait, in seconds, where the fault is not its own.
	retryAfter = "5"
	// maxToken is far above the size of a service-account token, which is about 1 KiB.
	maxToken = 16 << 10
	// writtenEntries bounds the memory of what has been written, to a few megabytes. A pod has three objects of its own, a run three more.
	writtenEntries = 8192
	// podInterval and podEntries bound how often a pod may ask, and of how many that is known.
	podInterval = 5 * time.Second
	podEntries  = 16384
	// doubtfulRate bounds the questions that made-up tokens can cost the API server, in a second.
	doubtfulRate = 50
)

// refusal is the named value of ticket.Refusal.Reason.
type refusal string

// The reasons to refuse. 401 says that the token is no good, and another one may be; 403 that its pod gets no ticket; 503 that it may get one later.
const (
	refusedMethod        refusal = "method-not-allowed"  // 405
	refusedNoToken       refusal = "no-token"            // 401
	refusedInvalidToken  refusal = "invalid-token"       // 401: forged, expired, for another audience, or of a pod or account that is gone
	refusedWrongAudience refusal = "wrong-audience"      // 401: an API server that knows no audiences accepted it
	refusedNotBound      refusal = "not-bound-to-pod"    // 401
	refusedNoPod         refusal = "pod-not-found"       // 403
	refusedOtherPod      refusal = "other-pod"           // 403: a pod of that name, with another UID
	refusedFinished      refusal = "pod-finished"        // 403
	refusedNotTekton     refusal = "not-tekton"          // 403: no TaskRun controls the pod
	refusedOwnerMismatch refusal = "owner-mismatch"      // 403: the owner is gone, or another one of its name is there
	refusedNotInjected   refusal = "not-injected"        // 403
	refusedBusy          refusal = "busy"                // 503
	refusedClusterDown   refusal = "cluster-unavailable" // 503
	refusedStoreDown     refusal = "store-unavailable"   // 503
)

var refusalStatus = map[refusal]int{
	refusedMethod:        http.StatusMethodNotAllowed,
	refusedNoToken:       http.StatusUnauthorized,
	refusedInvalidToken:  http.StatusUnauthorized,
	refusedWrongAudience: http.StatusUnauthorized,
	refusedNotBound:      http.StatusUnauthorized,
	refusedNoPod:         http.StatusForbidden,
	refusedOtherPod:      http.StatusForbidden,
	refusedFinished:      http.StatusForbidden,
	refusedNotTekton:     http.StatusForbidden,
	refusedOwnerMismatch: http.StatusForbidden,
	refusedNotInjected:   http.StatusForbidden,
	refusedBusy:          http.StatusServiceUnavailable,
	refusedClusterDown:   http.StatusServiceUnavailable,
	refusedStoreDown:     http.StatusServiceUnavailable,
}

// refusedError is why no ticket is given. Its text is for a person and goes to whoever holds the token; the wrapped error is for the log alone.
type refusedError struct {
	reason  refusal
	message string
	err     error
}

func (e *refusedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("%s: %s", e.reason, e.message)
	}
	return fmt.Sprintf("%s: %s: %v", e.reason, e.message, e.err)
}

func (e *refusedError) Unwrap() error { return e.err }

func refuse(reason refusal, format string, args ...any) error {
	return &refusedError{reason: reason, message: fmt.Sprintf(format, args...)}
}

// ticketService answers POST ticket.Path: it trades a pod-bound token for an upload ticket. It keeps nothing that it could not do without, so any
// number of replicas can run.
type ticketService struct {
	cfg     ticketConfig
	core    kubernetes.Interface
	tekton  dynamic.Interface
	keys    *tokenKeys
	slots   chan struct{} // holds one value per request in work
	doubted chan struct{} // the same, of the doubtful ones
	doubts  *rate.Limiter // how many of these begin in a second
	paceMu  sync.Mutex
	pods    *lru.Cache         // boundPod → *rate.Limiter; those of now, guarded by paceMu
	written *lru.Cache         // object key → SHA-256 of what this process wrote there
	told    *lru.Cache         // keys of the run.json that this process wrote, where nothing is to be added until the run has ended
	told401 *rate.Limiter      // of lines in the log
	puts    singleflight.Group // by key and SHA-256
	runs    singleflight.Group // by the key of run.json
	issued  prometheus.Counter
	refused *prometheus.CounterVec
}

// newTicketService makes the handler of ticket.Path. It sends nothing yet.
func newTicketService(cfg ticketConfig) (*ticketService, error) {
	if cfg.REST == nil || cfg.Store == nil {
		return nil, errors.New("ticket service: no cluster or no store")
	}
	if cfg.Lifetime < 0 || cfg.MaxBytes < 0 || cfg.Timeout < 0 ||
		cfg.Concurrency < 0 || cfg.Doubtful < 0 || cfg.Burst < 0 {
		return nil, fmt.Errorf("ticket service: lifetime %s, largest object %d, "+
			"concurrency %d and %d, burst %d and timeout %s must not be negative",
			cfg.Lifetime, cfg.MaxBytes, cfg.Concurrency, cfg.Doubtful, cfg.Burst, cfg.Timeout)
	}
	cfg.Lifetime = cmp.Or(cfg.Lifetime, 6*time.Hour)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 64<<20)
	cfg.Concurrency = cmp.Or(cfg.Concurrency, 64)
	cfg.Doubtful = cmp.Or(cfg.Doubtful, 8)
	cfg.Burst = cmp.Or(cfg.Burst, 10)
	cfg.Timeout = cmp.Or(cfg.Timeout, 20*time.Second)
	cfg.Log = cmp.Or(cfg.Log, slog.Default())
	if cfg.Metrics == nil {
		cfg.Metrics = metrics.Registry
	}

	// client-go's own limit of 5 requests a second is meant for controllers. Here every request is a pod's that waits, Concurrency bounds them, and
	// the API server has its own fairness.
	conf := rest.CopyConfig(cfg.REST)
	conf.QPS = -1
	client, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("ticket service: API client: %w", err)
	}
	core, err := kubernetes.NewForConfigAndClient(conf, client)
	if err != nil {
		return nil, fmt.Errorf("ticket service: API client: %w", err)
	}
	tekton, err := dynamic.NewForConfigAndClient(conf, client)
	if err != nil {
		return nil, fmt.Errorf("ticket service: API client: %w", err)
	}
	s := &ticketService{
		cfg: cfg, core: core, tekton: tekton,
		keys: &tokenKeys{log: cfg.Log, get: func(ctx context.Context) ([]byte, error) {
			// It comes in no other form, and not with what the client accepts otherwise.
			request := core.AuthenticationV1().RESTClient().Get().AbsPath(keysPath)
			return request.SetHeader("Accept", "application/jwk-set+json").DoRaw(ctx)
		}},
		slots:   make(chan struct{}, cfg.Concurrency),
		doubted: make(chan struct{}, cfg.Doubtful),
		doubts:  rate.NewLimiter(doubtfulRate, doubtfulRate),
		pods:    lru.New(podEntries),
		written: lru.New(writtenEntries),
		told:    lru.New(writtenEntries),
		told401: rate.NewLimiter(1, 20),
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shiplog_tickets_issued_total", Help: "Upload tickets given to shippers.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shiplog_tickets_refused_total", Help: "Requests for an upload ticket that were refused, by reason.",
		}, []string{"reason"}),
	}
	for reason := range refusalStatus { // a counter that is there from the start can be alerted on from its first increase
		s.refused.WithLabelValues(string(reason))
	}
	for _, c := range []prometheus.Collector{s.issued, s.refused} {
		if err := cfg.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("ticket service: metrics: %w", err)
		}
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *ticketService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
	defer cancel()
	pod, t, err := s.serve(ctx, r)
	if err != nil {
		s.answerRefusal(ctx, w, pod, err)
		return
	}
	s.issued.Inc()
	s.cfg.Log.InfoContext(ctx, "upload ticket issued", append(pod.attrs(), "prefix", t.Prefix, "expires", t.Expires)...)
	s.answer(ctx, w, http.StatusOK, t)
}

// serve returns the ticket, or a *refusedError. What it knows of the pod by then is returned in both cases.
func (s *ticketService) serve(ctx context.Context, r *http.Request) (boundPod, ticket.Ticket, error) {
	var pod boundPod
	fail := func(err error) (boundPod, ticket.Ticket, error) { return pod, ticket.Ticket{}, err }
	if r.Method != http.MethodPost {
		return fail(refuse(refusedMethod, "%s takes POST, not %s", ticket.Path, r.Method))
	}
	// The request has no body. One that comes all the same is never read here, so it costs no memory.
	token, err := bearerToken(r)
	if err != nil {
		return fail(err)
	}
	leave, err := s.enter(ctx, token)
	if err != nil {
		return fail(err)
	}
	defer leave()
	if pod, err = s.reviewToken(ctx, token); err != nil {
		return fail(err)
	}
	owned, err := s.findOwners(ctx, pod)
	if err != nil {
		return fail(err)
	}
	// The ticket is given only when all of these are durable: a log that nobody can find is as good as lost, while a shipper that gets no ticket keeps
	// what it has in the spool and asks again.
	if err := s.writeRecords(ctx, owned); err != nil {
		return fail(err)
	}
	t, err := s.cfg.Store.SignUpload(ctx, owned.pod.Prefix(), s.cfg.MaxBytes, s.cfg.Lifetime)
	if err != nil {
		return fail(&refusedError{refusedStoreDown, "no upload ticket could be signed", err})
	}
	t.CAURL, err = s.cfg.Store.SignDownload(ctx, layout.CAKey, t.Expires.Sub(t.Issued))
	if err != nil {
		return fail(&refusedError{refusedStoreDown, "no upload ticket could be signed", err})
	}
	if s.cfg.Issued != nil {
		s.cfg.Issued(owned)
	}
	return pod, t, nil
}

// enter takes a place for a request, and waits for one if it must. Made-up tokens take none of
// those for proven ones, so who sends them cannot keep shippers from their tickets, whatever
// address both are from; nor can a pod that asks more often than it needs to.
func (s *ticketService) enter(ctx context.Context, token string) (leave func(), err error) {
	pod, proven, err := s.keys.look(ctx, token)
	if err != nil {
		return nil, err
	}
	places := s.doubted
	if proven {
		places = s.slots
		if !s.pace(pod).Allow() {
			return nil, refuse(refusedBusy, "the pod asks for too many tickets")
		}
	}
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return nil, refuse(refusedBusy, "too many requests at once")
	}
	if !proven && s.doubts.Wait(ctx) != nil {
		<-places
		return nil, refuse(refusedBusy, "too many requests with tokens of an unknown key")
	}
	return func() { <-places }, nil
}

// pace is how often a pod may ask.
func (s *ticketService) pace(pod boundPod) *rate.Limiter {
	s.paceMu.Lock()
	defer s.paceMu.Unlock()
	if known, ok := s.pods.Get(pod); ok {
		return known.(*rate.Limiter)
	}
	pace := rate.NewLimiter(rate.Every(podInterval), s.cfg.Burst)
	s.pods.Add(pod, pace)
	return pace
}

// bearerToken reads the Authorization header (RFC 6750).
func bearerToken(r *http.Request) (string, error) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", refuse(refusedNoToken, "no bearer token in the Authorization header")
	}
	if len(token) > maxToken {
		return "", refuse(refusedInvalidToken, "the token is longer than %d bytes", maxToken)
	}
	return token, nil
}

// boundPod is the pod that a token is bound to.
type boundPod struct {
	namespace, name, uid string
}

func (p boundPod) attrs() []any {
	if p == (boundPod{}) {
		return nil
	}
	return []any{"namespace", p.namespace, "pod", p.name, "podUID", p.uid}
}

// The extra fields of a service-account token that is bound to a pod, see
// https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims
const (
	podNameExtra = "authentication.kubernetes.io/pod-name"
	podUIDExtra  = "authentication.kubernetes.io/pod-uid"
)

// accountPrefix is that of a service account's user name; namespace and name follow, with a colon.
const accountPrefix = "system:serviceaccount:"

// reviewToken asks the API server whose token it is.
func (s *ticketService) reviewToken(ctx context.Context, token string) (boundPod, error) {
	review, err := s.core.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{contract.Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return boundPod{}, clusterDown("review the token", err)
	}
	st := review.Status
	if !st.Authenticated {
		// The API server's reason distinguishes these cases only in words, which may change.
		return boundPod{}, &refusedError{refusedInvalidToken,
			"the API server does not accept the token: it is expired, for another audience, or its pod or service account is gone", errors.New(cmp.Or(st.Error, "no reason given"))}
	}
	if !slices.Contains(st.Audiences, contract.Audience) { // the TokenReview API: a server that is not aware of audiences returns none, whatever the token is for
		return boundPod{}, refuse(refusedWrongAudience, "the token is not for audience %q", contract.Audience)
	}
	account, isAccount := strings.CutPrefix(st.User.Username, accountPrefix)
	namespace, _, split := strings.Cut(account, ":")
	name, uid := st.User.Extra[podNameExtra], st.User.Extra[podUIDExtra]
	if !isAccount || !split || namespace == "" || len(name) != 1 || len(uid) != 1 || name[0] == "" || uid[0] == "" {
		return boundPod{}, refuse(refusedNotBound, "the token of %q is not a service account's that is bound to a pod", st.User.Username)
	}
	pod := boundPod{namespace: namespace, name: name[0], uid: uid[0]}
	if err := pod.check(); err != nil {
		return boundPod{}, refuse(refusedNotBound, "the token of %q: %v", st.User.Username, err)
	}
	return pod, nil
}

// getPod returns the token's pod, of which a ticket may be had.
func (s *ticketService) getPod(ctx context.Context, bound boundPod) (*corev1.Pod, error) {
	// "0" takes what the API server has in memory, and saves a read of etcd with a quorum (https://kubernetes.io/docs/reference/using-api/api-concepts/#semantics-for-get-and-list). That is a moment old,
	// and can lack a pod, or be the one before it of the same name.
	get := func(version string) (*corev1.Pod, error) {
		return s.core.CoreV1().Pods(bound.namespace).Get(ctx, bound.name, metav1.GetOptions{ResourceVersion: version})
	}
	pod, err := get("0")
	if apierrors.IsNotFound(err) || err == nil && string(pod.UID) != bound.uid {
		pod, err = get("")
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, refuse(refusedNoPod, "there is no pod %s/%s", bound.namespace, bound.name)
	case err != nil:
		return nil, clusterDown(fmt.Sprintf("get pod %s/%s", bound.namespace, bound.name), err)
	case pod.Namespace != bound.namespace || pod.Name != bound.name:
		return nil, refuse(refusedOtherPod, "the API server has pod %q/%q for %s/%s", pod.Namespace, pod.Name, bound.namespace, bound.name)
	case string(pod.UID) != bound.uid:
		return nil, refuse(refusedOtherPod, "pod %s/%s has UID %s, the token is bound to %s", bound.namespace, bound.name, pod.UID, bound.uid)
	case !injected(pod):
		return nil, refuse(refusedNotInjected, "pod %s/%s has no init container %s", bound.namespace, bound.name, contract.ShipperContainer)
	// The kubelet reports a final phase only when no container runs any more, native sidecars included (mergePodStatus in
	// pkg/kubelet/status/status_manager.go). So no shipper can be asking, and a pod that is being deleted still gets its ticket.
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return nil, refuse(refusedFinished, "pod %s/%s is %s: nothing of it runs any more", bound.namespace, bound.name, pod.Status.Phase)
	}
	return pod, nil
}

// injected says whether the webhook has been at the pod.
func injected(pod *corev1.Pod) bool {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == contract.ShipperContainer {
			return true
		}
	}
	return false
}

// clusterDown is the refusal where the API server gives no answer, or not the one that it gives to an identity with our rights.
func clusterDown(what string, err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		what += ": check the ClusterRole and ClusterRoleBinding shiplog-webhook"
	}
	return &refusedError{refusedClusterDown, "the API server could not be asked", fmt.Errorf("%s: %w", what, err)}
}

// writeRecords puts the run's and the pod's records and index objects, all at once. What this process has written before is not written again: a shipper
// renews its ticket, and a run has many pods.
func (s *ticketService) writeRecords(ctx context.Context, owned ownedPod) error {
	objects, err := owned.objects()
	if err != nil {
		return &refusedError{refusedStoreDown, "the records cannot be made", err}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.writeRun(ctx, owned) })
	for key, body := range objects {
		group.Go(func() error { return s.write(ctx, key, body) })
	}
	return group.Wait()
}

// writeRun puts run.json.
func (s *ticketService) writeRun(ctx context.Context, owned ownedPod) error {
	key := owned.pod.RunKey()
	if _, told := s.told.Get(key); told {
		return nil
	}
	return s.once(ctx, &s.runs, key, func(ctx context.Context) error {
		run, err := s.runRecord(ctx, owned)
		if err != nil {
			return err
		}
		body, err := record.Encode(run)
		if err != nil {
			return &refusedError{refusedStoreDown, "the run's record cannot be made", err}
		}
		if err := s.write(ctx, key, body); err != nil {
			return err
		}
		if run.Kind != layout.PipelineRun || len(run.Tasks) > 0 {
			s.told.Add(key, nil)
		}
		return nil
	})
}

// write puts an object, if this process has not written the same there last.
func (s *ticketService) write(ctx context.Context, key string, body []byte) error {
	sum := sha256.Sum256(body)
	wrote := func() bool { old, ok := s.written.Get(key); return ok && old == sum }
	if wrote() {
		return nil
	}
	return s.once(ctx, &s.puts, key+string(sum[:]), func(ctx context.Context) error {
		if wrote() {
			return nil
		}
		if err := s.cfg.Store.Put(ctx, key, body); err != nil {
			return &refusedError{refusedStoreDown, "the object store does not take the index objects", err}
		}
		s.written.Add(key, sum)
		return nil
	})
}

// once does what many pods of a run want at the same moment for one of them, and gives all of them its outcome. That does not depend on whether that one still waits, but on its deadline.
func (s *ticketService) once(ctx context.Context, group *singleflight.Group, what string, do func(context.Context) error) error {
	_, err, _ := group.Do(what, func() (any, error) {
		alone := context.WithoutCancel(ctx)
		if deadline, ok := ctx.Deadline(); ok {
			var cancel context.CancelFunc
			alone, cancel = context.WithDeadline(alone, deadline)
			defer cancel()
		}
		return nil, do(alone)
	})
	return err
}

// runRecord makes run.json, and asks for the run if that was not done yet.
func (s *ticketService) runRecord(ctx context.Context, owned ownedPod) (record.Run, error) {
	run := owned.run()
	if owned.whole == nil {
		var err error
		ref := &metav1.OwnerReference{APIVersion: tektonV1.String(), Name: run.Name, UID: run.UID}
		if owned.whole, err = s.getOwner(ctx, run.Namespace, ref, run.owner); err != nil {
			return record.Run{}, err
		}
	}
	out := runRecord(owned.whole, run.owner)
	inNamespace(ctx, s.core, s.cfg.Log, &out)
	return out, nil
}

// answerRefusal logs, counts and answers a refusal.
func (s *ticketService) answerRefusal(ctx context.Context, w http.ResponseWriter, pod boundPod, err error) {
	var re *refusedError
	if !errors.As(err, &re) { // every error of serve is one; if not, it is ours
		re = &refusedError{refusedStoreDown, "internal error", err}
	}
	status := refusalStatus[re.reason]
	level := slog.LevelWarn
	switch status {
	case http.StatusServiceUnavailable:
		level = slog.LevelError
		w.Header().Set("Retry-After", retryAfter)
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	}
	s.refused.WithLabelValues(string(re.reason)).Inc()
	if status == http.StatusUnauthorized && !s.told401.Allow() {
		level = slog.LevelDebug // made-up tokens may be many, and are counted
	}
	s.cfg.Log.Log(ctx, level, "upload ticket refused", append(pod.attrs(), "reason", string(re.reason), "error", err.Error())...)
	s.answer(ctx, w, status, ticket.Refusal{Reason: string(re.reason), Message: re.message})
}

func (s *ticketService) answer(ctx context.Context, w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // strings, numbers and times within years 0 to 9999
		s.cfg.Log.ErrorContext(ctx, "encode the answer", "error", err.Error())
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the holder has gone, if this fails, and asks again
}
