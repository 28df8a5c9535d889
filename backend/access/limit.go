package access

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/cache"

	"github.com/shiplog-dev/shiplog/backend/turns"
)

// Limits bound what clients can take up. A client is a user, or a tenant of a Dashboard; as long as it is not known who sent a request, the client is the address that it is from.
//
// Of requests, of those that follow a log, and of those of whom nobody knows who sent them, there are
// so many at the same time each, and of each kind a client has no more than are left free. Where all
// places of those that follow are taken, who has none gets one of the client with the most.
type Limits struct {
	PerClient int // requests at the same time, of one client
	Total     int // of all users and tenants; and as many of all addresses, so that who is unknown takes no place of who is known
	// FollowsPerClient and Follows are likewise those that follow a log. They take no place of the
	// others.
	FollowsPerClient, Follows int
	// Time is how long a request may take until its client has read something of the answer, and
	// again until they have read more.
	Time time.Duration
	// StallTime is how long a client may take to read what a single write has, up to 64 KiB.
	StallTime time.Duration
	// FollowTime is that of an answer that lasts as long as its log grows, and of any other.
	FollowTime time.Duration
	// Bytes are of one answer. One that would have more is broken off, so that it does not look whole.
	Bytes int64
	// Failures is how many tokens and passwords that are nobody's an address may send in a second, and Burst how many at once.
	Failures rate.Limit
	Burst    int
}

// DefaultLimits are for a server that a company's control panel and a page for everybody ask.
func DefaultLimits() Limits {
	return Limits{
		PerClient: 32, Total: 512, FollowsPerClient: 64, Follows: 512,
		Time: 10 * time.Minute, StallTime: 2 * time.Minute, FollowTime: 6 * time.Hour,
		Bytes: 64 << 30, Failures: 1, Burst: 30,
	}
}

const (
	// unknownTime bounds a request as long as it is not known who sent it, and bodyTime how long its body may take to come.
	unknownTime, bodyTime = 30 * time.Second, 10 * time.Second
	// lastTime is how long an answer may be written when the time of its request is over, such as the one that says so.
	lastTime = 5 * time.Second
	// againTime is how often the gate is asked again about who follows a log.
	againTime = time.Minute
)

func tooMany(what string) *Error {
	return &Error{Status: http.StatusTooManyRequests, Message: what}
}

// limiter keeps the counts.
type limiter struct {
	Limits
	mu      sync.Mutex
	clients map[place]int
	total   map[pool]int
	follows map[string][]*Visit   // those that hold a place, by client, the newest last
	guesses *cache.LRUExpireCache // address → *guesses
}

// pool is a kind of places.
type pool string

const (
	strangers pool = "requests of which it is not known who sent them"
	requests  pool = "requests"
	follows   pool = "requests that follow a log"
)

// place is what a request takes up: one of a user's or tenant's places, or one of an address.
type place struct {
	pool   pool
	client string
}

// clientOf is who shares places with whom. Who may make a service account, may make a thousand: those
// of a namespace are one client.
func clientOf(user string) string {
	const accounts = "system:serviceaccount:"
	if rest, ok := strings.CutPrefix(user, accounts); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		return accounts + namespace
	}
	return user
}

// bounds are how many places a pool has, of one client and of all.
func (l Limits) bounds(p pool) (perClient, total int) {
	if p == follows {
		return l.FollowsPerClient, l.Follows
	}
	return l.PerClient, l.Total
}

// guesses are those of an address.
type guesses struct {
	failed *rate.Limiter
	asking int // of which it is not known yet whether they fail
}

// move gives up a place for another one. The empty place stands for none.
func (m *limiter) move(from, to place) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	perClient, total := m.bounds(to.pool)
	have, free := m.clients[to], total-m.total[to.pool]
	switch {
	case from == to || to == place{}:
	case have >= perClient && to.pool == strangers:
		return tooMany("too many requests are under way from your address of which it is not known yet who sent them: try again later")
	case have >= perClient:
		return tooMany(fmt.Sprintf("you have too many %s under way: wait for one to end", to.pool))
	case to.pool == follows && have >= free && m.displace(have):
	case have >= free:
		return tooMany(fmt.Sprintf("too many %s are under way: try again later", to.pool))
	}
	if to != (place{}) {
		m.clients[to]++
		m.total[to.pool]++
	}
	if from != (place{}) {
		m.total[from.pool]--
		if m.clients[from]--; m.clients[from] == 0 {
			delete(m.clients, from)
		}
	}
	return nil
}

// displace ends a follow of the client with the most of them, for one that has fewer. Follows last for
// hours: otherwise those who came first would have all places. The caller holds the lock.
func (m *limiter) displace(have int) bool {
	most := ""
	for client, theirs := range m.follows {
		if len(theirs) > len(m.follows[most]) {
			most = client
		}
	}
	n := len(m.follows[most])
	if n < have+2 {
		return false
	}
	v := m.follows[most][n-1]
	m.follows[most] = m.follows[most][:n-1]
	m.clients[place{follows, most}]--
	m.total[follows]--
	v.displaced = true
	v.cancel(tooMany("others want to follow a log, and you follow the most: wait, or follow fewer"))
	return true
}

// follow moves a visit to the places of those that follow.
func (m *limiter) follow(v *Visit) error {
	to := place{follows, v.at.client}
	if err := m.move(v.at, to); err != nil {
		return err
	}
	v.at = to
	m.mu.Lock()
	defer m.mu.Unlock()
	m.follows[to.client] = append(m.follows[to.client], v)
	return nil
}

// leave gives up a visit's place.
func (m *limiter) leave(v *Visit) {
	m.mu.Lock()
	theirs := slices.DeleteFunc(m.follows[v.at.client], func(o *Visit) bool { return o == v })
	if m.follows[v.at.client] = theirs; len(theirs) == 0 {
		delete(m.follows, v.at.client)
	}
	gone := v.displaced
	m.mu.Unlock()
	if !gone {
		_ = m.move(v.at, place{}) // there is always room to leave
	}
}

// guess lets an address send what may turn out to be nobody's. The caller must call done, which says whether it was.
func (m *limiter) guess(address string) (done func(failed bool), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.guesses.Get(address)
	if !ok {
		g = &guesses{failed: rate.NewLimiter(m.Failures, m.Burst)}
		m.guesses.Add(address, g, time.Hour)
	}
	of := g.(*guesses)
	if of.failed.Tokens() < float64(of.asking+1) {
		return nil, tooMany("too many tokens or passwords that are nobody's came from your address: try again later")
	}
	of.asking++
	return func(failed bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		of.asking--
		if failed {
			of.failed.Allow()
		}
	}, nil
}

// Wrap bounds the requests to a handler, which asks this gate who sends them.
func (g *Gate) Wrap(l Limits, next http.Handler) http.Handler {
	m := &limiter{Limits: l, clients: map[place]int{}, total: map[pool]int{}, follows: map[string][]*Visit{}, guesses: cache.NewLRUExpireCache(cacheSize)}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, ctx := visitOf(r.Context()), r.Context()
		if !v.watched {
			ctx, v = Watch(ctx)
		}
		v.limiter, v.address, v.begun, v.control = m, g.Proxy.address(r), time.Now(), http.NewResponseController(w)
		if r.ContentLength != 0 {
			_ = v.control.SetReadDeadline(v.begun.Add(bodyTime)) // where it cannot be set, there is no connection to wait for
		}
		at := place{strangers, v.address}
		life := min(unknownTime, l.Time)
		if user, ok := g.seen(r); ok {
			at, life = place{requests, clientOf(user)}, l.Time
		}
		if err := m.move(place{}, at); err != nil {
			err.(*Error).Write(w)
			return
		}
		v.at = at
		ctx, v.cancel = context.WithCancelCause(ctx)
		_ = v.control.SetWriteDeadline(time.Time{}) // of the connection's last request
		v.mu.Lock()
		v.live(life)
		v.mu.Unlock()
		defer v.leave()
		out := &watched{ResponseWriter: w, visit: v, left: l.Bytes}
		defer func() {
			if why := recover(); why != nil {
				if !r.ProtoAtLeast(1, 1) {
					reset(v.control)
				}
				panic(why)
			}
		}()
		next.ServeHTTP(out, r.WithContext(ctx))
		if why, ok := context.Cause(ctx).(*Error); ok && out.status == 0 { // handlers answer nothing where the context has ended
			why.Write(w)
		}
	})
}

// reset breaks a connection off. In HTTP/1.0 an answer without a length ends with its connection:
// one that ends too early would look whole if it ended in peace, to a proxy and to all behind it.
func reset(control *http.ResponseController) {
	conn, _, err := control.Hijack()
	if err != nil {
		return // the server closes it
	}
	if outer, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS, which would say goodbye
		conn = outer.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // then Close resets
	}
	_ = conn.Close() // there is nothing more to do about it
}

// address is where a request is from: the peer, or where a proxy that is believed has it from. Of IPv6 it is the network, of which one client has all addresses.
func (p Proxy) address(r *http.Request) string {
	peer, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	address, err := netip.ParseAddr(peer)
	if err != nil {
		return peer
	}
	// Each proxy appends whom it has the request from. What stands before the last one that is not ours, the client may have made up.
	via := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(via) - 1; i >= 0 && p.from(address); i-- {
		before, err := netip.ParseAddr(strings.TrimSpace(via[i]))
		if err != nil {
			break
		}
		address = before
	}
	address = address.Unmap().WithZone("")
	if address.Is6() {
		if network, err := address.Prefix(64); err == nil {
			return network.String()
		}
	}
	return address.String()
}

// Visit is what is found out about a request while it is answered. Its methods may be called at the same time.
type Visit struct {
	// Those are set before the request is handled. limiter is nil where nothing is bounded.
	watched bool
	limiter *limiter
	address string
	begun   time.Time
	control *http.ResponseController
	cancel  context.CancelCauseFunc

	mu        sync.Mutex
	at        place
	user      string
	namespace string
	following bool
	displaced bool          // its place is another's; the limiter's lock guards it
	left      bool          // the request has ended
	life      time.Duration // without progress
	progress  time.Time     // when the client has read something last, or the request has begun
	writing   time.Time     // since when something is written; zero while nothing is
	check     *time.Timer   // looks after the request's time
	// again asks once more what has let the request in, and look does so when it is time.
	again func() error
	look  *time.Timer
}

type visitKey struct{}

// Watch returns a context in which it is noted who sent a request, and what they read.
func Watch(ctx context.Context) (context.Context, *Visit) {
	v := &Visit{watched: true}
	return turns.With(context.WithValue(ctx, visitKey{}, v), v), v
}

func visitOf(ctx context.Context) *Visit {
	if v, ok := ctx.Value(visitKey{}).(*Visit); ok {
		return v
	}
	return &Visit{} // nobody looks at it
}

// User is who sent the request, or "" where that is not known.
func (v *Visit) User() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.user
}

// Client is whom the request shares its places and turns with. It is "" where that is not known.
func (v *Visit) Client() string { return clientOf(v.User()) }

// Namespace is the one that was read, or that the sender may not read; "" where there is none, or where there are several.
func (v *Visit) Namespace() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.namespace
}

// Following says whether the answer lasts as long as its log grows.
func (v *Visit) Following() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.following
}

// Know notes that a request is from somebody whom its handler knows itself, and what they read. It returns an *Error where they have too many requests under way.
func Know(r *http.Request, who, namespace string) error {
	v := visitOf(r.Context())
	v.read(namespace, nil)
	return v.know(who)
}

// Failed notes that a request had a password that is nobody's. It returns an *Error where its address has sent too many.
func Failed(r *http.Request) error {
	done, err := visitOf(r.Context()).guess()
	if err == nil {
		done(true)
	}
	return err
}

// guess is limiter.guess for the request's address.
func (v *Visit) guess() (done func(failed bool), err error) {
	if v.limiter == nil {
		return func(bool) {}, nil
	}
	return v.limiter.guess(v.address)
}

// know notes who sent the request. It takes one of their places from then on, and has more time.
func (v *Visit) know(who string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.user = who
	to := place{requests, clientOf(who)}
	if v.following {
		to.pool = follows
	}
	if v.limiter == nil || v.at == to || v.left {
		return nil
	}
	if err := v.limiter.move(v.at, to); err != nil {
		return err
	}
	v.at = to
	v.live(v.limiter.Time)
	return nil
}

// read notes what is read, and how to ask again whether that is allowed.
func (v *Visit) read(namespace string, again func() error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.namespace, v.again = namespace, again
}

// live gives the request so much time until its client has read something, and again until they have
// read more. Behind it the context ends, and a little later the connection, where it is the client
// that does not read.
func (v *Visit) live(life time.Duration) {
	v.life = life
	if v.progress.IsZero() {
		v.progress = v.begun
	}
	if v.check == nil {
		v.check = time.AfterFunc(v.wait(time.Now()), v.checkTime)
		return
	}
	v.check.Reset(v.wait(time.Now()))
}

// over is when the request's time is over, as far as is known now, and how long that was.
func (v *Visit) over() (at time.Time, took time.Duration) {
	l := v.limiter.Limits
	if v.at.pool == strangers {
		return v.begun.Add(v.life), v.life
	}
	took = max(l.FollowTime, v.life)
	at = v.begun.Add(took)
	if silent := v.progress.Add(v.life); !v.following && silent.Before(at) {
		at, took = silent, v.life
	}
	return at, took
}

// stalled is when a client has not read for too long, or a time far away while nothing is written.
func (v *Visit) stalled(now time.Time) time.Time {
	if v.writing.IsZero() {
		return now.Add(v.limiter.StallTime)
	}
	return v.writing.Add(v.limiter.StallTime)
}

// wait is how long there is nothing to look after.
func (v *Visit) wait(now time.Time) time.Duration {
	at, _ := v.over()
	return min(at.Sub(now), v.stalled(now).Sub(now))
}

// checkTime ends the request where its time is over.
func (v *Visit) checkTime() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.left {
		return
	}
	now := time.Now()
	at, took := v.over()
	switch {
	case !now.Before(at):
		v.cancel(&Error{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("this request has taken longer than %s, and may not take more: ask for less at once", took)})
		_ = v.control.SetWriteDeadline(now.Add(lastTime)) // where it cannot be set, there is no connection to wait for
	case !now.Before(v.stalled(now)):
		v.cancel(context.Canceled)
		_ = v.control.SetWriteDeadline(now) // likewise
	default:
		v.check.Reset(v.wait(now))
	}
}

// wrote notes that something is written from now on, or, with done, that the client has taken it.
func (v *Visit) wrote(done bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.writing = time.Now(); done {
		v.progress, v.writing = v.writing, time.Time{}
	}
}

// follow gives the request the time of one that follows a log, and a place among those. As long as
// it does, it is asked again whether it may.
func (v *Visit) follow() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.following {
		return nil
	}
	if err := v.limiter.follow(v); err != nil {
		return err
	}
	v.following = true
	v.live(v.life)
	if v.again != nil {
		v.look = time.AfterFunc(againTime, v.lookAgain)
	}
	return nil
}

// lookAgain ends the request where it is not allowed any more. That nobody can be asked now, ends nothing.
func (v *Visit) lookAgain() {
	v.mu.Lock()
	again := v.again
	v.mu.Unlock()
	if err, ok := again().(*Error); ok && (err.Status == http.StatusUnauthorized || err.Status == http.StatusForbidden) {
		v.cancel(err)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.left {
		v.look.Reset(againTime)
	}
}

// leave gives up what the request has taken.
func (v *Visit) leave() {
	v.cancel(nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.left = true
	v.check.Stop()
	_ = v.control.SetWriteDeadline(time.Now().Add(v.limiter.StallTime)) // of what is not sent yet
	if v.look != nil {
		v.look.Stop()
	}
	v.limiter.leave(v)
}

// watched remembers the status, and ends an answer that is too long.
type watched struct {
	http.ResponseWriter
	visit  *Visit
	status int
	left   int64 // bytes
}

func (w *watched) Write(b []byte) (int, error) {
	if w.left -= int64(len(b)); w.left < 0 {
		panic(http.ErrAbortHandler) // what the server does with an answer that it cannot end
	}
	w.begin(http.StatusOK)
	w.visit.wrote(false)
	n, err := w.ResponseWriter.Write(b)
	w.visit.wrote(err == nil)
	return n, err
}

func (w *watched) WriteHeader(status int) {
	w.begin(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *watched) begin(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// FlushError is for http.ResponseController.
func (w *watched) FlushError() error {
	w.begin(http.StatusOK)
	w.visit.wrote(false)
	err := w.visit.control.Flush()
	w.visit.wrote(err == nil)
	return err
}

// SetWriteDeadline is for http.ResponseController. A handler that wants no deadline follows a log,
// and gets the time for that, and a place; it must have sent nothing yet. Where there is none, the
// error is an *Error.
func (w *watched) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		return w.visit.control.SetWriteDeadline(t)
	}
	return w.visit.follow()
}

// Unwrap is for http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }
