// Package server owns bootd's HTTP API: its routes and their OpenAPI document,
// who may call them, and the audit of every change.
//
// It is served over TLS on :8443, where hosts and people show a client
// certificate or a bearer token, and on a unix socket that only root can open,
// where every caller is the admin "root" and can also read profiles of bootd.
//
// Package admission judges each write against a view of the cache that contains every earlier write that could
// matter. Machines, Guests, Profiles, Layers and Images are written in parallel unless they claim the same thing,
// such as a MAC (turns.go); other kinds are written alone.
package server
