package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// install is the postStart hook. The kubelet starts no other container before it has returned, so whatever a container needs of the volume is there: tee,
// and a folder for its log that any user can write to. It can be repeated.
func install(config contract.Config, tee, volume string) error {
	bin := filepath.Join(volume, contract.BinSubPath)
	if err := makeDir(bin, 0o755); err != nil {
		return err
	}
	if err := copyExecutable(tee, filepath.Join(bin, filepath.Base(contract.TeePath))); err != nil {
		return err
	}
	if err := makeFolders(config.Containers, volume); err != nil {
		return err
	}
	folder := func(name string) string {
		return filepath.Join(volume, contract.LogsSubPath, name)
	}
	for _, name := range config.Containers {
		_ = spool.Reserve(folder(name)) // tee tries again
	}
	if config.SpoolLimit <= 0 {
		return nil
	}
	// Nothing is printed yet. Where this fails, the shipper writes the shares, and has a word for it.
	n := len(config.Containers)
	for i, given := range divide(config.SpoolLimit, make([]int64, n), make([]bool, n)) {
		share := spool.Share{Limit: given, DiskFree: config.DiskFree}
		_ = writeShare(folder(config.Containers[i]), share, true)
	}
	return nil
}

// makeFolders makes the folders of the logs and of the shipper's state.
func makeFolders(containers []string, volume string) error {
	if err := makeDir(filepath.Join(volume, contract.LogsSubPath), 0o755); err != nil {
		return err
	}
	for _, name := range containers {
		// Steps run as any user, and this one's user can then delete what is shipped.
		folder := filepath.Join(volume, contract.LogsSubPath, name)
		if err := makeDir(folder, 0o777); err != nil {
			return err
		}
		makeOfferFolder(folder)
	}
	return makeDir(filepath.Join(volume, contract.StateSubPath), 0o700)
}

// makeDir makes a folder with exactly this mode, whatever the umask. One that the kubelet made for a subPath mount is another user's and 0777 already.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make folder in the spool: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("make folder in the spool: %w", err)
	}
	if info.Mode().Perm() == mode {
		return nil
	}
	// A step that runs as root can have taken the folder over by the time that a shipper begins again. It has what it wants then, and the other containers' folders are in order.
	if err := os.Chmod(dir, mode); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("make folder in the spool: %w", err)
	}
	return nil
}

// copyExecutable copies under another name first: a container must not start half a file.
func copyExecutable(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("install tee: %w", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".tee-*")
	if err != nil {
		return fmt.Errorf("install tee: %w", err)
	}
	defer os.Remove(out.Name()) // not there any more when all went well
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return fmt.Errorf("install tee: %w", err)
	}
	if err := os.Rename(out.Name(), to); err != nil {
		return fmt.Errorf("install tee: %w", err)
	}
	return nil
}

// placeScripts does below root what Tekton's place-scripts would do, where the shipper is in that
// container's place.
func placeScripts(value, root string) error {
	text, err := contract.PlacedScripts(value)
	if err != nil || text == "" {
		return err
	}
	scripts, err := placescripts.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", contract.PlaceScriptsEnv, err)
	}
	return placescripts.Write(root, scripts)
}
