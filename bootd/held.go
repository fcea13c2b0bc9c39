package bootd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/rackweft/rackweft/bootd/boot"
	"github.com/rackweft/rackweft/bootd/dhcp"
	"github.com/rackweft/rackweft/bootd/httpboot"
	"github.com/rackweft/rackweft/bootd/store"
	"github.com/rackweft/rackweft/bootd/tftp"
	"github.com/rackweft/rackweft/systemd"
)

// hold returns when this bootd holds the Site. With an external store another one may hold it: then nothing is
// served or written until that one is gone.
func hold(ctx context.Context, s *store.Store, notify *systemd.Notifier, log *slog.Logger) error {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	var feeding sync.WaitGroup
	notified := false
	err := s.Hold(ctx, func(h store.Holder) {
		log.Warn("another bootd serves this Site: this one is a standby and takes over when that one is gone",
			"host", h.Host, "pid", h.PID, "stateDir", h.StateDir, "since", h.Since.UTC().Format(time.RFC3339))
		notify.Status(fmt.Sprintf("Standing by: %s serves the Site", h))
		if !notified { // systemd need not wait for the other one to end
			notified = true
			notify.Ready()
			feeding.Go(func() { notify.Watchdog(waiting, func() bool { return true }) })
		}
	})
	stop()
	feeding.Wait()
	if err != nil {
		return fmt.Errorf("wait for the Site: %w", err)
	}
	if notified {
		log.Info("the other bootd is gone: this one takes over the Site")
		notify.Status("Serving the Site")
	}
	return nil
}

// held stops the answers of a bootd that may have lost the Site: one that was suspended and continues would answer
// from stale data.
type held struct {
	*boot.Decider
	store *store.Store
}

// allowed is the check at the beginning of every answer.
func (h held) allowed() error {
	if err := h.store.Holding(); err != nil {
		return fmt.Errorf("%w: %w", dhcp.ErrNotMine, err)
	}
	return nil
}

func (h held) Offer(ctx context.Context, c dhcp.Client) (dhcp.Answer, error) {
	if err := h.allowed(); err != nil {
		return dhcp.Answer{}, err
	}
	return h.Decider.Offer(ctx, c)
}

func (h held) Request(ctx context.Context, c dhcp.Client, addr netip.Addr) (dhcp.Answer, error) {
	if err := h.allowed(); err != nil {
		return dhcp.Answer{}, err
	}
	answer, err := h.Decider.Request(ctx, c, addr)
	return answer, errors.Join(err, h.allowed())
}

func (h held) Inform(ctx context.Context, c dhcp.Client) (dhcp.Answer, error) {
	if err := h.allowed(); err != nil {
		return dhcp.Answer{}, err
	}
	return h.Decider.Inform(ctx, c)
}

func (h held) Boot(ctx context.Context, c dhcp.Client) (dhcp.Boot, error) {
	if err := h.allowed(); err != nil {
		return dhcp.Boot{}, err
	}
	return h.Decider.Boot(ctx, c)
}

func (h held) Script(ctx context.Context, c httpboot.Client) (httpboot.Script, error) {
	if err := h.store.Holding(); err != nil {
		return httpboot.Script{}, err
	}
	return h.Decider.Script(ctx, c)
}

func (h held) Pointer(ctx context.Context, r httpboot.PointerRequest) (httpboot.Pointer, error) {
	if err := h.store.Holding(); err != nil {
		return httpboot.Pointer{}, err
	}
	return h.Decider.Pointer(ctx, r)
}

// heldFiles is a source of files that checks the hold on the Site.
func heldFiles(s *store.Store, files tftp.Source) tftp.Source {
	return func(ctx context.Context, peer netip.AddrPort, name string) (io.ReadSeekCloser, error) {
		if err := s.Holding(); err != nil {
			return nil, err
		}
		return files(ctx, peer, name)
	}
}
