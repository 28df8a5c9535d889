package access

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// sessionName is the cookie's name. Its beginning makes browsers keep it to this host and to TLS (RFC 6265bis, 4.1.3).
	sessionName         = "__Host-shiplog"
	insecureSessionName = "shiplog"
	// SessionTime bounds a session. The token may end before.
	SessionTime = 12 * time.Hour
	// maxToken bounds a token in bytes: browsers keep cookies of up to 4096.
	maxToken = 3800
)

// Proxy is an authenticating proxy, whose word is taken for who a request is from.
type Proxy struct {
	// From are the addresses from which its headers are believed. Without any, they never are.
	From []netip.Prefix
	// UserHeader and GroupsHeader name the headers. Several groups are in several headers, or separated by commas.
	UserHeader, GroupsHeader string
	// SystemGroups lets groups through that begin with "system:", which the API server gives meanings of its own, such as system:masters.
	SystemGroups bool
}

func (p Proxy) validate() error {
	if len(p.From) > 0 && p.UserHeader == "" {
		return errors.New("a proxy is to be believed, and there is no header that names the user")
	}
	return nil
}

// Identify finds out who sent a request: by its bearer token, or else by what a proxy that is believed says, or else by the page's session. Nobody is an *Error, and so is who has too many requests under way.
func (g *Gate) Identify(r *http.Request) (Identity, error) {
	id, token, err := g.sender(r)
	if err == nil && token != "" {
		id, err = g.review(r.Context(), token)
	}
	if err != nil {
		return Identity{}, err
	}
	return id, visitOf(r.Context()).know(id.User)
}

// sender says who sent a request, as far as that is known without asking: the token of whom, or whom a proxy names.
func (g *Gate) sender(r *http.Request) (id Identity, token string, err error) {
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		scheme, token, ok := strings.Cut(values[0], " ")
		if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || strings.TrimSpace(token) == "" {
			return Identity{}, "", unknown("the header Authorization must be: Bearer TOKEN")
		}
		return Identity{}, strings.TrimSpace(token), nil
	}
	if id, ok, err := g.Proxy.identify(r); ok || err != nil {
		return id, "", err
	}
	if token, ok := g.session(r); ok {
		return Identity{}, token, nil
	}
	return Identity{}, "", unknown("who are you? Send a token of this cluster in the header Authorization: Bearer TOKEN, or log in to the page")
}

// seen says whose places a request takes, before anybody is asked. It lets nobody in.
func (g *Gate) seen(r *http.Request) (user string, ok bool) {
	id, token, err := g.sender(r)
	if err != nil || token == "" {
		return id.User, err == nil
	}
	known, ok := g.users.get(tokenKey(token))
	return known.identity.User, ok
}

// identify reads the proxy's headers, if it is the proxy who sends them.
func (p Proxy) identify(r *http.Request) (id Identity, ok bool, err error) {
	if !p.believed(r.RemoteAddr) {
		return Identity{}, false, nil
	}
	users := r.Header.Values(p.UserHeader)
	switch {
	case len(users) == 0:
		return Identity{}, false, nil
	case len(users) > 1 || strings.TrimSpace(users[0]) == "":
		return Identity{}, false, unknown("the proxy does not say which one user this is")
	}
	id.User = strings.TrimSpace(users[0])
	if strings.HasPrefix(id.User, "system:") && !p.SystemGroups {
		return Identity{}, false, unknown("the proxy names a user of the system")
	}
	if p.GroupsHeader != "" {
		for _, value := range r.Header.Values(p.GroupsHeader) {
			for group := range strings.SplitSeq(value, ",") {
				group = strings.TrimSpace(group)
				if group != "" && (p.SystemGroups || !strings.HasPrefix(group, "system:")) && !slices.Contains(id.Groups, group) {
					id.Groups = append(id.Groups, group)
				}
			}
		}
	}
	id.Groups = append(id.Groups, "system:authenticated") // as the API server adds it to all whom it knows
	return id, true, nil
}

// believed says whether a peer is the proxy.
func (p Proxy) believed(remote string) bool {
	peer, err := netip.ParseAddrPort(remote)
	return err == nil && p.from(peer.Addr())
}

// from says whether an address is the proxy's.
func (p Proxy) from(address netip.Addr) bool {
	address = address.Unmap().WithZone("")
	return slices.ContainsFunc(p.From, func(from netip.Prefix) bool { return from.Contains(address) })
}

// sessionCookie is the session's cookie. It is SameSite=Lax: with Strict, who follows a link from a control panel to a log would be nobody. What another page can make a browser send with it is a GET of a page, and that changes nothing.
func (g *Gate) sessionCookie(token string, life time.Duration) *http.Cookie {
	c := &http.Cookie{Name: sessionName, Value: token, Path: "/", MaxAge: int(life.Seconds()), HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode}
	if g.Insecure {
		c.Name, c.Secure = insecureSessionName, false
	}
	if life <= 0 {
		c.MaxAge = -1
	}
	return c
}

// session is the token of the request's session. It counts for reading alone: nothing else is offered to it.
func (g *Gate) session(r *http.Request) (token string, ok bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "", false
	}
	cookies := r.CookiesNamed(g.sessionCookie("", 0).Name)
	if len(cookies) != 1 || cookies[0].Value == "" {
		return "", false
	}
	return cookies[0].Value, true
}

// Login begins a session, if the token is somebody's. It is for a POST of our own page: one that another page has made is refused.
func (g *Gate) Login(w http.ResponseWriter, r *http.Request, token string) error {
	if err := ownPage(r); err != nil {
		return err
	}
	token = strings.TrimSpace(token)
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`",;\`, c) }) {
		return unknown(fmt.Sprintf("that is no token: it must have 1 to %d letters without blanks", maxToken))
	}
	if _, err := g.review(r.Context(), token); err != nil {
		return err
	}
	http.SetCookie(w, g.sessionCookie(token, SessionTime))
	return nil
}

// Logout ends a session.
func (g *Gate) Logout(w http.ResponseWriter, r *http.Request) error {
	if err := ownPage(r); err != nil {
		return err
	}
	http.SetCookie(w, g.sessionCookie("", 0))
	return nil
}

// ownPage refuses what another page makes a browser send. Browsers say where a request is from (Fetch Metadata, and Origin for a POST).
func ownPage(r *http.Request) error {
	foreign := &Error{Status: http.StatusForbidden, Message: "this request is from another page"}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin":
	default:
		return foreign
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Host != r.Host {
			return foreign
		}
	}
	return nil
}
