package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

const (
	// senders is how many objects are sent at once.
	senders = 16
	// giveUp is the number of objects in a row that did not reach bootd after which the rest are not sent.
	giveUp = 3
)

// sent is the result for one object.
type sent struct {
	outcome  string
	warnings []string
	err      error
}

// batch sends objects and shows the result of each, in order.
type batch struct {
	manifests *manifests
	client    *api.Client
	dryRun    bool
	together  map[string]bool // the objects sent together, as bootd's warnings name them

	outcomes map[string]int
	refused  int
	lost     error        // of the first object that did not reach bootd
	silence  atomic.Int32 // objects in a row that did not reach bootd
	region   *terminal.Region
	drawn    time.Time
}

// manifests reads files and applies their objects at bootd.
type manifests struct{ *app }

func (a *manifests) batch(client *api.Client, inputs []input, dryRun bool) *batch {
	b := &batch{manifests: a, client: client, dryRun: dryRun, together: map[string]bool{}, outcomes: map[string]int{}, region: a.err.Region()}
	for _, in := range inputs {
		b.together[fmt.Sprintf("%s %q", in.kind.Name, in.object.Meta().Name)] = true
	}
	return b
}

// sendAll applies objects, kind after kind, so that an object exists before those that refer to it.
func (a *manifests) sendAll(ctx context.Context, client *api.Client, inputs []input, dryRun bool) error {
	b := a.batch(client, inputs, dryRun)
	for rest := inputs; len(rest) > 0 && ctx.Err() == nil && b.silence.Load() < giveUp; {
		n := 1
		for n < len(rest) && rest[n].kind.Name == rest[0].kind.Name {
			n++
		}
		if err := b.send(ctx, rest[:n], len(inputs)); err != nil {
			return err
		}
		rest = rest[n:]
	}
	b.region.Print("")
	return b.conclude(ctx, len(inputs))
}

// conclude prints the totals.
func (b *batch) conclude(ctx context.Context, whole int) error {
	taken := 0
	var parts []string
	for _, o := range []string{api.OutcomeCreated, api.OutcomeConfigured, api.OutcomeUnchanged} {
		if n := b.outcomes[o]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, o))
		}
		taken += b.outcomes[o]
	}
	if b.refused > 0 {
		parts = append(parts, fmt.Sprintf("%d refused", b.refused))
	}
	if missing := whole - taken - b.refused; missing > 0 {
		parts = append(parts, fmt.Sprintf("%d not sent", missing))
	}
	if whole > 1 {
		b.manifests.note("%s: %s", count(whole, "object"), strings.Join(parts, ", "))
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case b.lost != nil:
		return b.lost
	case taken < whole:
		return fmt.Errorf("bootd accepted %d of %s", taken, count(whole, "object"))
	}
	return nil
}

// send sends objects of one kind. Those with files are sent one by one, because each file has a progress bar of
// its own.
func (b *batch) send(ctx context.Context, inputs []input, whole int) error {
	results := make([]sent, len(inputs))
	workers := min(senders, len(inputs))
	for _, in := range inputs {
		if len(in.uploads) > 0 {
			workers = 1
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	finished := make(chan int, len(inputs))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil && b.silence.Load() < giveUp {
				i := int(next.Add(1)) - 1
				if i >= len(inputs) {
					return
				}
				results[i] = b.one(ctx, inputs[i])
				finished <- i
			}
		})
	}
	go func() { wg.Wait(); close(finished) }()
	err := b.show(inputs, results, finished, whole)
	cancel()
	wg.Wait()
	return err
}

// one sends one object.
func (b *batch) one(ctx context.Context, in input) sent {
	var s sent
	if !b.dryRun {
		s.err = b.manifests.upload(ctx, b.client, in.uploads)
	}
	if s.err == nil {
		s.outcome, s.warnings, s.err = put(ctx, b.client, in.object, b.dryRun)
	}
	var problem *api.Problem
	if s.err == nil || errors.As(s.err, &problem) {
		b.silence.Store(0)
	} else {
		b.silence.Add(1)
	}
	return s
}

// show prints each result once all before it are printed.
func (b *batch) show(inputs []input, results []sent, finished <-chan int, whole int) error {
	arrived := make([]bool, len(inputs))
	printed := 0
	for i := range finished {
		arrived[i] = true
		for printed < len(inputs) && arrived[printed] {
			b.progress(nil)
			if err := b.print(inputs[printed], results[printed]); err != nil {
				return err
			}
			printed++
		}
		if len(inputs[i].uploads) == 0 && time.Since(b.drawn) > redrawEvery {
			total := b.refused
			for _, n := range b.outcomes {
				total += n
			}
			b.progress([]string{fmt.Sprintf("apply  %s %d of %d", b.manifests.err.Paint(terminal.Cyan, terminal.Bar(int64(total), int64(whole), 24)), total, whole)})
		}
	}
	return nil
}

// redrawEvery keeps the bar from costing more than what it shows.
const redrawEvery = 100 * time.Millisecond

// progress draws the bar below the output, or removes it.
func (b *batch) progress(lines []string) {
	if lines == nil {
		b.region.Print("")
		return
	}
	b.drawn = time.Now()
	b.region.Draw(lines)
}

// print shows the result for an object.
func (b *batch) print(in input, s sent) error {
	var problem *api.Problem
	switch {
	case errors.As(s.err, &problem):
		b.refused++
		b.manifests.refused(in, s.err, problem)
		return nil
	case s.err != nil:
		if b.lost == nil {
			b.lost = fmt.Errorf("apply %s: %w", in.title(), s.err)
		}
		return nil
	}
	b.outcomes[s.outcome]++
	for _, w := range s.warnings {
		if b.dryRun && b.comesToo(w) {
			continue
		}
		b.manifests.warn("%s", warningAt(in.document, in.title(), w))
	}
	verb := s.outcome
	if b.dryRun {
		verb += " (dry run)"
	}
	return b.manifests.printf("%s %s\n", in.title(), verb)
}

// comesToo reports whether bootd, in a dry run, misses an object that is applied together with this one.
func (b *batch) comesToo(warning string) bool {
	_, text, _ := strings.Cut(warning, ": ")
	named, missing := strings.CutSuffix(text, " does not exist yet")
	return missing && b.together[named]
}

// put is api.Client.Put, and also returns what it did and bootd's warnings.
func put(ctx context.Context, client *api.Client, o api.Object, dryRun bool) (outcome string, warnings []string, err error) {
	path := "/v1/" + api.KindOf(o).Plural + "/" + url.PathEscape(o.Meta().Name)
	if dryRun {
		path += "?dryRun=true"
	}
	resp, err := client.Do(ctx, http.MethodPut, path, o)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	for _, w := range resp.Header.Values("Warning") {
		warnings = append(warnings, warningText(w))
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil { // otherwise the connection cannot be reused
		return "", nil, fmt.Errorf("read the answer: %w", err)
	}
	return resp.Header.Get(api.OutcomeHeader), warnings, nil
}
