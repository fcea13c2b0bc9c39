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

// conditions tell of a Guest's run; a new run begins without any.
type conditions struct{ list api.Conditions }

func (c *conditions) get(typ string) *api.Condition { return c.list.Get(typ) }

func (c *conditions) clear() { c.list = nil }

func (c *conditions) set(typ string, ok bool, reason, message string) {
	status := api.False
	if ok {
		status = api.True
	}
	c.list.Set(time.Now(), typ, status, reason, message)
}

// noteLaunched tells how the Guest was started, and whether a restart is due for
// it to be what its part says.
func (c *conditions) noteLaunched(l *launched, part *api.GuestPart) {
	current := l.Machine == machineDigest(*part)
	reason, message := "AsWritten", ""
	if !current {
		reason, message = "RestartNeeded", "it was changed since it was started: restart it for the change to take effect"
	}
	c.set(conditionCurrent, current, reason, message)
	c.set(conditionAccelerated, l.Accelerator == qemu.KVM, strings.ToUpper(string(l.Accelerator)), l.Reason)
	if part.Network != "" {
		c.noteVHost(l.VHost)
	}
}

func (c *conditions) noteVHost(used bool) {
	if used {
		c.set(conditionVHost, true, "Used", "")
		return
	}
	c.set(conditionVHost, false, "Missing", "the host had no "+vhostNet+" when it was started, and its packets go through QEMU, which costs more: `modprobe vhost_net`, then restart it")
}

// noteSteady tells of a failure until a run has been good for some time.
func (c *conditions) noteSteady(crash *ended, settled time.Duration) {
	if crash == nil || time.Since(crash.Time) > settled {
		c.set(conditionSteady, true, "Runs", "")
		return
	}
	c.set(conditionSteady, false, crash.Word, fmt.Sprintf("at %s: %s", crash.Time.Format(time.RFC3339), crash.Reason))
}
