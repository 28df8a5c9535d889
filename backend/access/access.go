// Package access owns who may read: it finds out who sent a request, and asks the API server whether they may read the logs of pods in a namespace. Nothing else decides, and no answer holds for longer than CacheTime.
//
// It also finds out which namespace that is: people of one that was made anew do not read what
// was in the former one of its name. Package backend, which knows the runs, holds them against
// that.
//
// A request's way through it: identify.go finds out who it is, by a bearer token, the page's session or a proxy's headers; access.go asks what they may; limit.go bounds what one of them can take up.
package access

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
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/kubernetes"

	"github.com/shiplog-dev/shiplog/backend"
)

const (
	// CacheTime is for how long an answer of the API server's holds: a token that is revoked, or a role that is taken away, is still good for so long.
	CacheTime = 10 * time.Second
	// deniedTime is that of a no, but in a list of namespaces. It is shorter, since somebody who waits for a role tries again.
	deniedTime = 2 * time.Second
	// cacheSize is how many answers of a kind are kept.
	cacheSize = 10_000
	// reviewTime bounds one question to the API server.
	reviewTime = 5 * time.Second
	// reviewsAtOnce is how many namespaces are asked for at the same time, for one who lists them, and
	// reviewRate how many in a second, after the first reviewBurst.
	reviewsAtOnce = 16
	reviewRate    = 100
	reviewBurst   = 500
)

// Error is why a request is not answered, in words that tell nothing of what there is.
type Error struct {
	Status  int // HTTP
	Message string
	err     error // for the log
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.err }

// HTTPStatus is what the sender is answered.
func (e *Error) HTTPStatus() int { return e.Status }

// Challenge is the header WWW-Authenticate of a 401.
func (e *Error) Challenge() string {
	if e.Status == http.StatusUnauthorized {
		return `Bearer realm="shiplog"`
	}
	return ""
}

func unknown(why string) *Error {
	return &Error{Status: http.StatusUnauthorized, Message: why}
}

func unreachable(err error) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Message: "the API server cannot be asked now who you are and what you may: try again later", err: err}
}

// Write answers with the error as JSON.
func (e *Error) Write(w http.ResponseWriter) {
	if c := e.Challenge(); c != "" {
		w.Header().Set("WWW-Authenticate", c)
	}
	if e.Status == http.StatusServiceUnavailable || e.Status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "2")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": e.Message}) // the sender may be gone
}

// Identity is who sent a request, as the API server knows them.
type Identity struct {
	User   string
	UID    string
	Groups []string
	Extra  map[string]authorizationv1.ExtraValue
}

// key is the same for the same identity.
func (id Identity) key() string {
	b, err := json.Marshal(id) // maps are sorted
	if err != nil {
		panic(err) // of strings alone
	}
	sum := sha256.Sum256(b)
	return string(sum[:])
}

// Options make a Gate.
type Options struct {
	Client kubernetes.Interface
	// Audiences are those that a token must have one of. None stands for the API server's own.
	Audiences []string
	Proxy     Proxy
	// Insecure lets the session's cookie be sent without TLS.
	Insecure bool
	// Log nil is slog's default.
	Log *slog.Logger
	// FormerNamespaces lets who may read a namespace read what was in former ones of its name, too.
	FormerNamespaces bool
}

// Gate says who may read. Its methods may be called at the same time.
type Gate struct {
	Options
	tokens, reviews *kept
	// users are those whose tokens were good once, by the keys of tokens. It lets nobody in, but their tokens are no guesses, and it is known whose places their requests take.
	users  *kept
	paces  *cache.LRUExpireCache // client → *rate.Limiter: how fast lists ask
	asking singleflight.Group

	mu      sync.Mutex
	listing map[string]*listing
}

// New makes a Gate.
func New(o Options) (*Gate, error) {
	if err := o.Proxy.validate(); err != nil {
		return nil, err
	}
	o.Log = cmp.Or(o.Log, slog.Default())
	return &Gate{
		Options: o, tokens: newKept(cacheSize, CacheTime), reviews: newKept(cacheSize, CacheTime), users: newKept(cacheSize, SessionTime),
		paces: cache.NewLRUExpireCache(cacheSize), listing: map[string]*listing{},
	}, nil
}

// answer is what the API server has said.
type answer struct {
	identity Identity
	yes      bool
	reach    backend.Reach
	at       time.Time
}

// ask returns the cached answer, or asks. A no holds for as long as the caller says. The same question is asked once at a time, whoever asks. Errors are not kept.
func (g *Gate) ask(ctx context.Context, kept *kept, key string, no time.Duration, question func(context.Context) (answer, error)) (answer, error) {
	if a, ok := kept.get(key); ok && (a.yes || time.Since(a.at) < no) {
		return a, nil
	}
	result := g.asking.DoChan(key, func() (any, error) {
		// For all who ask: that the first of them leaves, must not be an error for the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTime)
		defer cancel()
		a, err := question(ctx)
		if err == nil {
			a.at = time.Now()
			kept.add(asks(ctx, a), key, a)
		}
		return a, err
	})
	select {
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	case r := <-result:
		if r.Err != nil {
			return answer{}, r.Err
		}
		return r.Val.(answer), nil
	}
}

// asks is whose answer it is: it is kept among theirs.
func asks(ctx context.Context, a answer) string {
	v := visitOf(ctx)
	if a.identity.User != "" {
		return clientOf(a.identity.User)
	}
	if client := v.Client(); client != "" {
		return client
	}
	return "address " + v.address
}

// tokenKey is where the answer about a token is kept.
func tokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return "token " + string(sum[:])
}

// review asks the API server whose token it is. One that is nobody's is an *Error.
func (g *Gate) review(ctx context.Context, token string) (Identity, error) {
	key := tokenKey(token)
	a, err := g.ask(ctx, g.tokens, key, deniedTime, func(ctx context.Context) (answer, error) {
		done := func(bool) {}
		if _, good := g.users.get(key); !good {
			var err error
			if done, err = visitOf(ctx).guess(); err != nil {
				return answer{}, err
			}
		}
		a, err := g.askWhose(ctx, token)
		done(err == nil && !a.yes)
		switch {
		case err != nil:
		case a.yes:
			g.users.add(asks(ctx, a), key, a)
		default:
			g.users.remove(key)
		}
		return a, err
	})
	if err == nil && !a.yes {
		err = unknown("the token is not valid here, or not any more")
	}
	return a.identity, err
}

// unreachable logs why the API server did not answer, such as that a right is missing. The sender
// is told no more than that it did not.
func (g *Gate) unreachable(ctx context.Context, err error) *Error {
	if !errors.Is(ctx.Err(), context.Canceled) { // by a sender who has left
		g.Log.Error("the API server could not be asked", "error", err)
	}
	return unreachable(err)
}

// askWhose makes a TokenReview.
func (g *Gate) askWhose(ctx context.Context, token string) (answer, error) {
	r, err := g.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: g.Audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return answer{}, g.unreachable(ctx, fmt.Errorf("review a token: %w", err))
	}
	if !r.Status.Authenticated || len(g.Audiences) > 0 && !slices.ContainsFunc(r.Status.Audiences, func(a string) bool { return slices.Contains(g.Audiences, a) }) {
		return answer{}, nil
	}
	id := Identity{User: r.Status.User.Username, UID: r.Status.User.UID, Groups: r.Status.User.Groups, Extra: map[string]authorizationv1.ExtraValue{}}
	for k, v := range r.Status.User.Extra {
		id.Extra[k] = authorizationv1.ExtraValue(v)
	}
	return answer{identity: id, yes: true}, nil
}

// MayRead asks whether somebody may get pods/log in a namespace, or with "" in all of them.
func (g *Gate) MayRead(ctx context.Context, id Identity, namespace string) (bool, error) {
	return g.mayRead(ctx, id, namespace, deniedTime, nil)
}

// mayRead is MayRead, where a no holds for some time. What is asked for goes at a pace, if there is
// one.
func (g *Gate) mayRead(ctx context.Context, id Identity, namespace string, no time.Duration, pace *rate.Limiter) (bool, error) {
	key := "access " + id.key() + " " + namespace
	if _, ok := g.reviews.get(key); !ok && pace != nil {
		if err := pace.Wait(ctx); err != nil {
			return false, cmp.Or(context.Cause(ctx), err)
		}
	}
	a, err := g.ask(ctx, g.reviews, key, no, func(ctx context.Context) (answer, error) {
		r, err := g.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: id.User, UID: id.UID, Groups: id.Groups, Extra: id.Extra,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "get", Version: "v1", Resource: "pods", Subresource: "log"},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			return answer{}, g.unreachable(ctx,
				fmt.Errorf("review access to namespace %q: %w", namespace, err))
		}
		return answer{yes: r.Status.Allowed && !r.Status.Denied}, nil
	})
	return a.yes, err
}

// Allow returns which runs of a namespace who sent the request may read. Where they may read none
// of it, there is an error.
func (g *Gate) Allow(r *http.Request, namespace string) (backend.Reach, error) {
	visitOf(r.Context()).read(namespace, func() error {
		_, err := g.allow(r, namespace)
		return err
	})
	id, err := g.allow(r, namespace)
	if err != nil {
		return backend.Reach{}, err
	}
	return g.reach(r.Context(), id, namespace)
}

// allow returns who sent the request if they may read the logs of a namespace.
func (g *Gate) allow(r *http.Request, namespace string) (Identity, error) {
	id, err := g.Identify(r)
	if err != nil {
		return Identity{}, err
	}
	yes, err := g.MayRead(r.Context(), id, namespace)
	if err == nil && !yes {
		// The same words whether or not there is such a namespace.
		err = &Error{Status: http.StatusForbidden, Message: fmt.Sprintf("you may not read logs in namespace %s: that needs the verb get on pods/log there", namespace)}
	}
	return id, err
}

// reach is which runs of a namespace somebody may read who may read in it: all, if they may read in
// every namespace.
//
// Which namespace it is, is kept for each of them apart, and asked for when it is known that they
// may read: who gets a role in a namespace that was made anew must not meet an answer about the
// former one.
func (g *Gate) reach(ctx context.Context, id Identity, namespace string) (backend.Reach, error) {
	if g.FormerNamespaces {
		return backend.Reach{All: true}, nil
	}
	if all, err := g.mayRead(ctx, id, "", CacheTime, nil); err != nil || all {
		return backend.Reach{All: all}, err
	}
	key := "namespace " + id.key() + " " + namespace
	a, err := g.ask(ctx, g.reviews, key, CacheTime, func(ctx context.Context) (answer, error) {
		reach, err := g.Present(ctx, namespace)
		return answer{yes: true, reach: reach}, err
	})
	return a.reach, err
}

// Present is what is read of a namespace for somebody who does not say who looks: the runs of the
// one that has the name now. Where there is none, the runs of those that had it are for who may
// read them all the same. It asks the API server each time.
func (g *Gate) Present(ctx context.Context, namespace string) (backend.Reach, error) {
	if g.FormerNamespaces {
		return backend.Reach{All: true}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	ns, err := g.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return backend.Reach{All: true}, nil
	case err != nil:
		err = fmt.Errorf("get namespace %q: %w", namespace, err)
		return backend.Reach{}, g.unreachable(ctx, err)
	}
	return backend.Reach{
		Namespace: backend.Namespace{UID: string(ns.UID), Created: ns.CreationTimestamp.Time},
	}, nil
}

// Allowed returns those of the namespaces that who sent the request may read, in their order. A no holds here as long as a yes: otherwise each list would cost the API server a question for each namespace that there is.
func (g *Gate) Allowed(r *http.Request, namespaces []string) ([]string, error) {
	id, err := g.Identify(r)
	if err != nil {
		return nil, err
	}
	done, err := g.list(r.Context(), id)
	if err != nil {
		return nil, err
	}
	defer done()
	if all, err := g.mayRead(r.Context(), id, "", CacheTime, nil); err != nil || all {
		return slices.Clone(namespaces), err
	}
	pace := g.pace(clientOf(id.User))
	may := make([]bool, len(namespaces))
	group, ctx := errgroup.WithContext(r.Context())
	group.SetLimit(reviewsAtOnce)
	for i, namespace := range namespaces {
		group.Go(func() (err error) {
			may[i], err = g.mayRead(ctx, id, namespace, CacheTime, pace)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var allowed []string
	for i, namespace := range namespaces {
		if may[i] {
			allowed = append(allowed, namespace)
		}
	}
	return allowed, nil
}

// pace is how fast a client's lists ask the API server.
func (g *Gate) pace(client string) *rate.Limiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, ok := g.paces.Get(client); ok {
		return p.(*rate.Limiter)
	}
	p := rate.NewLimiter(reviewRate, reviewBurst)
	g.paces.Add(client, p, time.Hour)
	return p
}

// listing is a turn to ask for many namespaces.
type listing struct {
	turn    chan struct{} // one may be in it
	waiting int
}

// list waits until no other request of somebody's asks for many namespaces. What the one before has found out is then remembered.
func (g *Gate) list(ctx context.Context, id Identity) (done func(), err error) {
	key := id.key()
	g.mu.Lock()
	l := g.listing[key]
	if l == nil {
		l = &listing{turn: make(chan struct{}, 1)}
		g.listing[key] = l
	}
	l.waiting++
	g.mu.Unlock()
	left := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if l.waiting--; l.waiting == 0 {
			delete(g.listing, key)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; left() }, nil
	case <-ctx.Done():
		left()
		return nil, context.Cause(ctx)
	}
}
