package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestCompactFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string // of the error; empty: it is taken
	}{
		{"none", nil, ""},
		{"all", []string{"--every=1m", "--since=24h", "--metrics-address=:0"}, ""},
		{"no pause", []string{"--every=0s"}, "must be positive"},
		{"no age", []string{"--since=-1h"}, "must be positive"},
		{"an argument", []string{"now"}, "is a flag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseCompactFlags(c.args)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestCompact: the command finds a slow step's log by itself, and ends when it is told to.
func TestCompact(t *testing.T) {
	store, config := archivetest.Start(t)
	for name, value := range map[string]string{
		"SHIPLOG_S3_BUCKET": config.Bucket, "SHIPLOG_S3_ENDPOINT": config.Endpoint, "SHIPLOG_S3_REGION": config.Region, "SHIPLOG_S3_PATH_STYLE": "true",
		"AWS_ACCESS_KEY_ID": config.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY": string(config.Credentials.SecretAccessKey),
	} {
		t.Setenv(name, value)
	}
	const uid = "11111111-1111-4111-8111-111111111111"
	created := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	run := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "team", Name: "build", UID: uid, Created: created, Completed: created.Add(time.Minute), State: record.Succeeded})
	log := layout.Container{Pod: layout.Pod{Run: run, TaskRun: "build-deploy", PodUID: uid}, Container: "step-wait"}
	lines := archivetest.Lines(created, 300, func(i int) string { return fmt.Sprintf("waiting: %d", i) })
	archivetest.PutLog(t, store, log, lines, 2)
	archivetest.PutRecord(t, store, log.SealKey(), archivetest.Seal(t, lines))
	whole, _ := archivetest.Segments(t, lines, 0)

	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	ended := make(chan error, 1)
	go func() {
		ended <- start(leaving, []string{compactCommand, "--every=1h", "--metrics-address=127.0.0.1:0"}, slog.New(slog.DiscardHandler))
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		object, err := store.Get(t.Context(), log.SegmentKey(whole[0]))
		if err == nil {
			object.Close()
			break
		}
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		}
	}
	leave()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
