package bootd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/internal/file"
)

// RecreateParts are the parts that Recreate can replace.
func RecreateParts() []string { return []string{partCA, partSealKey, partStore} }

// Recreate gives up a part of a Site that is lost or belongs to another Site, so that the next start of bootd
// creates a new one. An existing part is moved aside; aside is its path, "" when there was none. bootd must be
// stopped.
func Recreate(ctx context.Context, config Config, part string, log *slog.Logger) (aside string, err error) {
	switch part {
	case partStore:
		return config.place().giveUpStore()
	case partCA, partSealKey:
		return giveUp(ctx, config, part, log)
	}
	return "", fmt.Errorf("invalid part %q of a Site: want ca, seal-key or store", part)
}

// giveUpStore lets an empty store be used with the CA and the seal key.
func (w place) giveUpStore() (aside string, err error) {
	lock, err := store.Lock(w.dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if !w.external {
		if aside, err = w.moveAside("etcd"); err != nil {
			return "", err
		}
	}
	return aside, w.writeIdentity(identity{})
}

// giveUp lets the store be used with another CA or seal key.
func giveUp(ctx context.Context, config Config, part string, log *slog.Logger) (aside string, err error) {
	w := config.place()
	// It does not matter whether a CA and a seal key that are being given up can be read.
	id, err := readIdentity(w.dir)
	if err != nil {
		return "", err
	}
	if err := w.checkDir(parts{copy: id}); err != nil {
		return "", err
	}
	s, err := store.Open(ctx, config.storeConfig(), nil, log)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := holdNow(ctx, s); err != nil {
		return "", err
	}
	if err := forget(ctx, s, w, part); err != nil {
		return "", err
	}
	return w.moveAside(map[string]string{partCA: "ca", partSealKey: "seal.key"}[part])
}

// holdNow takes the hold on the Site, and does not wait for another bootd that has it.
func holdNow(ctx context.Context, s *store.Store) error {
	var other *store.Holder
	trying, stop := context.WithCancel(ctx)
	defer stop()
	err := s.Hold(trying, func(h store.Holder) { other = &h; stop() })
	if err != nil && other != nil {
		return fmt.Errorf("another bootd serves the Site, %s: stop it first", other)
	}
	return err
}

// forget lets the store be used with another CA or seal key.
func forget(ctx context.Context, s *store.Store, w place, part string) error {
	id := identity{Site: uuid.NewString()}
	raw, err := s.Raw.Get(ctx, identityKey)
	if err != nil {
		return err
	}
	if raw != nil {
		if err := json.Unmarshal(raw, &id); err != nil {
			return fmt.Errorf("the store's identity is damaged: %w", err)
		}
	}
	if part == partCA {
		id.CA = ""
	} else {
		id.SealKey = ""
		if err := s.Raw.Delete(ctx, sessionKey); err != nil {
			return err
		}
	}
	if raw, err = json.Marshal(id); err != nil {
		return fmt.Errorf("encode the Site's identity: %w", err)
	}
	if err := s.Raw.Put(ctx, identityKey, raw); err != nil {
		return err
	}
	return w.writeIdentity(id)
}

func (w place) writeIdentity(id identity) error {
	raw, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the Site's identity: %w", err)
	}
	if err := file.Replace(filepath.Join(w.dir, identityFile), append(raw, '\n'), file.Options{}); err != nil {
		return fmt.Errorf("write this bootd's Site: %w", err)
	}
	return nil
}

// moveAside renames a file or directory in the state directory, if it exists.
func (w place) moveAside(name string) (string, error) {
	from := filepath.Join(w.dir, name)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	to := from + ".given-up-" + time.Now().UTC().Format("20060102T150405Z")
	if err := file.Rename(from, to); err != nil {
		return "", fmt.Errorf("move %s aside: %w", from, err)
	}
	return to, nil
}
