package guest

import (
	"log/slog"
	"path/filepath"

	"github.com/rackweft/rackweft/api"
)

// identity is what each part of a Guest knows of it: who it is, where its files
// are and whom to tell. None of it changes.
type identity struct {
	name, uid string
	dir       string // its disks, its record and its logs
	run       string // its sockets, gone with a reboot
	log       *slog.Logger
	timing    timing
	event     func(typ api.EventType, reason, message string) // tells bootd
	reached   func(point string)                              // see Handler.reached
}

func newIdentity(h *Handler, name, uid string) *identity {
	return &identity{name: name, uid: uid, dir: h.disks.GuestDir(uid), run: filepath.Join(h.o.RunDir, uid),
		log: h.o.Log.With("guest", name), timing: h.timing, reached: h.reached,
		event: func(typ api.EventType, reason, message string) { h.event(name, uid, typ, reason, message) }}
}
