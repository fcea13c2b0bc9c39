package machine

import (
	"time"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/hardware"
)

// action is the one thing to do with a Machine: wait, write its
// status, open a BootAttempt, ask its BMC.
type action struct {
	do deed
	// reason and message are those of the condition that is set, or why the
	// BootAttempt is opened and failed.
	reason, message string
	// event and decision are recorded once it is done; empty: nothing is recorded.
	event    event
	decision api.Decision
	// again is when to look again at the latest; 0 for when something changes.
	again time.Duration
	// beside has the AssetTag and the BMC looked at when it is done.
	beside bool

	// retry and stage are those of the BootAttempt to open.
	retry int
	stage api.Stage
	// request is the request that is served by it. One that is Pending is marked as
	// Running first.
	request *api.Request
	// ask is what the BMC is asked; after and patience are what its answer is
	// compared with.
	ask      question
	after    time.Time
	patience time.Duration
	// reading says that the question has time, and that a failure of it says nothing of the BMC.
	reading bool
	// answer is what the BMC has answered, to be written down.
	answer answer
}

type event struct {
	typ             api.EventType
	reason, message string
}

// deed names what is done.
type deed string

// What is done otherwise than by one write of the Machine's status.
const (
	doNothing deed = ""
	doForget  deed = "forget" // delete a Machine that was only discovered
	doOpen    deed = "open"   // open a BootAttempt
	doAsk     deed = "ask"    // ask the BMC, and do what follows from its answer
)

// Writes of the Machine's status; see write.
const (
	doHold      deed = "hold"       // say why it is held back
	doExpire    deed = "expire"     // fail an overdue BootAttempt
	doMissing   deed = "missing"    // say what its spec names and does not exist
	doFound     deed = "found"      // say that all of that exists
	doInspect   deed = "inspect"    // say that it is being inspected
	doMaintain  deed = "maintain"   // put it into Maintenance
	doRetire    deed = "retire"     // end what runs on a Machine that is to be Off
	doSucceed   deed = "succeed"    // end the BootAttempt as Active
	doGiveUp    deed = "give up"    // say that no further BootAttempt is opened
	doAsked     deed = "asked"      // say that something asks for a boot beside its host
	doAskedLong deed = "asked long" // say that it has asked for minutes
	doAskedOnce deed = "asked once" // take that back
	doActive    deed = "active"     // Active, and nothing holds or drains it any more
	doDrain     deed = "drain"      // have its Guests leave
	doDrainOver deed = "drain over" // go on although Guests are left
	doDrained   deed = "drained"    // take back that Guests are leaving
	doRevoke    deed = "revoke"     // take back what was given to a deleted Machine
	doForgetTag deed = "forget tag" // the saved AssetTag of a deleted Machine
	doTwoBoot   deed = "two boot"   // fail the BootAttempt: two boot with the Machine's MAC
	doSick      deed = "sick"       // say what another Machine of its BMC met
	doFinish    deed = "finish"     // end a request

	// After an answer of its BMC.
	doAccount  deed = "account"        // for a Machine without power, after a restore
	doReport   deed = "report"         // write its inventory
	doHealthy  deed = "healthy"        // write how it is
	doPowered  deed = "powered"        // the BootAttempt is at PowerOn
	doUnseen   deed = "not seen"       // the power command was accepted, and nothing shows it
	doSeen     deed = "seen"           // what its BMC tells of the reset that is known
	doPower    deed = "power"          // write its power state
	doShutting deed = "shutting down"  // asked to shut down
	doOff      deed = "off"            // it has shut down
	doFence    deed = "fence"          // a lost host has no power
	doNonced   deed = "nonce written"  // the BootAttempt's nonce is in the AssetTag
	doNoNonce  deed = "nonce refused"  // it cannot
	doNoURL    deed = "URL refused"    // its BMC takes no boot URL
	doURLBack  deed = "URL back"       // its BMC has no boot URL any more, or a spent one
	doTagBack  deed = "asset tag back" // the saved AssetTag is back, or lost
)

// question is what a BMC is asked in one session.
type question string

const (
	askHealth    question = "health"    // whether it is well again
	askRestored  question = "restored"  // whether the Machine has power, after a restore
	askPower     question = "power"     // whether an Active Machine has power
	askInventory question = "inventory" // what the Machine is made of
	askBoot      question = "boot"      // to boot from the network, now
	askReset     question = "reset"     // whether the Machine was reset
	askSeen      question = "seen"      // what it tells of the reset that is known
	askShutdown  question = "shutdown"  // to shut down, or to cut the power
	askFence     question = "fence"     // to cut the power of a lost host
	askNonce     question = "nonce"     // to take the nonce as AssetTag
	askWellbeing question = "wellbeing" // how the server is
	askTagBack   question = "tag back"  // to take the saved AssetTag back
	askURLBack   question = "URL back"  // to forget a boot URL
	askRequest   question = "request"   // what a person has asked for
)

// doing is what is asked, for people.
func (a action) doing() string {
	switch a.ask {
	case askHealth, askRestored, askPower:
		return "read the power state"
	case askInventory:
		return "inspect"
	case askBoot:
		return "power on"
	case askReset:
		return "confirm a reset"
	case askSeen:
		return "read the last reset"
	case askShutdown:
		return "power off"
	case askFence:
		return "fence"
	case askNonce:
		return "write the AssetTag"
	case askWellbeing:
		return "read the health"
	case askTagBack:
		return "put the AssetTag back"
	case askURLBack:
		return "take the boot URL back"
	}
	return words(a.request)
}

// longest is what the BMC has for it: an inventory is a hundred requests of up to two seconds on some.
func (a action) longest() time.Duration {
	if a.ask == askInventory {
		return 10 * time.Minute
	}
	return 3 * time.Minute
}

// answer is what a BMC has answered; which fields count depends on the question.
type answer struct {
	power     hardware.PowerState
	inventory hardware.Inventory
	health    hardware.Health
	did       string // to boot from the network; empty when nothing was to be done any more
	unseen    error  // the command was accepted and is not seen to be carried out
	unread    error  // why it could not be read; the BMC is well otherwise
	reset     reset
	seen      *api.ResetSeen // what reset was judged by
	tag       tagAnswer
	url       urlAnswer
}

// reset is what a BMC knows of resets since a time.
type reset struct{ since, known bool }

// urlAnswer is what came of the boot URL.
type urlAnswer struct {
	refused error // the BMC does not take it, or does not take it back
}

// tagAnswer is what came of the AssetTag.
type tagAnswer struct {
	refused error // it cannot be written
	own     bool  // the system has its own tag
	saved   bool  // its own tag is in the store
}
