package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/rackweft/rackweft/internal/wait"
)

// holderKey names the bootd that serves the Site of an external store. With embedded etcd the lock on the state
// directory has this purpose.
const holderKey = internalPrefix + "holder"

// Holder says who holds the Site, for people.
type Holder struct {
	Host     string    `json:"host"`
	PID      int       `json:"pid"`
	StateDir string    `json:"stateDir"`
	Since    time.Time `json:"since"`
	// Instance names a state directory of a running kernel.
	Instance string `json:"instance"`
}

func (h Holder) String() string {
	return fmt.Sprintf("%s (pid %d, %s) since %s", h.Host, h.PID, h.StateDir, h.Since.UTC().Format(time.RFC3339))
}

// hold is this bootd's hold on the Site.
type hold struct {
	etcd   *etcd
	tenure *tenure
	fence  clientv3.Cmp // true while no other bootd has held the Site since
}

// commit runs a transaction if the Site is still held: a bootd that was disconnected and does not know it yet
// cannot write.
func (h *hold) commit(ctx, limited context.Context, txn transaction) (*clientv3.TxnResponse, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	resp, err := h.etcd.client.Txn(limited).If(h.fence).Then(clientv3.OpTxn(txn.when, txn.then, txn.instead)).Commit()
	if err != nil {
		return nil, h.etcd.explain(ctx, err)
	}
	if !resp.Succeeded {
		h.tenure.lose(errLost)
		return nil, fmt.Errorf("%w: another one has it", ErrNotHolder)
	}
	inner := (*clientv3.TxnResponse)(resp.Responses[0].GetResponseTxn())
	inner.Header = resp.Header
	return inner, nil
}

func (h *hold) check() error {
	if err := h.tenure.check(); err != nil {
		return fmt.Errorf("%w any longer: %w", ErrNotHolder, err)
	}
	return nil
}

func (h *hold) end() { h.tenure.end() }

// holds are exclusive to one bootd: the Site, and the leadership of an election.
type holds struct{ etcd *etcd }

// Hold returns when this bootd holds the Site. Until then it only reads; waiting is called with each bootd that
// holds it. With embedded etcd it returns at once.
func (h *holds) Hold(ctx context.Context, waiting func(Holder)) error {
	if h.etcd.server != nil {
		return nil
	}
	me, err := h.holder()
	if err != nil {
		return err
	}
	waited := false
	for {
		kv, revision, err := h.readHolder(ctx)
		if err != nil && waited && ctx.Err() == nil { // a standby has time
			h.etcd.log.Warn("the Site's holder is not known; retrying", "error", err)
			err = wait.For(ctx, time.Second)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		var held bool
		switch {
		case kv == nil:
			held, err = h.take(ctx, me, 0)
		case h.isDead(kv, me):
			held, err = h.take(ctx, me, kv.CreateRevision)
		default:
			waited = true
			waiting(holderOf(kv))
			err = h.awaitRelease(ctx, revision)
		}
		if held || err != nil {
			return err
		}
	}
}

func (h *holds) holder() (Holder, error) {
	me := Holder{PID: os.Getpid(), StateDir: h.etcd.conf.Dir, Since: time.Now().UTC().Truncate(time.Second)}
	var err error
	if me.Host, err = os.Hostname(); err != nil {
		return me, fmt.Errorf("this machine's name: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return me, fmt.Errorf("read the boot id: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(h.etcd.conf.Dir, &st); err != nil {
		return me, fmt.Errorf("look at %s: %w", h.etcd.conf.Dir, err)
	}
	me.Instance = fmt.Sprintf("%s/%d/%d", strings.TrimSpace(string(boot)), st.Dev, st.Ino)
	return me, nil
}

func holderOf(kv *mvccpb.KeyValue) (h Holder) {
	if json.Unmarshal(kv.Value, &h) != nil {
		h.Host = "a bootd of another version"
	}
	return h
}

// isDead: the lock on the state directory, which this process has, proves that an earlier process on it is dead.
// Its lease need not run out.
func (h *holds) isDead(kv *mvccpb.KeyValue, me Holder) bool {
	return holderOf(kv).Instance == me.Instance
}

func (h *holds) readHolder(ctx context.Context) (*mvccpb.KeyValue, int64, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := h.etcd.client.Get(limited, holderKey)
	if err != nil {
		return nil, 0, fmt.Errorf("read who holds the Site: %w", h.etcd.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, resp.Header.Revision, nil
	}
	return resp.Kvs[0], resp.Header.Revision, nil
}

// take takes the Site, whose key has a create revision (0: absent).
func (h *holds) take(ctx context.Context, me Holder, at int64) (held bool, err error) {
	raw, err := json.Marshal(me)
	if err != nil {
		return false, fmt.Errorf("encode who holds the Site: %w", err)
	}
	t, err := h.etcd.newTenure(ctx)
	if err != nil {
		return false, fmt.Errorf("take the Site: %w", err)
	}
	defer func() {
		if !held {
			t.end()
		}
	}()
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ops := []clientv3.Op{clientv3.OpPut(holderKey, string(raw), clientv3.WithLease(t.lease))}
	if at != 0 { // etcd accepts only one change of a key per transaction, and a put keeps the old create revision
		resp, err := h.etcd.client.Txn(limited).If(clientv3.Compare(clientv3.CreateRevision(holderKey), "=", at)).Then(clientv3.OpDelete(holderKey)).Commit()
		if err != nil || !resp.Succeeded {
			return false, h.etcd.explain(ctx, err)
		}
	}
	resp, err := h.etcd.client.Txn(limited).If(clientv3.Compare(clientv3.CreateRevision(holderKey), "=", 0)).Then(ops...).Commit()
	if err != nil {
		return false, fmt.Errorf("take the Site: %w", h.etcd.explain(ctx, err))
	}
	if !resp.Succeeded {
		return false, nil // another one was faster
	}
	h.etcd.hold = &hold{etcd: h.etcd, tenure: t, fence: clientv3.Compare(clientv3.CreateRevision(holderKey), "=", resp.Header.Revision)}
	return true, nil
}

// awaitRelease returns when the Site may be free, or its holder has changed.
func (h *holds) awaitRelease(ctx context.Context, after int64) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp, err := range h.etcd.follow(watching, holderKey, after) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return wait.For(ctx, time.Second) // and look again
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	return ctx.Err()
}

// Holding is nil while this bootd may serve the Site, by its own clock. It is cheap.
func (h *holds) Holding() error {
	if h.etcd.hold == nil {
		if h.etcd.server == nil {
			return ErrNotHolder
		}
		return nil
	}
	return h.etcd.hold.check()
}

// KeepHold returns an ErrNotHolder when this bootd has lost the Site, or ctx's error when that ends. Close
// releases the Site.
func (h *holds) KeepHold(ctx context.Context) error {
	if h.etcd.hold == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-h.etcd.hold.tenure.lost.Done():
	}
	if errors.Is(context.Cause(h.etcd.hold.tenure.lost), context.Canceled) {
		return context.Canceled
	}
	return h.etcd.hold.check()
}
