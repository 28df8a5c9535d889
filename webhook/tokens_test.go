package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// signer is a key that an API server signs tokens with, or that somebody else does.
type signer struct {
	name      string
	algorithm jose.SignatureAlgorithm
	key       crypto.Signer
}

func newSigner(name string) signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return signer{name, jose.ES256, key}
}

// newRSASigner is like what most clusters have.
func newRSASigner(name string) signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return signer{name, jose.RS256, key}
}

// keySet is the public half, as the API server publishes it.
func (s signer) keySet() []byte {
	key := jose.JSONWebKey{Key: s.key.Public(), KeyID: s.name, Algorithm: string(s.algorithm), Use: "sig"}
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key}})
	if err != nil {
		panic(err)
	}
	return b
}

// token makes a pod's token, with other claims where change makes them so.
func (s signer) token(change func(claims object)) string {
	return s.tokenAt(time.Now(), change)
}

func (s signer) tokenAt(now time.Time, change func(claims object)) string {
	claims := object{
		"aud": []string{contract.Audience}, "iss": "https://kubernetes.default.svc",
		"exp": now.Add(time.Hour).Unix(), "iat": now.Unix(),
		"sub": "system:serviceaccount:team:builder",
		"kubernetes.io": object{
			"namespace":      "team",
			"pod":            object{"name": "build-7-compile-pod", "uid": podUID},
			"serviceaccount": object{"name": "builder", "uid": "x"},
		},
	}
	if change != nil {
		change(claims)
	}
	key := jose.JSONWebKey{Key: s.key, KeyID: s.name}
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: s.algorithm, Key: key}, nil)
	if err != nil {
		panic(err)
	}
	token, err := jwt.Signed(with).Claims(claims).Serialize()
	if err != nil {
		panic(err)
	}
	return token
}

// The API server's key of the tests, and a pod's token that is signed with it.
var (
	apiSigner = newSigner("api-server")
	goodToken = apiSigner.token(nil)
)

func podClaim(claims object) object { return claims["kubernetes.io"].(object)["pod"].(object) }

// keysOf are known once they are asked for.
func keysOf(s signer) *tokenKeys {
	get := func(context.Context) ([]byte, error) { return s.keySet(), nil }
	return &tokenKeys{log: slog.New(slog.DiscardHandler), get: get}
}

func TestTokenLook(t *testing.T) {
	const doubtful refusal = "not known"
	good := boundPod{"team", "build-7-compile-pod", podUID}
	forger := newSigner(apiSigner.name)
	none := strings.Split(goodToken, ".")
	none[0], none[2] = "eyJhbGciOiJub25lIn0", ""
	with := func(claim string, value any) string {
		return apiSigner.token(func(c object) { c[claim] = value })
	}
	without := func(claim string) string {
		return apiSigner.token(func(c object) { delete(c, claim) })
	}
	pod := func(change func(claim object)) string {
		return apiSigner.token(func(c object) { change(podClaim(c)) })
	}
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for name, c := range map[string]struct {
		token  string
		reason refusal
	}{
		"good":                       {goodToken, ""},
		"one audience":               {with("aud", contract.Audience), ""},
		"one audience of several":    {with("aud", []string{"x", contract.Audience}), ""},
		"expired, by our clock":      {with("exp", in(-clockLeeway/2)), ""},
		"not valid yet, by ours":     {with("nbf", in(time.Hour)), ""},
		"empty":                      {"", refusedInvalidToken},
		"no JWT":                     {"forged", refusedInvalidToken},
		"dots":                       {"..", refusedInvalidToken},
		"not signed":                 {strings.Join(none, "."), refusedInvalidToken},
		"other audience":             {with("aud", "https://kubernetes.default.svc"), refusedInvalidToken},
		"no audience":                {without("aud"), refusedInvalidToken},
		"audience is no text":        {with("aud", 1), refusedInvalidToken},
		"expired":                    {with("exp", in(-2*clockLeeway)), refusedInvalidToken},
		"never expires":              {without("exp"), refusedInvalidToken},
		"a user's":                   {with("sub", "alice"), refusedNotBound},
		"account of elsewhere":       {with("sub", "system:serviceaccount:other:builder"), refusedNotBound},
		"bound to nothing":           {with("kubernetes.io", object{"namespace": "team"}), refusedNotBound},
		"no claims of Kubernetes":    {without("kubernetes.io"), refusedNotBound},
		"no pod UID":                 {pod(func(c object) { delete(c, "uid") }), refusedNotBound},
		"pod's name is a path":       {pod(func(c object) { c["name"] = "../x" }), refusedNotBound},
		"forged with the key's name": {forger.token(nil), refusedInvalidToken},
		"of an unknown key":          {newSigner("other").token(nil), doubtful},
		"of a key without a name":    {newSigner("").token(nil), doubtful},
		"changed":                    {goodToken[:len(goodToken)-4] + "AAAA", refusedInvalidToken},
	} {
		t.Run(name, func(t *testing.T) {
			keys := keysOf(apiSigner)
			pod, proven, err := keys.look(t.Context(), c.token)
			var refused *refusedError
			switch {
			case c.reason == doubtful:
				if err != nil || proven || pod != good {
					t.Errorf("%+v, proven %v, %v; want a doubt", pod, proven, err)
				}
			case c.reason == "" && (err != nil || !proven || pod != good):
				t.Errorf("%+v, proven %v, %v", pod, proven, err)
			case c.reason != "" && (!errors.As(err, &refused) || refused.reason != c.reason || proven):
				t.Errorf("error %v, proven %v, want %s", err, proven, c.reason)
			}
			if err != nil && len(c.token) > 10 && strings.Contains(err.Error(), c.token) {
				t.Error("the error holds the token")
			}
		})
	}
}

// TestTokenKeys: when the API server is asked for its keys, and what is thought of a token
// meanwhile.
func TestTokenKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		answer, fault := []byte(nil), errors.New("down")
		keys := keysOf(apiSigner)
		keys.get = func(context.Context) ([]byte, error) { asked++; return answer, fault }
		next := newSigner("next")
		for _, step := range []struct {
			name   string
			pass   time.Duration
			keys   []byte
			fault  error
			signer signer
			proven bool
			asked  int // by then
		}{
			{"at first", time.Hour, nil, errors.New("down"), apiSigner, false, 1},
			{"not again at once", time.Second, apiSigner.keySet(), nil, apiSigner, false, 1},
			{"no keys", keysInterval, []byte("{}"), nil, apiSigner, false, 2},
			{"no JSON", keysInterval, []byte("<html>"), nil, apiSigner, false, 3},
			{"then they are there", keysInterval, apiSigner.keySet(), nil, apiSigner, true, 4},
			{"and are kept", time.Hour, nil, errors.New("down"), apiSigner, true, 4},
			{"another key, and no answer", time.Hour, nil, errors.New("down"), next, false, 5},
			{"no answer harms no other", 0, nil, errors.New("down"), apiSigner, true, 5},
			{"not asked for each made-up name", time.Second, next.keySet(), nil, next, false, 5},
			{"the new key", keysInterval, next.keySet(), nil, next, true, 6},
		} {
			time.Sleep(step.pass)
			answer, fault = step.keys, step.fault
			_, proven, err := keys.look(t.Context(), step.signer.tokenAt(time.Now(), nil))
			if proven != step.proven || err != nil || asked != step.asked {
				t.Errorf("%s: proven %v, %v, after %d questions; want %v, %d",
					step.name, proven, err, asked, step.proven, step.asked)
			}
		}
	})
}

// TestTicketsUnderAttack: somebody sends made-up tokens on as many connections as they like, from
// the address of good shippers. Those get their tickets, and the API server is asked about no more.
func TestTicketsUnderAttack(t *testing.T) {
	const attackers = 100
	forger := newSigner(apiSigner.name)
	for name, token := range map[string]string{
		"no tokens":                  "header.payload.signature",
		"tokens of the right form":   forger.token(nil),
		"tokens of an unknown key":   newSigner("made-up").token(nil),
		"tokens of another audience": apiSigner.token(func(c object) { c["aud"] = "x" }),
	} {
		t.Run(name, func(t *testing.T) {
			most := 0 // reviews of made-up tokens
			if name == "tokens of an unknown key" {
				most = 8
			}
			api := newFakeAPI()
			hold := make(chan struct{})
			api.forged = func(r *http.Request) { // a review is slow where there are many
				select {
				case <-hold:
				case <-r.Context().Done():
				}
			}
			s := startService(t, api, &memoryStore{})
			s.cfg.Log = slog.New(slog.DiscardHandler) // the test's buffer is for one at a time
			server := httptest.NewServer(s)
			t.Cleanup(server.Close)
			t.Cleanup(func() { close(hold) })
			attack, stop := context.WithCancel(t.Context())
			var group sync.WaitGroup
			t.Cleanup(group.Wait)
			t.Cleanup(stop)
			transport := &http.Transport{MaxIdleConnsPerHost: attackers}
			t.Cleanup(transport.CloseIdleConnections)
			post := func(ctx context.Context, token string) (int, error) {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+ticket.Path, nil)
				if err != nil {
					return 0, err
				}
				req.Header.Set("Authorization", "Bearer "+token)
				resp, err := (&http.Client{Transport: transport}).Do(req)
				if err != nil {
					return 0, err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return resp.StatusCode, err
			}
			begun := make(chan struct{}, attackers)
			for range attackers {
				group.Go(func() {
					_, _ = post(attack, token)
					begun <- struct{}{} // has room for all
					for attack.Err() == nil {
						_, _ = post(attack, token)
					}
				})
			}
			// Those whose first request waits for an answer are under way, too: it is not waited
			// for longer.
			late := time.After(2 * time.Second)
			for n := 0; n < attackers; n++ {
				select {
				case <-begun:
				case <-late:
					n = attackers
				}
			}
			// Long, for a machine that is busy: who gets no place is refused after the service's timeout.
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			for i := range 5 {
				if status, err := post(ctx, goodToken); status != http.StatusOK || err != nil {
					t.Fatalf("good request %d: status %d, %v", i, status, err)
				}
			}
			api.mu.Lock()
			reviews := len(api.audience)
			api.mu.Unlock()
			if reviews < 5 || reviews > 5+most {
				t.Errorf("%d reviews, want those of the 5 good tokens, and no more than %d", reviews, most)
			}
		})
	}
}

// TestTicketsOfOnePod: a pod with a good token that asks without end takes no more than its share.
func TestTicketsOfOnePod(t *testing.T) {
	s := startService(t, newFakeAPI(), &memoryStore{})
	var given, busy int
	for range 50 {
		switch w := s.ask(t); {
		case w.Code == 200:
			given++
		case w.Code == 503 && strings.Contains(w.Body.String(), string(refusedBusy)):
			busy++
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	}
	if given < 10 || given > 12 || given+busy != 50 {
		t.Errorf("%d tickets, %d refusals", given, busy)
	}
	other := apiSigner.token(func(c object) { podClaim(c)["uid"] = taskRunUID })
	// The fake API server does not know this token: it is asked about it.
	if w := s.ask(t, authorization("Bearer "+other)); w.Code != 401 {
		t.Errorf("another pod: status %d: %s", w.Code, w.Body)
	}
}

// TestTicketsWithoutKeys: where the API server does not give its keys, tickets go on, and made-up
// tokens take some places only.
func TestTicketsWithoutKeys(t *testing.T) {
	api := newFakeAPI()
	api.status[keysPath] = http.StatusForbidden
	s := startService(t, api, &memoryStore{})
	if w := s.ask(t); w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	if !strings.Contains(s.log.String(), keysPath) {
		t.Errorf("the log does not say what is missing:\n%s", s.log)
	}
	for range cap(s.doubted) {
		s.doubted <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := s.ask(t, func(r *http.Request) { *r = *r.WithContext(ctx) })
	if w.Code != 503 || !strings.Contains(w.Body.String(), string(refusedBusy)) {
		t.Errorf("status %d %s, want 503 %s", w.Code, w.Body, refusedBusy)
	}
}

// BenchmarkTokenLook says what a made-up token costs.
func BenchmarkTokenLook(b *testing.B) {
	for kind, make := range map[string]func(string) signer{"RSA": newRSASigner, "ECDSA": newSigner} {
		own, forger := make("x"), make("x")
		keys := keysOf(own)
		tokens := map[string]string{"good": own.token(nil), "forged": forger.token(nil)}
		for name, token := range tokens {
			b.Run(kind+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, proven, _ := keys.look(b.Context(), token); proven != (name == "good") {
						b.Fatal(proven)
					}
				}
			})
		}
	}
}

// FuzzTokenLook: no text is taken for signed but the one that is. Its signature can be written in
// several ways (RFC 4648, 3.5), which changes nothing that it says.
func FuzzTokenLook(f *testing.F) {
	f.Add(goodToken)
	f.Add("..")
	f.Add("eyJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJzaGlwbG9nIn0.AA")
	signed := goodToken[:strings.LastIndexByte(goodToken, '.')+1]
	keys := keysOf(apiSigner)
	f.Fuzz(func(t *testing.T, token string) {
		_, proven, err := keys.look(t.Context(), token)
		if proven && err != nil || proven && !strings.HasPrefix(token, signed) {
			t.Errorf("proven %v, %v: %q", proven, err, token)
		}
	})
}
