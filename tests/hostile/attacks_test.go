//go:build linux

package hostile

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// attack is what a hostile step does in its own folder, which is the working directory. Before it, the step has logged honestLines into the first file.
type attack struct {
	name string
	// root runs it as root, past the kernel's protection of links and all modes. Otherwise it is another user than the shipper.
	root bool
	// early is before the shipper has seen the folder.
	early bool
	// mass makes so much that the spool is in memory: how fast this machine's disk is does not matter here.
	mass bool
	// plant is done once, again after each kill of the shipper if that is asked for, and loop again and again while the shipper works.
	plant func() error
	loop  func(round int) error
}

// What a hostile step would like to have in a log, as the shipper sees it. All but the last two hold CRI lines, and could be read by the shipper.
var secrets = map[string]string{
	"/etc/passwd":                          "SECRET-OF-THE-ROOT-FOLDER",
	"/var/run/secrets/shiplog.dev/planted": "SECRET-BESIDE-THE-TOKEN",
	contract.VolumeMount + "/" + contract.StateSubPath + "/planted":    "SECRET-BESIDE-THE-STATE",
	contract.VolumeMount + "/" + contract.LogsSubPath + "/planted.log": "SECRET-OF-ANOTHER-FOLDER",
}

var targets = []string{
	"/etc/passwd", "/etc", "/var/run/secrets/shiplog.dev/planted", contract.TokenFile,
	contract.VolumeMount + "/" + contract.StateSubPath + "/planted", contract.VolumeMount + "/" + contract.StateSubPath + "/ticket",
	contract.VolumeMount + "/" + contract.StateSubPath, contract.VolumeMount + "/" + contract.LogsSubPath + "/planted.log",
	"../planted.log", "../../state/planted", "/proc/self/environ", "/dev/zero", ".", "..", spool.LogName(0), "/dev/stdin",
}

func line(i int, text string) []byte {
	return criline.Append(nil, time.Date(2026, 11, 23, 1, 2, 3, i, time.UTC), criline.Stdout, true, []byte(text))
}

func lines(n int, text string) (b []byte) {
	for i := range n {
		b = append(b, line(i, fmt.Sprintf("%s %d", text, i))...)
	}
	return b
}

// honestLines are shipped before the attack.
var honestLines = lines(1000, "before the attack")

// offer sends files to the shipper, as tee does. Where nobody listens any more, as after another attack or while the shipper begins again, there is nobody to attack.
func offer(fds ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: spool.OfferFolder + "/" + spool.OfferSocket})
	if err == nil {
		err = unix.Sendmsg(fd, []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return errors.Join(err, unix.Close(fd))
}

// next is the offset behind honestLines: where an honest step's next file begins.
var next = int64(len(honestLines))

// notes are the names that mean something beside the log files.
var notes = []string{spool.EndFile, spool.EndFile + ".tmp", spool.TermFile, "tee"}

// at are the names that a shipper looks for.
func at() []string {
	names := append([]string{}, notes...)
	for i := range int64(len(targets)) {
		names = append(names, spool.LogName(next+i*10))
	}
	return names
}

// each puts something in the place of every name that the shipper looks for, and of the file that it has open.
func each(put func(i int, name string) error) func() error {
	return func() error {
		for i, name := range append(at(), spool.LogName(0)) {
			if err := away(name); err != nil {
				return err
			}
			if err := put(i, name); err != nil {
				return err
			}
		}
		return os.WriteFile(spool.LogName(next+5000), lines(10, "behind it"), 0o644)
	}
}

// away makes room for something else under a name. What is another user's the step can only rename.
func away(name string) error {
	return ignoreGone(os.Rename(name, "old-"+name))
}

func write(files map[string][]byte) func() error {
	return func() error {
		for name, b := range files {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

// sparse makes a file of any size that takes no space.
func sparse(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func socket(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// It listens for as long as the step lives.
	return errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: name}), unix.Listen(fd, 1))
}

// forged are lines that tee would never write, all in the right form.
func forged() (b []byte) {
	for i, at := range []string{
		"0001-01-01T00:00:00.000000000Z", "9999-12-31T23:59:59.999999999Z", "0000-01-01T00:00:00.000000000Z", "2026-11-23T00:00:00.000000000Z", "1970-01-01T00:00:00.000000000Z",
	} {
		for _, stream := range []string{"stdout", "stderr", "marker"} {
			for _, tag := range []string{"F", "P"} {
				b = append(b, fmt.Sprintf("%s %s %s forged %d\n", at, stream, tag, i)...)
			}
		}
	}
	for _, marker := range []string{
		`{"kind":"gap","reason":"forged","stdout":9223372036854775807,"stderr":9223372036854775807}`,
		`{"kind":"gap","reason":"forged","stdout":-9223372036854775808,"stderr":-1}`,
		`{"kind":"gap","reason":"` + strings.Repeat("r", 60_000) + `","stdout":1,"stderr":1,"unknown":true}`,
		`{"kind":"end"}`, `{`, `[]`, `null`,
	} {
		b = append(b, criline.Append(nil, time.Now(), criline.Markers, true, []byte(marker))...)
	}
	return append(b, "2026-13-32T25:61:61.000000000Z stdout F no such time\n2026-11-23T00:00:00.000000000Z stdxxx F no such stream\n2026-11-23T00:00:00.000000000Z stdout X no such tag\n\x00\xff\n\n"...)
}

var ends = []string{
	`{"exit":{"code":9223372036854775807,"signal":"` + strings.Repeat("s", 3000) + `"},"bytes":9223372036854775807,"printed":{"stdout":9223372036854775807,"stderr":9223372036854775807},"lines":9223372036854775807,"first":"0001-01-01T00:00:00Z","last":"9999-12-31T23:59:59-23:59"}`,
	`{"exit":{"code":-9223372036854775808},"bytes":-9223372036854775808,"printed":{"stdout":-1,"stderr":-9223372036854775808},"lines":-1}`,
	`{"exit":{"code":0},"bytes":1,"printed":{"stdout":1,"stderr":1},"gap":{"kind":"gap","reason":"forged","stdout":9223372036854775807,"stderr":9223372036854775807},"last":"9999-12-31T23:59:59-23:59"}`,
	`{"exit":{"code":0},"bytes":99999999999999999999}`, `{"exit":`, "no JSON", "", "null", "[]", "\x00", strings.Repeat("[", spool.MaxEnd), `{"exit":{"code":0}}` + strings.Repeat(" ", spool.MaxEnd),
}

// making is what is called so until all of it is there. The shipper may remove a thing at once that has the name of one of its files and is none.
const making = "making"

func attacks() []attack {
	long := strings.Repeat("n", 255)
	return []attack{
		{name: "symlinks", plant: each(func(i int, name string) error { return os.Symlink(targets[i%len(targets)], name) })},
		{name: "hard-links", root: true, plant: func() error {
			// As root nothing protects what is linked. Where the spool is mounted as a pod has it, a step cannot link out of its folder: TestStepCannotLinkOutOfItsFolder.
			if err := os.Link("../../state/planted", spool.LogName(next)); err != nil {
				return err
			}
			if err := os.Link("../planted.log", spool.LogName(next+10)); err != nil {
				return err
			}
			if err := os.Link("../../state/ticket", spool.EndFile); err != nil {
				return err
			}
			if err := os.Link(spool.LogName(0), spool.LogName(next+20)); err != nil {
				return err
			}
			return os.WriteFile(spool.LogName(next+5000), lines(10, "behind it"), 0o644)
		}},
		{name: "hard-links-of-another-user", plant: func() error {
			for _, target := range []string{"../../state/planted", "../planted.log", "../../state/ticket"} {
				if err := os.Link(target, spool.LogName(next)); err == nil {
					// Where fs.protected_hardlinks is off, the link is there, and the shipper must see to it.
					if b, err := os.ReadFile("/proc/sys/fs/protected_hardlinks"); err != nil || string(bytes.TrimSpace(b)) != "0" {
						return fmt.Errorf("another user's file could be linked, though links are protected: %s, %v", b, err)
					}
					next++
				}
			}
			return os.WriteFile(spool.LogName(next+5000), lines(10, "behind it"), 0o644)
		}},
		{name: "FIFOs", plant: each(func(_ int, name string) error { return unix.Mkfifo(name, 0o666) })},
		{name: "FIFOs-with-a-writer", plant: each(func(_ int, name string) error {
			if err := unix.Mkfifo(making, 0o666); err != nil {
				return err
			}
			fd, err := unix.Open(making, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // open for as long as the step lives
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, lines(3, "in a FIFO"))
			return errors.Join(err, os.Rename(making, name))
		})},
		{name: "sockets", plant: each(func(_ int, name string) error { return socket(name) })},
		{name: "devices", root: true, plant: each(func(_ int, name string) error { return unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))) })}, // /dev/zero
		{name: "folders", plant: each(func(_ int, name string) error {
			return errors.Join(os.Mkdir(making, 0o777), os.WriteFile(making+"/"+spool.LogName(0), lines(3, "in a folder"), 0o666), os.Rename(making, name))
		})},
		{name: "offers-that-are-none", plant: func() error { return offer() }, loop: func(round int) error {
			fd := int(os.Stdin.Fd())
			return offer([][]int{nil, {fd}, {fd, fd, fd}, {fd, fd, fd, fd, fd, fd}}[round%4]...)
		}},
		{name: "offer-that-is-forged", plant: func() error {
			hand := spool.NewHand(false)
			var pipes [2][2]int
			for i := range pipes {
				if err := unix.Pipe2(pipes[i][:], unix.O_CLOEXEC); err != nil { // both ends stay open, and reading blocks
					return err
				}
			}
			forged := make([]byte, 40) // 2^40 bytes handed on, and a chunk
			binary.NativeEndian.PutUint64(forged, 1<<60|1<<16)
			_, err := unix.Pwrite(hand.FD, forged, 0)
			return errors.Join(err, offer(hand.FD, pipes[0][0], pipes[1][0]))
		}},
		{name: "no-room-for-offers", plant: func() error {
			return errors.Join(os.Rename("tee", "away"), os.Mkdir("tee", 0o777), unix.Mkfifo("tee/"+spool.OfferSocket, 0o666))
		}},
		{name: "unreadable-files", plant: each(func(_ int, name string) error { return os.WriteFile(name, lines(3, "unreadable"), 0) })},
		{name: "swapped-while-read", plant: func() error {
			return errors.Join(os.Symlink(targets[2], "link"), os.Symlink(targets[4], "link2"), os.Mkdir("dir", 0o777), unix.Mkfifo("fifo", 0o666), write(map[string][]byte{
				"file": lines(5000, "swapped"), spool.LogName(next): lines(5000, "first"), spool.LogName(next + 10_000_000): lines(5000, "second"), spool.EndFile: []byte(`{}`),
			})())
		}, loop: func(round int) error {
			from := []string{"link", "dir", "fifo", "file", "link2"}[round%5]
			to := []string{spool.LogName(next), spool.LogName(next + 10_000_000), spool.EndFile, spool.LogName(0)}[round%4]
			err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
			if errors.Is(err, unix.ENOENT) { // the shipper has deleted one of them
				err = os.WriteFile(to, lines(50, "again"), 0o644)
			}
			if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) {
				err = nil // through a link, or what stands there is no file
			}
			return err
		}},
		{name: "truncated-and-rewritten", plant: write(map[string][]byte{spool.LogName(next): lines(100, "first")}), loop: func(round int) error {
			name := []string{spool.LogName(0), spool.LogName(next), spool.LogName(next + 1_000_000)}[round%3]
			switch round % 7 {
			case 0:
				return ignoreGone(os.Truncate(name, 0))
			case 1:
				return ignoreGone(os.Truncate(name, int64(round%5000)))
			case 2:
				return os.WriteFile(name, bytes.Repeat([]byte{'x'}, round%300_000), 0o644)
			case 3:
				return ignoreGone(os.Remove(name))
			default:
				return os.WriteFile(name, lines(1+round%1000, "rewritten"), 0o644)
			}
		}},
		{name: "other-base-offsets", plant: write(map[string][]byte{
			spool.LogName(1): lines(10, "overlapping"), spool.LogName(next - 1): lines(10, "overlapping at the end"), spool.LogName(next + 1): lines(10, "one byte too far"),
			spool.LogName(1 << 40): lines(10, "far"), spool.LogName(math.MaxInt64 - 1): lines(10, "at the end of all numbers"), spool.LogName(math.MaxInt64): lines(10, "the last number"),
			"-0000000000000000001.log": lines(10, "negative"), "-9223372036854775808.log": lines(10, "negative"), "99999999999999999999.log": lines(10, "no such number"),
			"09223372036854775808.log": lines(10, "no such number"), "0x000000000000000001.log": lines(10, "hexadecimal"), "+0000000000000000001.log": lines(10, "positive"),
		})},
		{name: "largest-base-at-first", early: true, plant: func() error {
			return errors.Join(os.Remove(spool.LogName(0)), os.WriteFile(spool.LogName(math.MaxInt64), honestLines, 0o644))
		}},
		{name: "forged-ends", plant: write(map[string][]byte{spool.LogName(next): lines(10, "more")}), loop: func(round int) error {
			return os.WriteFile(spool.EndFile, []byte(ends[round%len(ends)]), 0o644)
		}},
		{name: "sparse-end", plant: func() error { return sparse(spool.EndFile, 1<<30) }},
		{name: "forged-lines", plant: write(map[string][]byte{spool.LogName(next): bytes.Repeat(forged(), 20)})},
		{name: "first-line-of-year-1", early: true, plant: write(map[string][]byte{spool.LogName(0): []byte("0001-01-01T00:00:00.000000000Z stdout F year 1\n")})},
		{name: "rewritten-marks", plant: write(map[string][]byte{spool.LogName(next): lines(10, "more")}), loop: func(round int) error {
			f, err := os.OpenFile(spool.LogName(next), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			_, err = f.Write(line(round, "one more"))
			if round%2 == 0 {
				err = errors.Join(err, os.WriteFile(spool.TermFile, bytes.Repeat([]byte{'t'}, round%9999), 0o644), os.WriteFile(spool.EndFile, []byte(`{"exit":{"code":1}}`), 0o644))
			} else {
				err = errors.Join(err, os.Remove(spool.TermFile), os.Remove(spool.EndFile))
			}
			return errors.Join(err, f.Close())
		}},
		{name: "longest-names", plant: func() error {
			for i := range 2000 {
				if err := os.WriteFile(fmt.Sprintf("%06d%s", i, long[6:]), nil, 0o644); err != nil {
					return err
				}
			}
			return errors.Join(
				os.WriteFile(strings.Repeat("0", 251)+".log", lines(3, "long"), 0o644), os.WriteFile(spool.LogName(next)+long[24:], lines(3, "long"), 0o644),
				os.WriteFile(string(bytes.Repeat([]byte{0xff}, 255)), nil, 0o644), os.WriteFile("\n\r\x1b[31m${filename}%2f%00", nil, 0o644),
				os.WriteFile(spool.LogName(next), lines(10, "among long names"), 0o644))
		}},
		{name: "100000-files", mass: true, plant: func() error {
			for i := range 100_000 {
				if err := os.WriteFile(fmt.Sprintf("%06d%s", i, long[6:]), nil, 0o644); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "100000-empty-log-files", mass: true, plant: func() error {
			for i := range int64(100_000) {
				if err := os.WriteFile(spool.LogName(next+i*100), nil, 0o644); err != nil {
					return err
				}
			}
			return os.WriteFile(spool.LogName(next+1<<40), lines(10, "behind them"), 0o644)
		}},
		{name: "100000-log-files-of-a-line", mass: true, plant: func() error {
			for i := range int64(100_000) {
				if err := os.WriteFile(spool.LogName(next+i*47), line(int(i), "one of many"), 0o644); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "sparse-1-TiB", plant: func() error {
			const size = 1 << 40
			if err := sparse(spool.LogName(next), size); err != nil {
				return err
			}
			f, err := os.OpenFile(spool.LogName(next), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			// Islands of data: each has to be found.
			for i := range int64(200) {
				if _, err := f.WriteAt([]byte("\n"), i*(size/200)); err != nil {
					return err
				}
			}
			_, err = f.WriteAt(append([]byte{'\n'}, lines(10, "at its end")...), size-1000)
			return errors.Join(err, f.Close(), sparse(spool.LogName(next+size), size), sparse(spool.LogName(next+2*size), size), sparse(spool.EndFile, size), sparse(spool.TermFile, size))
		}},
		// Each kind alone is as much as the shipper's memory limit.
		{name: "128-MiB-of-garbage", mass: true, plant: func() error {
			return errors.Join(
				os.WriteFile(spool.LogName(next), bytes.Repeat([]byte{'x'}, 64<<20), 0o644),
				os.WriteFile(spool.LogName(next+64<<20), bytes.Repeat([]byte("short\n"), 64<<20/6), 0o644),
				os.WriteFile(spool.LogName(next+1<<40), lines(10, "behind it"), 0o644))
		}},
		{name: "folder-closed-to-the-shipper", root: true, plant: func() error {
			return errors.Join(os.WriteFile(spool.LogName(next), lines(10, "closed"), 0o644), os.Chown(".", 0, 0), os.Chmod(".", 0o700))
		}},
	}
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// attackEnv makes the test's binary a hostile step.
const attackEnv = "SHIPLOG_HOSTILE_STEP"

// beStep is a hostile step's process: it works in the folder that is open as 3. It logs honestly, and attacks when it is told to on stdin; it ends when stdin does. What it did is on stdout.
func beStep(name string) error {
	if err := unix.Fchdir(3); err != nil {
		return err
	}
	unix.Umask(0)
	if err := os.WriteFile(spool.LogName(0), honestLines, 0o644); err != nil {
		return err
	}
	for _, a := range attacks() {
		if a.name != name {
			continue
		}
		if a.early {
			if err := a.plant(); err != nil {
				return err
			}
		}
		fmt.Println("logged")
		orders := bufio.NewReader(os.Stdin)
		if _, err := orders.ReadByte(); err != nil {
			return err
		}
		if !a.early {
			if err := a.plant(); err != nil {
				return err
			}
		}
		fmt.Println("planted")
		over := make(chan struct{})
		go func() { // ends with the process at the latest
			_, _ = io.Copy(io.Discard, orders)
			close(over)
		}()
		rounds := 0
		for a.loop != nil {
			select {
			case <-over:
				fmt.Println("rounds", rounds)
				return nil
			default:
			}
			if err := a.loop(rounds); err != nil {
				return fmt.Errorf("round %d: %w", rounds, err)
			}
			rounds++
		}
		<-over
		fmt.Println("rounds", rounds)
		return nil
	}
	return fmt.Errorf("no attack is named %q", name)
}
