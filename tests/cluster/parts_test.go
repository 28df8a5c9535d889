package main

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

func TestCRIAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // part of the error
	}{
		{
			name: "initialized",
			answer: func(w http.ResponseWriter, r *http.Request) {
				_, _ = w.Write([]byte{0, 0, 0, 0, 2, 0x0a, 0}) // a connection that breaks is the client's error
				w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			},
		},
		{
			// As containerd 2.4 says it: the status is among the headers, for nothing follows.
			name: "listens, and is not initialized",
			answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Grpc-Status", "14")
				w.Header().Set("Grpc-Message", "server is not initialized yet: unavailable")
			},
			want: `gRPC status "14": server is not initialized yet`,
		},
		{name: "no gRPC", answer: func(http.ResponseWriter, *http.Request) {}, want: `gRPC status ""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Protocols: new(http.Protocols), Handler: tt.answer}
			server.Protocols.SetUnencryptedHTTP2(true)
			served := make(chan error, 1)
			go func() { served <- server.Serve(listener) }()
			t.Cleanup(func() {
				server.Close()
				<-served
			})
			err = criAnswers(t.Context(), socket)
			switch {
			case tt.want == "" && err != nil:
				t.Fatal(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Fatalf("the error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestCRIAnswersWithoutASocket(t *testing.T) {
	if err := criAnswers(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Fatal("no error without a socket")
	}
}
