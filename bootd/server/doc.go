// Package server owns bootd's HTTP API: its routes and their OpenAPI document,
// who may call them, and the audit of every change.
//
// It is served over TLS on :8443, where hosts and people show a client
// certificate or a bearer token, and on a unix socket that only root can open,
// where everybody is the admin "root". Package admission judges writes of
// objects one after the other, each against a cache that has seen the one before.
package server
