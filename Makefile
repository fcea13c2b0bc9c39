# rackweft: iron in, fabric out.
#
#   make lab         a whole rack on this machine, from powered off to Active (root); GUESTS=1: its hosts have QEMU
#   make lab-down    takes it down again and leaves nothing behind
#   make test        everything: lint, unit, race, protocol tests, the rack end to end (root)
#   make test-short  the inner loop, under two minutes
#   make test-rack   further cases, which boot machines too, in parts of at most an hour (root); PART=units: one of them
#   make bench       figures beside real peers

SHELL   := /bin/bash
GO      ?= go
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  = -s -w -X main.version=$(VERSION)
LABDIR  ?= /var/lib/rackweft-lab

# One build of the dependencies serves the release, lint and all tests but those under the race detector, which needs cgo.
export CGO_ENABLED := 0
export GOFLAGS     := $(filter-out -trimpath,$(GOFLAGS)) -trimpath

# The rows of a benchmark, each as soon as it is there (mawk, Debian's awk, waits
# for more); all else goes to standard error.
ROWS = sed -u -n -E -e '/^(BENCH|SKIP)/p' -e '/^(BENCH|SKIP)/!w /dev/stderr'

.PHONY: all build deps image images lab lab-down test test-short test-rack lint bench bench-lab bench-apply bench-bgp bench-overlay bench-guests bench-hardware fuzz reference clean

all: build

build:
	@$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

deps:
	@lab/deps

image: deps
	@lab/image/build >/dev/null

# Both images: that of plain hosts, and that of hosts of Guests.
images: deps
	@lab/image/build >/dev/null && lab/image/build --guests >/dev/null

lab: deps build
	@image=$$(lab/image/build $(if $(GUESTS),--guests)) && exec bin/weftctl lab up --bin bin --dir $(LABDIR) --image "$$image"

lab-down: build
	@bin/weftctl lab down --dir $(LABDIR)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) tool errcheck -ignoretests ./...
	shellcheck -x lab/deps lab/unpack lab/image/build lab/image/assemble .ci/run

# Every part runs even when one before it fails; what each test said is in bin/log. The images, which the rack alone needs, are
# built beside the first parts. Packages wait half of their time, so twice as many as there are processors run at once, those
# first that take minutes. Resident sets and the store's damages are looked at without the race detector, which needs memory and
# time of its own.
TESTSUM = $$($(GO) tool -n gotestsum) --hide-summary skipped --jsonfile bin/log
test: deps build
	@rm -rf bin/log && mkdir -p bin/log
	@status=0; $(MAKE) --no-print-directory images >bin/log/images 2>&1 & images=$$!; \
	$(MAKE) --no-print-directory lint || status=1; \
	CGO_ENABLED=1 $(TESTSUM)/race.json --format pkgname -- -race -p $$((2 * $$(nproc))) -timeout 40m -skip '^TestFurther' ./nodeagent/guest ./nodeagent/overlay ./lab ./hardware/redfish ./bootd/store ./bgp $$($(GO) list ./... | grep -v '/lab/e2e$$') || status=1; \
	$(TESTSUM)/store.json --format pkgname -- -timeout 15m -run '^(TestResidentSet|TestDamagedStore|TestLostTailOfAWrite)$$' ./bootd/store ./bootd/console || status=1; \
	wait $$images || { cat bin/log/images >&2; status=1; }; \
	$(TESTSUM)/rack.json --format standard-verbose -- -timeout 60m -skip '^TestFurther' ./lab/e2e || status=1; \
	$(GO) run ./lab/skips bin/log/*.json || status=1; exit $$status

test-short: build
	$(GO) vet ./...
	$(GO) test -short -timeout 2m ./...

# Of what make test has one case of each kind, the further cases: the tests TestFurtherPART and TestFurtherPART_… of
# the packages below. A part in which no test ran fails.
PARTS        = firmware guests ipmi media restore units
RACKPACKAGES = ./lab/e2e ./bootd/dhcp
test-rack: build images
	@mkdir -p bin/log
	@status=0; for part in $(or $(PART),$(PARTS)); do \
	  rm -f bin/log/rack-$$part.json; \
	  $(TESTSUM)/rack-$$part.json --format standard-verbose -- -timeout 60m -run "(?i)^TestFurther$$part(_|\$$)" $(RACKPACKAGES) || status=1; \
	  $(GO) run ./lab/skips bin/log/rack-$$part.json || status=1; \
	done; exit $$status

bench: bench-lab bench-apply bench-bgp bench-overlay bench-guests bench-hardware

# RUNS boots of each kind (3). Figures go to standard output, what explains them to standard error.
bench-lab: deps
	@lab/image/build >/dev/null
	@mkdir -p bin && $(GO) test -c -o bin/bench-lab.test ./lab/bench
	@set -o pipefail; cd lab/bench && \
	  ../../bin/bench-lab.test -test.run '^$$' -test.bench '^BenchmarkLab$$' -test.benchtime 1x -test.timeout 60m | \
	  $(ROWS)

# Machines by weftctl into bootd and a watcher's patience beside etcd alone. RUNS (5) of each; the bars are for two idle cores.
bench-apply:
	@mkdir -p bin && $(GO) test -c -o bin/bench-apply.test ./lab/applybench
	@set -o pipefail; cd lab/applybench && \
	  ../../bin/bench-apply.test -test.run '^$$' -test.bench '^BenchmarkApply$$' -test.benchtime 1x -test.timeout 30m | \
	  $(ROWS)

# A reflector with 50, 200 and 400 clients beside BIRD, FRR and gobgpd, and 10,000 routes into the kernel.
bench-bgp: deps
	@mkdir -p bin && $(GO) test -c -o bin/bench-bgp.test ./bgp && $(GO) test -c -o bin/bench-fib.test ./bgp/fib
	@set -o pipefail; { RACKWEFT_BENCH_RUNS=3 bin/bench-bgp.test -test.run '^$$' -test.bench . -test.benchtime 1x -test.timeout 90m && \
	  bin/bench-fib.test -test.run '^$$' -test.bench . -test.benchtime 1x -test.timeout 10m; } | \
	  $(ROWS)

# Networks beside flanneld and beside what ip(8) makes. From a change in bootd to programmed on 50 hosts is the sum of
# two 99th percentiles, each measured alone: until the last host is told, and until its kernel has it.
bench-overlay: deps
	@mkdir -p bin && $(GO) test -c -o bin/bench-overlay.test ./nodeagent/overlay && $(GO) test -c -o bin/bench-hostspec.test ./bootd/hostspec
	@set -o pipefail; { (cd bootd/hostspec && ../../bin/bench-hostspec.test -test.run '^$$' -test.bench '^BenchmarkChange$$' -test.benchtime 10x -test.timeout 5m) && \
	  cd nodeagent/overlay && ../../bin/bench-overlay.test -test.run '^$$' -test.bench '^BenchmarkOverlay$$' -test.benchtime 1x -test.timeout 20m; } | \
	  awk '/^PART/ { sum[$$2] += $$3; if (++n[$$2] == 2) \
	      printf "BENCH %s ours=%.3fs limit=1s ratio=%.2f bar=<=1.00 %s\n", $$2, sum[$$2], sum[$$2], sum[$$2] <= 1 ? "ok" : "short"; fflush(); next } \
	    /^BENCH/ { print; fflush(); next } { print >"/dev/stderr" }'

# The start of a Guest beside the same QEMU by hand and beside virsh, and what a hundred Guests cost their agent.
bench-guests: deps
	@command -v libvirtd >/dev/null || apt-get install -y -qq --no-install-recommends libvirt-daemon-system libvirt-clients >/dev/null || true
	@mkdir -p bin && $(GO) test -c -o bin/bench-guests.test ./nodeagent/guest
	@set -o pipefail; cd nodeagent/guest && \
	  ../../bin/bench-guests.test -test.run '^$$' -test.bench '^BenchmarkGuests$$' -test.benchtime 1x -test.timeout 20m | \
	  $(ROWS)

# One bootd has a thousand Machines boot through their simulated BMCs, which take 100 ms for each request, and once more with
# a hundred beside them that answer nothing. BMCS (1000) is how many; nothing else does the same, so the limits are sums.
bench-hardware:
	@mkdir -p bin && $(GO) test -c -o bin/bench-hardware.test ./lab/hardwarebench
	@set -o pipefail; cd lab/hardwarebench && \
	  ../../bin/bench-hardware.test -test.run '^$$' -test.bench '^BenchmarkHardware$$' -test.benchtime 1x -test.timeout 60m | \
	  $(ROWS)

# Every fuzz target for a while each: make fuzz FUZZTIME=5m
FUZZTIME ?= 30s
fuzz:
	@for pkg in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
	    echo "$$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$pkg || exit 1; \
	  done; \
	done

# docs/reference.md out of the types; a test fails while it is behind.
reference:
	$(GO) test -count 1 -run '^TestReferenceIsCurrent$$' ./cmd/weftctl/internal/show -update

clean:
	rm -rf bin
