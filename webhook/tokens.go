package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/sync/singleflight"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

const (
	// keysPath is where the API server publishes the keys that it signs tokens with, see
	// https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery
	keysPath = "/openid/v1/jwks"
	// keysInterval is the least time between two requests for them. A token may name a key that
	// nobody has.
	keysInterval = 10 * time.Second
	// clockLeeway is how far our clock and the API server's may be apart. It is the API server who
	// decides whether a token has expired.
	clockLeeway = 5 * time.Minute
)

// signatures are what service-account tokens are signed with.
var signatures = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512,
}

// tokenKeys are the API server's public keys. They tell made-up tokens from those that are worth a
// TokenReview: everybody in the cluster can send the former, as many as they like. They let nobody
// in, since the API server is asked about each token all the same.
type tokenKeys struct {
	get func(context.Context) ([]byte, error) // a JSON Web Key Set (RFC 7517)
	log *slog.Logger

	asking singleflight.Group

	mu    sync.Mutex // guards what follows
	keys  *jose.JSONWebKeySet
	asked time.Time
}

// look returns the pod that a token says it is bound to, and whether it is proven that the API
// server has signed it. That is not known where the keys cannot be had, or none has the token's
// name: the API server need not publish all that it takes. What is no token of a pod for our
// audience, has expired, or is signed by somebody else in a key's name, is a *refusedError.
func (k *tokenKeys) look(ctx context.Context, token string) (pod boundPod, proven bool, err error) {
	invalid := func(format string, args ...any) (boundPod, bool, error) {
		return boundPod{}, false, refuse(refusedInvalidToken, format, args...)
	}
	signed, err := jwt.ParseSigned(token, signatures)
	if err != nil {
		return invalid("the token is not a service account's")
	}
	var claims struct {
		jwt.Claims
		Kubernetes struct {
			Namespace string `json:"namespace"`
			Pod       struct {
				Name string `json:"name"`
				UID  string `json:"uid"`
			} `json:"pod"`
		} `json:"kubernetes.io"`
	}
	if err := signed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return invalid("the token's claims cannot be read")
	}
	in := claims.Kubernetes
	pod = boundPod{namespace: in.Namespace, name: in.Pod.Name, uid: in.Pod.UID}
	switch {
	case !claims.Audience.Contains(contract.Audience):
		return invalid("the token is not for audience %q", contract.Audience)
	case claims.Expiry == nil || time.Since(claims.Expiry.Time()) > clockLeeway:
		return invalid("the token has expired")
	case pod.namespace == "" || pod.name == "" || pod.uid == "",
		!strings.HasPrefix(claims.Subject, accountPrefix+pod.namespace+":"):
		return boundPod{}, false, refuse(refusedNotBound,
			"the token is not a service account's that is bound to a pod")
	}
	if err := pod.check(); err != nil {
		return boundPod{}, false, refuse(refusedNotBound, "the token: %v", err)
	}
	keys := k.named(ctx, signed.Headers[0].KeyID)
	if len(keys) == 0 {
		return pod, false, nil
	}
	for _, key := range keys {
		if signed.Claims(key.Key) == nil {
			return pod, true, nil
		}
	}
	return invalid("the API server has not signed the token")
}

// named returns the keys of a name, and asks for them if there are none and it is time.
func (k *tokenKeys) named(ctx context.Context, name string) []jose.JSONWebKey {
	find := func() (found []jose.JSONWebKey, due bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.keys != nil {
			found = k.keys.Key(name)
		}
		return found, len(found) == 0 && time.Since(k.asked) >= keysInterval
	}
	found, due := find()
	if !due {
		return found
	}
	_, _, _ = k.asking.Do("", func() (any, error) { // its error is logged
		if _, due := find(); due {
			k.ask(ctx)
		}
		return nil, nil
	})
	found, _ = find()
	return found
}

// ask gets the keys. Those from before stay where it fails.
func (k *tokenKeys) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), kubernetesTimeout)
	defer cancel()
	var keys jose.JSONWebKeySet
	b, err := k.get(ctx)
	if err == nil {
		err = json.Unmarshal(b, &keys)
	}
	if err == nil && len(keys.Keys) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		k.log.Warn("made-up tokens cannot be told from good ones, and each is reviewed",
			"error", fmt.Errorf("get %s from the API server: %w", keysPath, err))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = time.Now()
	if err == nil {
		k.keys = &keys
	}
}

// check says whether the names can be names. No API server has others; if one does, they must
// become neither its address nor an object's name.
func (p boundPod) check() error {
	return errors.Join(
		layout.CheckName("namespace", p.namespace),
		layout.CheckName("pod", p.name),
		layout.CheckUID("pod UID", p.uid),
	)
}
