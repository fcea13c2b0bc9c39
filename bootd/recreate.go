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

// RecreateParts are what Recreate can give up.
func RecreateParts() []string { return []string{partCA, partSealKey, partStore} }

// Recreate gives up a part of a Site that is lost or another Site's, so that the
// next start of bootd makes a new one. What is there in its place is moved
// aside; aside is its path, "" when nothing was there. bootd must be stopped.
func Recreate(ctx context.Context, config Config, part string, log *slog.Logger) (aside string, err error) {
	d := &daemon{config: config, log: log}
	switch part {
	case partStore:
		return d.giveUpStore()
	case partCA, partSealKey:
		return d.giveUp(ctx, part)
	}
	return "", fmt.Errorf("%q is no part of a Site: want ca, seal-key or store", part)
}

// giveUpStore makes an empty store welcome to the CA and the seal key.
func (d *daemon) giveUpStore() (aside string, err error) {
	lock, err := store.Lock(d.config.StateDir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if !d.words().external {
		if aside, err = d.moveAside("etcd"); err != nil {
			return "", err
		}
	}
	return aside, d.writeIdentity(identity{})
}

// giveUp makes the store welcome another CA or seal key.
func (d *daemon) giveUp(ctx context.Context, part string) (aside string, err error) {
	p, err := d.readIdentityOnly()
	if err != nil {
		return "", err
	}
	if err := d.checkDir(p); err != nil {
		return "", err
	}
	if d.store, err = store.Open(ctx, d.config.storeConfig(), nil, d.log); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()
	id := identity{Site: uuid.NewString()}
	raw, err := d.store.GetRaw(ctx, identityKey)
	if err != nil {
		return "", err
	}
	if raw != nil {
		if err := json.Unmarshal(raw, &id); err != nil {
			return "", fmt.Errorf("the store's identity is damaged: %w", err)
		}
	}
	name := "ca"
	if part == partCA {
		id.CA = ""
	} else {
		name, id.SealKey = "seal.key", ""
		if err := d.store.DeleteRaw(ctx, sessionKey); err != nil {
			return "", err
		}
	}
	if raw, err = json.Marshal(id); err != nil {
		return "", fmt.Errorf("encode the Site's identity: %w", err)
	}
	if err := d.store.PutRaw(ctx, identityKey, raw); err != nil {
		return "", err
	}
	if aside, err = d.moveAside(name); err != nil {
		return "", err
	}
	return aside, d.writeIdentity(id)
}

// readIdentityOnly passes over a CA and a seal key that cannot be read: they are
// what is being given up.
func (d *daemon) readIdentityOnly() (parts, error) {
	id, err := readIdentity(d.config.StateDir)
	return parts{copy: id}, err
}

func (d *daemon) writeIdentity(id identity) error {
	raw, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode the Site's identity: %w", err)
	}
	if err := file.Replace(filepath.Join(d.config.StateDir, identityFile), append(raw, '\n'), file.Options{}); err != nil {
		return fmt.Errorf("write which Site this bootd is of: %w", err)
	}
	return nil
}

// moveAside renames what has a name in the state directory.
func (d *daemon) moveAside(name string) (string, error) {
	from := filepath.Join(d.config.StateDir, name)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	to := from + ".given-up-" + time.Now().UTC().Format("20060102T150405Z")
	if err := file.Rename(from, to); err != nil {
		return "", fmt.Errorf("move %s aside: %w", from, err)
	}
	return to, nil
}
