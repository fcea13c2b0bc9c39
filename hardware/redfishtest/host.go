package redfishtest

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Boot is one boot of the server behind a BMC.
type Boot struct {
	System   string    // its path
	At       time.Time // by the BMC's clock
	Target   string    // of the override that was in force; None without
	Mode     string    // of the override
	URI      string    // of UefiHttp, or of the image that was inserted
	AssetTag string    // that POST put into SMBIOS
}

// host is the server behind a ComputerSystem.
type host struct {
	b        *BMC
	path     string
	manager  string // that has its media
	settings string // of what is pending until the next reset
	on       bool
	changed  time.Time // of its power, by an action; zero when never
	reset    time.Time // zero when not since the BMC was made
	told     time.Time // LastResetTime, as the BMC has written it down
	posted   time.Time // when POST ends
	late     Resource  // the Boot object to show until lateTill
	lateTill time.Time
	tries    int // power actions that were refused at first
	booted   []Boot
}

func newHost(b *BMC, at string) *host {
	h := &host{b: b, path: at, on: str(b.tree[at], "PowerState") == "On"}
	h.settings = canonical(str(object(b.tree[at], "@Redfish.Settings", "SettingsObject"), "@odata.id"))
	if b.has(BootInFutureState) {
		h.settings = at + "/SD"
	}
	for _, manager := range b.tree.managers() {
		servers, _ := object(b.tree[manager], "Links")["ManagerForServers"].([]any)
		if slices.ContainsFunc(servers, func(server any) bool {
			link, _ := server.(map[string]any)
			return canonical(str(link, "@odata.id")) == at
		}) {
			h.manager = manager
		}
	}
	return h
}

// Booted are the boots of all its servers, in order.
func (b *BMC) Booted() []Boot {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Boot
	for _, h := range b.hosts {
		all = append(all, h.booted...)
	}
	slices.SortFunc(all, func(x, y Boot) int { return x.At.Compare(y.At) })
	return all
}

// On reports whether a server has power.
func (b *BMC) On(system string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hosts[system].on
}

// Press is a hand at the server's button: its power changes behind the BMC's clients.
func (b *BMC) Press(system string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.hosts[system]
	if h.on {
		h.powerOff()
		return
	}
	h.boot()
}

// Reboot is the operating system's own reset.
func (b *BMC) Reboot(system string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts[system].boot()
}

// boot begins POST: what is pending takes force, the override of one boot is consumed.
func (h *host) boot() {
	now := h.b.Clock.Now()
	h.on, h.changed, h.reset, h.told, h.posted = true, now, now, h.wallAt(now), now.Add(h.b.PostTime)
	h.late = nil
	sys := h.b.tree[h.path]
	boot := object(sys, "Boot")
	h.takeOver()
	if pending := object(h.b.tree[h.settings], "Boot"); pending != nil && h.pends() {
		boot = pending
	}
	done := Boot{System: h.path, At: now, Target: "None", AssetTag: h.tag()}
	if enabled := str(boot, "BootSourceOverrideEnabled"); enabled == "Once" || enabled == "Continuous" {
		done.Target, done.Mode = str(boot, "BootSourceOverrideTarget"), str(boot, "BootSourceOverrideMode")
		done.URI = h.bootURI(boot, done.Target)
		if enabled == "Once" {
			boot["BootSourceOverrideEnabled"], boot["BootSourceOverrideTarget"] = "Disabled", "None"
		}
	}
	h.booted = append(h.booted, done)
	if h.b.OnBoot != nil {
		h.b.OnBoot(done)
	}
}

// pends says whether this BMC's override is in the settings object.
func (h *host) pends() bool {
	return h.settings != h.path && (h.b.has(BootInSettings) || h.b.has(BootInFutureState))
}

// wallAt is what the BMC writes down as the time of a reset: its clock as it was before the reset helped it.
func (h *host) wallAt(now time.Time) time.Time {
	switch {
	case h.b.has(ClockJumps):
		return now.Add(-6 * time.Hour)
	case h.b.has(ClockBehind):
		return now.Add(10 * time.Minute)
	case h.b.has(Clock1970):
		return time.Unix(137, 0).UTC()
	}
	return now
}

func (h *host) bootURI(boot Resource, target string) string {
	if target == "UefiHttp" {
		return cmp.Or(str(boot, "HttpBootUri"), h.biosURL())
	}
	if !strings.Contains(target, "Cd") && !strings.Contains(target, "CD") && target != "Usb" {
		return ""
	}
	for at := range h.b.media {
		if image := str(h.b.tree[at], "Image"); image != "" && h.owns(at) {
			return image
		}
	}
	return ""
}

// bios is the system's Bios resource, and its settings object.
func (h *host) bios() (now, pending Resource) {
	now = h.b.tree[h.b.place(str(object(h.b.tree[h.path], "Bios"), "@odata.id"))]
	return now, h.b.tree[h.b.place(str(object(now, "@Redfish.Settings", "SettingsObject"), "@odata.id"))]
}

// takeOver has the firmware take over what is pending of its settings.
func (h *host) takeOver() {
	now, pending := h.bios()
	if attributes := object(now, "Attributes"); attributes != nil {
		maps.Copy(attributes, object(pending, "Attributes"))
	}
}

// biosURL is the URL of HTTP boot that the BIOS has: HPE's, or Dell's where the device is enabled.
func (h *host) biosURL() string {
	now, _ := h.bios()
	attributes := object(now, "Attributes")
	if url := str(attributes, "UrlBootFile"); url != "" {
		return url
	}
	if str(attributes, "HttpDev1EnDis") == "Enabled" {
		return str(attributes, "HttpDev1Uri")
	}
	return ""
}

// owns says whether the media at a path are this server's.
func (h *host) owns(at string) bool {
	return strings.HasPrefix(at, h.path+"/") || h.manager == "" || strings.HasPrefix(at, h.manager+"/")
}

func (h *host) powerOff() {
	h.on, h.changed = false, h.b.Clock.Now()
}

// tag is the asset tag that the firmware finds: the system's, or its chassis's where the system has none.
func (h *host) tag() string {
	if h.b.has(BootInSettings) {
		return strings.TrimRight(str(h.b.tree[h.settings], "AssetTag"), " ")
	}
	tag := strings.TrimRight(str(h.b.tree[h.path], "AssetTag"), " ")
	if tag != "" && !h.b.has(TagReadOnly) {
		return tag
	}
	links, _ := object(h.b.tree[h.path], "Links")["Chassis"].([]any)
	if len(links) == 0 {
		return tag
	}
	first, _ := links[0].(map[string]any)
	return strings.TrimRight(str(h.b.tree[canonical(str(first, "@odata.id"))], "AssetTag"), " ")
}

// refresh writes the host's state into its resource, where the tree has the properties.
func (h *host) refresh() {
	sys := h.b.tree[h.path]
	sys["PowerState"] = h.power()
	if _, has := sys["LastResetTime"]; has && !h.reset.IsZero() {
		sys["LastResetTime"] = h.told.Format(time.RFC3339)
	}
	if progress := object(sys, "BootProgress"); progress != nil && !h.reset.IsZero() {
		progress["LastState"] = "SystemHardwareInitializationComplete"
		if h.b.Clock.Now().After(h.posted) {
			progress["LastState"] = "OSRunning"
		}
		if _, has := progress["LastStateTime"]; has {
			progress["LastStateTime"] = h.told.Format(time.RFC3339)
		}
	}
	if hpe := object(sys, "Oem", "Hpe"); hpe != nil && (!h.changed.IsZero() || hpe["PostState"] == nil) {
		h.refreshPost(hpe)
	}
}

// refreshPost is HPE's account of POST.
func (h *host) refreshPost(hpe Resource) {
	now := h.b.Clock.Now()
	switch {
	case !h.on:
		hpe["PostState"] = "PowerOff"
	case now.Before(h.posted):
		hpe["PostState"] = "InPost"
	default:
		hpe["PostState"] = "FinishedPost"
		if h.b.has(StandsInDiscovery) || now.Before(h.posted.Add(30*time.Second)) {
			hpe["PostState"] = "InPostDiscoveryComplete"
		}
		if !h.reset.IsZero() {
			hpe["PostDiscoveryCompleteTimeStamp"] = h.told.Add(h.posted.Sub(h.reset)).UTC().Format("2006-01-02T15:04:05Z")
		}
	}
}

// power is the reported state; after an action it may be another one for a while.
func (h *host) power() string {
	settling := h.b.has(PowerLags) && !h.changed.IsZero() && h.b.Clock.Now().Sub(h.changed) < 10*time.Second
	switch {
	case h.on && settling && len(h.booted) > 1:
		return "Off" // some pass through it at a restart
	case h.on && settling:
		return "PoweringOn"
	case h.on:
		return "On"
	case settling:
		return "PoweringOff"
	}
	return "Off"
}

// inPOST says whether the server is in POST.
func (h *host) inPOST() bool { return h.on && h.b.Clock.Now().Before(h.posted) }

// wall is what the BMC's own clock shows.
func (b *BMC) wall() time.Time {
	now := b.Clock.Now()
	if !b.has(ClockJumps) {
		return now
	}
	for _, h := range b.hosts {
		if !h.reset.IsZero() && now.Sub(h.reset) >= 30*time.Second {
			return now
		}
	}
	return now.Add(-6 * time.Hour)
}
