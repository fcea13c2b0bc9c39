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
	conditionResponsive  = "Responsive"   // QEMU answers its monitor
	conditionAccelerated = "Accelerated"  // it runs under KVM
	conditionStorage     = "StorageReady" // False while a disk error pauses the Guest
	conditionCurrent     = "Current"      // the running machine matches the part
	conditionVHost       = "VHost"        // of a Guest with a NIC: its packets bypass QEMU
	conditionTPM         = "TPM"          // of a Guest with a TPM: it works
	conditionSteady      = "Steady"       // False for some time after a crash, a panic or a hang
)

// conditions of one run of a Guest. A new run starts without any.
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

// noteLaunched sets the conditions that follow from how the Guest was started,
// and whether its part needs a restart to take effect.
func (c *conditions) noteLaunched(l *launched, part *api.GuestPart) {
	current := l.Machine == machineDigest(*part)
	reason, message := "AsWritten", ""
	if !current {
		reason, message = "RestartNeeded", "changed since its start: restart it for the change to take effect"
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

// noteSteady reports a failure until a run has lasted for the time settled.
func (c *conditions) noteSteady(crash *ended, settled time.Duration) {
	if crash == nil || time.Since(crash.Time) > settled {
		c.set(conditionSteady, true, "Runs", "")
		return
	}
	c.set(conditionSteady, false, crash.Word, fmt.Sprintf("at %s: %s", crash.Time.Format(time.RFC3339), crash.Reason))
}
