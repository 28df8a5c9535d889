package s3test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// cephTools are the programs that a cluster of Ceph takes, radosgw last.
var cephTools = []string{
	"ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw-admin", string(Ceph),
}

// findCeph returns the path of radosgw where all of Ceph is there.
func findCeph() (path string, err error) {
	const install = "as root, run go run ./tests/cluster build ceph"
	for _, tool := range cephTools {
		if path, err = exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("find Ceph: %w (%s)", err, install)
		}
	}
	return path, nil
}

// cephConfig is ceph.conf of a cluster of one monitor and one OSD, which keeps objects in memory.
// It has no manager: nothing of the gateway waits for one. Its arguments are the cluster's id,
// the monitor's address, the folder, and the gateway's front end.
const cephConfig = `[global]
fsid = %[1]s
mon host = %[2]s
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = %[3]s/keyring
mon data = %[3]s/mon
osd data = %[3]s/osd
rgw data = %[3]s/rgw
log file = %[3]s/$name.log
pid file = %[3]s/$name.pid
run dir = %[3]s
crash dir = %[3]s
# The path of a socket in a test's folder may be too long for one.
admin socket =
# Full disks are the test's own matter.
mon data avail crit = 0
mon allow pool size one = true
# Else each change of the cluster's map waits for a second, and there are a dozen.
paxos propose interval = 0.02
paxos min wait = 0.01
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
rgw frontends = beast %[4]s
`

// startCeph starts a cluster, and its gateway at the address. What it needs is begun first, and is
// stopped last.
func (p process) startCeph(
	ctx context.Context, cfg objectstore.Config, addr string,
) (_ *running, endpoint string, err error) {
	monitor, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	dir, err := os.MkdirTemp(p.dir, "ceph-") // of this attempt
	if err != nil {
		return nil, "", err
	}
	frontend := "endpoint=" + addr
	if p.cert != "" {
		frontend = "ssl_endpoint=" + addr + " ssl_certificate=" + p.cert +
			" ssl_private_key=" + p.key
	}
	const cluster = "00000000-0000-4000-8000-000000000001" // any will do
	const disk = "00000000-0000-4000-8000-000000000002"
	config := fmt.Sprintf(cephConfig, cluster, monitor, dir, frontend)
	err = os.WriteFile(filepath.Join(dir, "ceph.conf"), []byte(config), 0o600)
	for _, folder := range []string{"mon", "osd", "rgw"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, folder), 0o700))
	}
	if err != nil {
		return nil, "", err
	}
	env := []string{"CEPH_CONF=" + filepath.Join(dir, "ceph.conf"), "HOME=" + dir, "LC_ALL=C.UTF-8"}

	var last *running // the process that was started last
	defer func() {
		if err != nil {
			err = errors.Join(err, last.stop())
		}
	}()
	daemon := func(name string, args ...string) {
		if err != nil {
			return
		}
		var run *running
		if run, err = begin(last, env, name, args...); err == nil {
			last = run
		}
	}
	tool := func(name string, args ...string) {
		if err == nil {
			err = last.command(ctx, env, name, args...)
		}
	}

	keyring, monmap := filepath.Join(dir, "keyring"), filepath.Join(dir, "monmap")
	key := func(name string, caps ...string) {
		tool("ceph-authtool", append([]string{keyring, "--gen-key", "-n", name}, caps...)...)
	}
	tool("ceph-authtool", "--create-keyring", keyring)
	key("mon.", "--cap", "mon", "allow *")
	key("client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
	key("osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *")
	key("client.rgw.a", "--cap", "mon", "allow rw", "--cap", "osd", "allow rwx")
	tool("monmaptool", "--create", "--add", "a", monitor, "--fsid", cluster, monmap)
	tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
	daemon("ceph-mon", "-i", "a", "-f")
	tool("ceph", "osd", "new", disk, "0")
	tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
	daemon("ceph-osd", "-i", "0", "-f")
	tool("radosgw-admin", "-n", "client.rgw.a", "user", "create", "--uid", "test",
		"--display-name", "test", "--access-key", p.access, "--secret-key", p.secret)
	daemon(p.binary, "-n", "client.rgw.a", "-f")
	if err != nil {
		return nil, "", err
	}
	gateway := last
	last = nil // serve stops it
	return p.serve(ctx, gateway, cfg, addr)
}

// command runs a program that ends by itself. One that waits for a process which has ended, as the
// monitor does where its port was taken, would wait for long.
func (r *running) command(ctx context.Context, env []string, name string, args ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r != nil {
		stopped := make(chan struct{})
		defer func() { cancel(nil); <-stopped }()
		go func() { // ends with this call
			defer close(stopped)
			select {
			case <-r.done:
				cancel(fmt.Errorf("%s has ended: %w: %s", r.cmd.Path, r.err, r.out.String()))
			case <-ctx.Done():
			}
		}()
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s %s: %w: %s", name, args[0], err, strings.TrimSpace(out.String()))
	}
	return nil
}
