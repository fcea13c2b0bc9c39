package bootd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/rackweft/rackweft/bootd/ca"
	"github.com/rackweft/rackweft/bootd/store"
)

// identity names the store, CA and seal key of one Site. It is stored in the store, with a copy in the state
// directory, to distinguish a part that is missing, or another Site's, from one that never existed.
type identity struct {
	Site    string `json:"site,omitzero"`    // chosen at first start
	CA      string `json:"ca,omitzero"`      // the certificate's fingerprint
	SealKey string `json:"sealKey,omitzero"` // the id of the key that seals
}

// identityKey is the identity's key in the store, identityFile the name of the copy in the state directory.
const (
	identityKey  = "identity"
	identityFile = "site.json"
)

// parts are the parts of a Site that this bootd has besides the store.
type parts struct {
	ca       string   // fingerprint; "" without a CA
	sealKeys []string // ids
	copy     *identity
}

// sessionKey is the key of the sealed key for BGP sessions in the store.
const sessionKey = "bgp-session-key"

// A part of a Site, as "bootd recreate" names it.
const (
	partStore   = "store"
	partCA      = "ca"
	partSealKey = "seal-key"
)

// SiteError says that the parts of a Site do not match: one is missing, or belongs to another Site. A restart does
// not help.
type SiteError struct {
	Part string // store, ca or seal-key
	// What is wrong, what is lost with it, and what to do.
	What, Lost, Do string
}

func (e *SiteError) Error() string { return e.What + ". " + e.Lost + ". " + e.Do }

// judge compares this bootd's parts with the identity in the store. stored is nil when the store has none; fresh
// says that the store is empty.
func (p parts) judge(stored *identity, fresh bool, where place) error {
	if stored == nil && fresh {
		if p.copy != nil && p.copy.Site != "" {
			return where.fault(partStore, "the store is empty, while "+identityFile+" says that it holds Site "+p.copy.Site)
		}
		return nil
	}
	if stored == nil { // a version that did not write it
		stored = &identity{CA: "unknown", SealKey: "unknown"}
		if p.ca != "" {
			stored.CA = p.ca
		}
		if len(p.sealKeys) > 0 {
			stored.SealKey = p.sealKeys[0]
		}
	}
	foreignCA := p.ca != "" && stored.CA != "" && p.ca != stored.CA
	foreignKey := len(p.sealKeys) > 0 && stored.SealKey != "" && !slices.Contains(p.sealKeys, stored.SealKey)
	ours := p.copy != nil && p.copy.Site != "" && p.copy.Site != stored.Site
	switch {
	case foreignCA && foreignKey || ours && (foreignCA || foreignKey):
		return where.fault(partStore, fmt.Sprintf("the store is that of another Site: it belongs to CA %s and seal key %s, and this bootd has CA %s and seal key %s",
			stored.CA, stored.SealKey, orNone(p.ca), orNone(first(p.sealKeys))))
	case ours:
		return where.fault(partStore, fmt.Sprintf("the store is that of Site %s, and %s names Site %s", stored.Site, identityFile, p.copy.Site))
	case stored.CA != "" && p.ca == "":
		return where.fault(partCA, "the Site's CA is missing, while the store belongs to CA "+stored.CA)
	case foreignCA:
		return where.fault(partCA, fmt.Sprintf("the CA is that of another Site: its fingerprint is %s, and the store belongs to CA %s", p.ca, stored.CA))
	case stored.SealKey != "" && len(p.sealKeys) == 0:
		return where.fault(partSealKey, "the seal key is missing, while the store is sealed with key "+stored.SealKey)
	case foreignKey:
		return where.fault(partSealKey, fmt.Sprintf("the seal key is another Site's: its id is %s, and the store is sealed with key %s", p.sealKeys[0], stored.SealKey))
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// place holds the paths of a Site's parts.
type place struct {
	dir      string
	external bool
}

func (w place) fault(part, what string) error {
	e := &SiteError{Part: part, What: what}
	paths := map[string]string{
		partStore: filepath.Join(w.dir, "etcd"), partCA: filepath.Join(w.dir, "ca"), partSealKey: filepath.Join(w.dir, "seal.key"),
	}
	if w.external {
		paths[partStore] = "store.endpoints"
	}
	switch part {
	case partStore:
		e.Lost = "Without its store every object is lost, from Machines to Guests, and every lease"
	case partCA:
		e.Lost = "Without that CA no host and no person's certificate is recognized, and hosts do not recognize bootd"
	case partSealKey:
		e.Lost = "Without that key no Secret can be opened, and hosts drop their BGP sessions"
	}
	e.Do = fmt.Sprintf("Restore a backup with \"bootd restore FILE --state-dir %s\"", w.dir)
	switch {
	case part == partStore && w.external:
		e.Do += ", or correct " + paths[part]
	case part == partStore:
		e.Do += ", or restore " + paths[part]
	case w.external:
		e.Do += ", or copy " + paths[part] + " from the bootd that has the Site"
	default:
		e.Do += ", or restore " + paths[part]
	}
	e.Do += fmt.Sprintf(". To give it up, run \"bootd recreate %s --state-dir %s\" with bootd stopped: %s", part, w.dir, map[string]string{
		partStore:   "bootd then starts with an empty store and the CA and seal key that are here",
		partCA:      "bootd then creates a new CA, and every host must be provisioned again",
		partSealKey: "bootd then creates a new key, and every Secret must be applied again",
	}[part])
	return e
}

func (c Config) place() place {
	return place{dir: c.StateDir, external: len(c.Store.Endpoints) > 0}
}

// checkDir detects a missing embedded store before etcd creates a new one.
func (w place) checkDir(p parts) error {
	if w.external || store.Exists(w.dir) {
		return nil
	}
	if p.copy != nil && p.copy.Site != "" {
		return w.fault(partStore, "the store is missing, while "+identityFile+" says that it holds Site "+p.copy.Site)
	}
	if p.copy == nil && p.ca != "" { // a version that wrote no copy
		return w.fault(partStore, "the store is missing, while the CA of a Site is here")
	}
	return nil
}

// readParts reads the parts of a Site that this bootd has, and creates none.
func (w place) readParts() (parts, error) {
	var p parts
	var err error
	if p.copy, err = readIdentity(w.dir); err != nil {
		return p, err
	}
	keyring, err := ca.FindKeyring(w.dir, os.Getenv("CREDENTIALS_DIRECTORY"))
	if err != nil && !errors.Is(err, ca.ErrNoKey) {
		return p, w.fault(partSealKey, err.Error())
	}
	if err == nil {
		p.sealKeys = keyring.KeyIDs()
	}
	authority, err := ca.Find(w.dir)
	if err != nil && !errors.Is(err, ca.ErrNoCA) {
		return p, w.fault(partCA, err.Error())
	}
	if err == nil {
		p.ca = authority.Fingerprint()
	}
	return p, nil
}

func readIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read this bootd's Site: %w", err)
	}
	id := new(identity)
	if json.Unmarshal(raw, id) != nil {
		return nil, nil // a copy: the store has it too, and without the store the CA suffices
	}
	return id, nil
}

// openSite opens the store, the seal key and the CA, once it is known that they match. At the first start it
// creates them.
func (d *daemon) openSite(ctx context.Context) error {
	here := d.config.place()
	p, err := here.readParts()
	if err != nil {
		return err
	}
	if err := here.checkDir(p); err != nil {
		return err
	}
	if d.store, err = store.Open(ctx, d.config.storeConfig(), nil, d.log); err != nil {
		return err
	}
	// A bootd that could never take over says so before it waits. What it finds once it has the Site counts,
	// because the other one may have created it in between.
	if _, err := here.check(ctx, d.store, p); err != nil {
		return err
	}
	if err := hold(ctx, d.store, d.notify, d.log); err != nil {
		return err
	}
	stored, err := here.check(ctx, d.store, p)
	if err != nil {
		return err
	}
	if d.keyring, err = ca.LoadKeyring(d.config.StateDir, os.Getenv("CREDENTIALS_DIRECTORY")); err != nil {
		return err
	}
	d.store.SealWith(d.keyring)
	if d.keyring.Generated {
		d.log.Warn("Secrets are sealed with a key that bootd created and stores next to them: provide one of your own as the systemd credential rackweft-seal-key",
			"file", filepath.Join(d.config.StateDir, "seal.key"))
	}
	if d.ca, err = ca.Open(d.config.StateDir); err != nil {
		return err
	}
	return d.identify(ctx, stored, p.copy)
}

// check compares the store's identity with this bootd's parts.
func (w place) check(ctx context.Context, st *store.Store, p parts) (*identity, error) {
	raw, err := st.Raw.Get(ctx, identityKey)
	if err != nil {
		return nil, err
	}
	var stored *identity
	if raw != nil {
		stored = new(identity)
		if err := json.Unmarshal(raw, stored); err != nil {
			return nil, fmt.Errorf("the store's identity is damaged: %w", err)
		}
	}
	fresh, err := st.Empty(ctx)
	if err != nil {
		return nil, err
	}
	return stored, p.judge(stored, fresh, w)
}

// identify writes the identity, in the store and next to it.
func (d *daemon) identify(ctx context.Context, stored, copied *identity) error {
	now := identity{Site: uuid.NewString(), CA: d.ca.Fingerprint(), SealKey: d.keyring.KeyIDs()[0]}
	if stored != nil && stored.Site != "" {
		now.Site = stored.Site
	}
	raw, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encode the Site's identity: %w", err)
	}
	if stored == nil || *stored != now {
		if err := d.store.Raw.Put(ctx, identityKey, raw); err != nil {
			return tolerate(d.log, "write the identity of the store", err)
		}
	}
	if copied != nil && *copied == now {
		return nil
	}
	return tolerate(d.log, "write a copy of the Site's identity", d.config.place().writeIdentity(now))
}
