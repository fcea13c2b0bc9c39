# rackweft: iron in, fabric out.
#
#   make lab         a whole rack on this machine, from powered off to Active (root)
#   make lab-down    takes it down again and leaves nothing behind
#   make test        everything: lint, unit, race, protocol tests, the rack end to end (root)
#   make test-short  the inner loop, under two minutes
#   make bench       figures beside real peers

SHELL   := /bin/bash
GO      ?= go
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
LABDIR  ?= /var/lib/rackweft-lab

.PHONY: all build deps image lab lab-down test test-short lint bench bench-lab fuzz clean

all: build

build:
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

deps:
	@lab/deps

image: deps
	@lab/image/build >/dev/null

lab: deps build
	@image=$$(lab/image/build) && exec bin/weftctl lab up --bin bin --dir $(LABDIR) --image "$$image"

lab-down: build
	@bin/weftctl lab down --dir $(LABDIR)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) tool errcheck -ignoretests ./...
	shellcheck -x lab/deps lab/image/build lab/image/assemble .ci/run

test: deps build
	@$(MAKE) --no-print-directory lint
	@lab/image/build >/dev/null
	$(GO) test -race -timeout 40m $$($(GO) list ./... | grep -v '/lab/e2e$$')
	$(GO) test -timeout 5m -run '^TestResidentSet$$' ./bootd/store # the race detector needs memory of its own
	$(GO) test -timeout 30m -v ./lab/e2e

test-short: build
	$(GO) vet ./...
	$(GO) test -short -timeout 2m ./...

bench: bench-lab

# RUNS boots of each kind (3). Figures go to standard output, what explains them to standard error.
bench-lab: deps
	@lab/image/build >/dev/null
	@mkdir -p bin && $(GO) test -c -o bin/bench-lab.test ./lab/bench
	@set -o pipefail; cd lab/bench && \
	  ../../bin/bench-lab.test -test.run '^$$' -test.bench '^BenchmarkLab$$' -test.benchtime 1x -test.timeout 60m | \
	  awk '/^BENCH/ { print; fflush(); next } { print >"/dev/stderr" }'

# Every fuzz target for a while each: make fuzz FUZZTIME=5m
FUZZTIME ?= 30s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$pkg || exit 1; \
	  done; \
	done

clean:
	rm -rf bin
