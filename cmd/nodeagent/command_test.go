package main

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"testing"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent"
)

// other is a handler of parts that have one already.
type other struct{ kind string }

func (o other) Kind() string { return o.kind }

func (other) Reconcile(context.Context, []nodeagent.Part) map[string]api.PartStatus { return nil }

func TestEveryKindOfPartHasAHandler(t *testing.T) {
	bootd := httptest.NewTLSServer(nil) // of which the certificate alone is needed
	defer bootd.Close()
	config := api.AgentConfig{Machine: "a", UID: "u", AttemptID: "b", API: []string{bootd.URL},
		CA: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bootd.Certificate().Raw}))}
	dir := t.TempDir()
	agent, err := newAgent(settings{stateDir: dir, runDir: dir}, config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range api.PartKinds() {
		if agent.Use(other{k.Name}) == nil {
			t.Errorf("nothing handles %s parts: add a handler to newAgent", k.Name)
		}
	}
}
