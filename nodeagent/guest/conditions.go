package guest

import (
	"fmt"
	"strings"
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/nodeagent/guest/qemu"
)

// Conditions of a Guest on its host.
const (
	conditionResponsive  = "Responsive"   // QEMU answers
	conditionAccelerated = "Accelerated"  // it runs under KVM
	conditionStorage     = "StorageReady" // False while a disk error holds it
	conditionCurrent     = "Current"      // it runs as it is written down
	conditionVHost       = "VHost"        // of a Guest with a NIC: its packets pass QEMU by
	conditionTPM         = "TPM"          // of a Guest that has one: it works
	conditionSteady      = "Steady"       // False for some time after it has crashed, panicked or hung
)

func (g *guest) condition(typ string, ok bool, reason, message string) {
	status := api.False
	if ok {
		status = api.True
	}
	g.conditions.Set(time.Now(), typ, status, reason, message)
}

// noteCurrent tells whether a restart is due for the Guest to be what its part
// says.
func (g *guest) noteCurrent(part *api.GuestPart) {
	l := g.record.Launched
	if l == nil {
		return
	}
	current := l.Machine == machineDigest(*part)
	reason, message := "AsWritten", ""
	if !current {
		reason, message = "RestartNeeded", "it was changed since it was started: restart it for the change to take effect"
	}
	g.condition(conditionCurrent, current, reason, message)
	g.condition(conditionAccelerated, l.Accelerator == qemu.KVM, strings.ToUpper(string(l.Accelerator)), l.Reason)
	if part.Network != "" {
		g.noteVHost(l.VHost)
	}
	g.noteSteady()
	g.noteTPM()
}

func (g *guest) noteVHost(used bool) {
	if used {
		g.condition(conditionVHost, true, "Used", "")
		return
	}
	g.condition(conditionVHost, false, "Missing", "the host had no "+vhostNet+" when it was started, and its packets go through QEMU, which costs more: `modprobe vhost_net`, then restart it")
}

// noteSteady tells of a failure until a run has been good for some time.
func (g *guest) noteSteady() {
	c := g.record.Crash
	if c == nil || time.Since(c.Time) > g.timing.settled {
		g.condition(conditionSteady, true, "Runs", "")
		return
	}
	g.condition(conditionSteady, false, c.Word, fmt.Sprintf("at %s: %s", c.Time.Format(time.RFC3339), c.Reason))
}
