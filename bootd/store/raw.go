package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Raw holds bootd's own values, by key.
type Raw struct{ etcd *etcd }

// Get reads a value, or nil when there is none.
func (r *Raw) Get(ctx context.Context, key string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.etcd.client.Get(limited, internalPrefix+"raw/"+key)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, r.etcd.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return opened(string(resp.Kvs[0].Key), resp.Kvs[0].Value)
}

// List reads the values whose keys begin with a prefix, by the rest of their keys.
func (r *Raw) List(ctx context.Context, prefix string) (map[string][]byte, error) {
	values := map[string][]byte{}
	from := internalPrefix + "raw/" + prefix
	var fault error
	_, err := r.etcd.scan(ctx, from, func(kv *mvccpb.KeyValue) {
		value, err := opened(string(kv.Key), kv.Value)
		fault = errors.Join(fault, err)
		values[strings.TrimPrefix(string(kv.Key), from)] = value
	})
	if err := errors.Join(err, fault); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	return values, nil
}

// Put writes a small value.
func (r *Raw) Put(ctx context.Context, key string, value []byte) error {
	path := internalPrefix + "raw/" + key
	_, err := r.etcd.write(ctx, transaction{then: []clientv3.Op{clientv3.OpPut(path, summed(path, value))}})
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

// Create writes a small value unless there is one, and returns the stored one.
func (r *Raw) Create(ctx context.Context, key string, value []byte) ([]byte, error) {
	path := internalPrefix + "raw/" + key
	resp, err := r.etcd.write(ctx, transaction{
		when: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(path), "=", 0)},
		then: []clientv3.Op{clientv3.OpPut(path, summed(path, value))}, instead: []clientv3.Op{clientv3.OpGet(path)},
	})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", key, err)
	}
	if resp.Succeeded {
		return value, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil, fmt.Errorf("write %s: it exists, but cannot be read", key)
	}
	return opened(path, kvs[0].Value)
}

// Delete deletes a value; a missing one is not an error.
func (r *Raw) Delete(ctx context.Context, key string) error {
	_, err := r.etcd.commit(ctx, transaction{then: []clientv3.Op{clientv3.OpDelete(internalPrefix + "raw/" + key)}})
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}
