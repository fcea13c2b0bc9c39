package redfishtest

// Trait is one thing that a BMC does differently from what DSP0266 leads one to expect.
type Trait string

// Sessions and passwords.
const (
	NoSessions              Trait = "no sessions"
	SessionsNeedLicence     Trait = "sessions need a licence"
	NoBasic                 Trait = "no basic authentication"
	SessionNoLocation       Trait = "session without Location"
	SessionAbsoluteLocation Trait = "session with an absolute Location"
	SessionOnlyID           Trait = "session with an Id only"
	FewSessions             Trait = "few sessions"
	SessionsEnd             Trait = "sessions end early"
	PasswordChangeRefuses   Trait = "password change refuses logins"
	PasswordChangeInSession Trait = "password change in the session"
	ReadOnlyUser            Trait = "read-only user"
)

// Entity tags.
const (
	WeakETags       Trait = "weak etags"
	StrongCompare   Trait = "etags compared strongly"
	IfMatchRequired Trait = "If-Match required"
	IfMatchRefused  Trait = "If-Match refused"
	ETagInHeader    Trait = "etag in the header only"
	ETagInBody      Trait = "etag in the body only"
	EmptyETag       Trait = "empty etag"
	ETagMoves       Trait = "etag moves"
	GzipETags       Trait = "gzip changes etags"
)

// The boot override.
const (
	ModeUnknown        Trait = "boot mode unknown"
	ModeReadOnly       Trait = "boot mode read-only"
	ModeUnchanged      Trait = "boot mode must be another"
	BootNeedsAll       Trait = "boot needs all three"
	ModeFallsBack      Trait = "boot mode falls back"
	BootInFutureState  Trait = "boot in the future state"
	FutureStateUnnamed Trait = "future state unnamed"
	BootInSettings     Trait = "boot in the settings object"
	OnceOrDisabled     Trait = "once or disabled only"
	OnlyUefiPxe        Trait = "only UefiPxe"
	NoBootOverride     Trait = "no boot override"
	OverrideIgnored    Trait = "override ignored"
	OverrideLate       Trait = "override shown late"
	PatchNoContent     Trait = "patch answers nothing"
	LicenceForBoot     Trait = "licence for boot"
)

// Power actions.
const (
	AlreadyConflict   Trait = "already there is 409"
	AlreadyBadRequest Trait = "already there is 400"
	TooSoon           Trait = "power too soon"
	ConflictAtFirst   Trait = "power conflict at first"
	ResetDoesNothing  Trait = "reset does nothing"
	ResetAnswerLost   Trait = "reset answer lost"
	PowerLags         Trait = "power state lags"
	ResetTask         Trait = "reset is a task"
	TaskFails         Trait = "task fails"
	TaskNeverEnds     Trait = "task never ends"
	TaskLate          Trait = "task is there late"
	TaskInBody        Trait = "task named in the body"
	TaskVanishes      Trait = "task vanishes"
	NoReset           Trait = "no reset action"
)

// POST and clocks.
const (
	RefusesInPOST     Trait = "boot refused in POST"
	StandsInDiscovery Trait = "stands in discovery"
	ClockBehind       Trait = "clock behind the reset"
	ClockJumps        Trait = "clock jumps after the reset"
	Clock1970         Trait = "reset in 1970"
	NoClock           Trait = "no clock"
	NoResetTime       Trait = "no reset time"
)

// Asset tag and locator light.
const (
	NoTag        Trait = "no asset tag"
	TagReadOnly  Trait = "asset tag read-only"
	TagPadded    Trait = "asset tag padded"
	TagIgnored   Trait = "asset tag ignored"
	NoLight      Trait = "no light"
	LightRefused Trait = "light refused"
	OldLight     Trait = "old light property"
)

// Ports.
const (
	NICsInAdapters Trait = "ports in adapters only"
	HostInterface  Trait = "port to the BMC"
	VLANInterface  Trait = "VLAN among the ports"
)

// Virtual media.
const (
	NoMedia             Trait = "no virtual media"
	EjectNeedsBody      Trait = "eject needs a body"
	InsertImageOnly     Trait = "insert takes the image only"
	MediaByPatch        Trait = "media by PATCH"
	MediaInSystem       Trait = "media in the system"
	InsertNeedsProtocol Trait = "insert needs the protocol"
	InsertNeedsStream   Trait = "insert needs streaming and a user"
	EjectShownLate      Trait = "eject shown late"
	InsertNeedsEject    Trait = "insert needs an eject first"
	LicenceForMedia     Trait = "licence for media"
)

// Answers and connections.
const (
	InfoObject       Trait = "ExtendedInfo is an object"
	InfoAtTop        Trait = "ExtendedInfo at the top"
	ErrorsAreHTML    Trait = "errors are HTML"
	BusyRetryAfter   Trait = "busy with Retry-After"
	Busy             Trait = "busy"
	SessionsTaken    Trait = "all sessions taken"
	Reloading        Trait = "reloading"
	DropsKeepAlive   Trait = "drops idle connections"
	OneAtATime       Trait = "one request at a time"
	NoIdentity       Trait = "identity not acceptable"
	RedirectsSlash   Trait = "redirects to a slash"
	ForbiddenStorage Trait = "storage forbidden"
	ParentFirst      Trait = "parent first"
	AnyCase          Trait = "paths in any case"
	Silent           Trait = "silent"
)

// Traits lists every trait with where it is known from.
func Traits() map[Trait]string {
	return map[Trait]string{
		NoSessions:              "OpenStack sushy-tools: its emulator has basic authentication only",
		SessionsNeedLicence:     "Supermicro without DCMS or OOB licence: SMC.1.0.OemLicenseNotPassed",
		NoBasic:                 "OpenBMC: each way of authentication can be switched off in AccountService",
		SessionNoLocation:       "gofish, which reads Location only and loses such sessions; the body has @odata.id",
		SessionAbsoluteLocation: "HPE iLO: the URL has the BMC's own address, which is another behind NAT",
		SessionOnlyID:           "supposed: the body has Id only; the collection has the rest",
		FewSessions:             "Dell iDRAC: about eight, then 503 RAC0218; here three",
		SessionsEnd:             "Supermicro X10 (captured): SessionTimeout 300 s",
		PasswordChangeRefuses:   "AMI MegaRAC: a login with the factory's password is 403 PasswordChangeRequired",
		PasswordChangeInSession: "DSP0266 and OpenBMC: the login is 201 with PasswordChangeRequired in it, all but the account is 403",
		ReadOnlyUser:            "DSP0266: a user without ConfigureComponents is 403 InsufficientPrivilege at every write",

		WeakETags:       "HPE iLO 5 to 7 (captured)",
		StrongCompare:   "sushy: BMCs hand out weak tags and take them only without W/",
		IfMatchRequired: "Lenovo TSM, AMI: 428 PreconditionRequired",
		IfMatchRefused:  "sushy: the last attempt of three has no If-Match",
		ETagInHeader:    "Supermicro X10, Dell iDRAC (captured): no @odata.etag in the body",
		ETagInBody:      "supposed: a proxy that drops the ETag header",
		EmptyETag:       "sushy: an empty ETag must not be sent back",
		ETagMoves:       "supposed: readings inside the resource change its tag between the read and the first write",
		GzipETags:       "Apache-based BMCs: the tag of a compressed answer ends in -gzip (sushy)",

		ModeUnknown:        "HP iLO 4, HPE DL160 Gen10, Supermicro X10: BootSourceOverrideMode is no property",
		ModeReadOnly:       "Dell iDRAC 8: the mode is changed by a BIOS job",
		ModeUnchanged:      "supposed: the mode that is in force is no change, 400 PropertyValueConflict",
		BootNeedsAll:       "AMI, ASRock Rack, Lenovo TSM (Sidero omni): target, enabled and mode each time",
		ModeFallsBack:      "Supermicro X11 (sushy): a PATCH without the mode sets Legacy",
		BootInFutureState:  "AMI, Lenovo TSM (Sidero omni): Ami.1.0.OperationSupportedInFutureStateURI names Systems/{id}/SD",
		FutureStateUnnamed: "AMI: no @Redfish.Settings, and the refusal has no address in it",
		BootInSettings:     "Dell iDRAC 10 (sushy): the system is read-only, its settings object has the targets",
		OnceOrDisabled:     "Lenovo XCC: BootSourceOverrideEnabled has no Continuous",
		OnlyUefiPxe:        "supposed, as Supermicro X10 (captured) has UefiHdd: a target of its own for UEFI",
		NoBootOverride:     "NVIDIA HGX baseboards",
		OverrideIgnored:    "ironic: a PATCH that is accepted and changes nothing",
		OverrideLate:       "ironic: the new value is read some seconds after the PATCH",
		PatchNoContent:     "DSP0266: 204 is a success as 200 is",
		LicenceForBoot:     "Supermicro (metal3-io/ironic-image#688): 403 OemLicenseNotPassed, the login is good",

		AlreadyConflict:   "Dell iDRAC: 409 for On when it is on",
		AlreadyBadRequest: "HPE iLO: 400 InvalidOperationForSystemState for On when it is on",
		TooSoon:           "HPE iLO (sushy): 400 within seconds of the last power action",
		ConflictAtFirst:   "Dell iDRAC 10 (sushy): On is 409 ActionParameterValueConflict for a while",
		ResetDoesNothing:  "supposed: the connection to the board hangs; 204 and no reset",
		ResetAnswerLost:   "supposed: the BMC resets the server and drops the connection before its answer",
		PowerLags:         "ironic: PowerState is not to be trusted for 15 s after a reset",
		ResetTask:         "DSP0266: 202, and a task that ends",
		TaskFails:         "DSP0266: a task that ends in Exception",
		TaskNeverEnds:     "Dell: a job that stays at Running until the iDRAC is reset",
		TaskLate:          "Dell (sushy): the job is 404 for some seconds",
		TaskInBody:        "supposed: no Location, the 202 has the task in its body",
		TaskVanishes:      "supposed: a task that is done is removed, and 404",
		NoReset:           "NVIDIA HGX_Baseboard_0 (captured), Supermicro without licence",

		RefusesInPOST:     "HPE iLO (sushy): 400 UnableToModifyDuringSystemPOST",
		StandsInDiscovery: "HPE iLO 7 (captured): InPostDiscoveryComplete for hours where no disk boots",
		ClockBehind:       "supposed: a manager's clock that was set back after the reset",
		ClockJumps:        "NTP: the clock is hours behind at the reset and right a minute later",
		Clock1970:         "NVIDIA HGX_Baseboard_0 (captured): LastResetTime 1970-01-01T00:02:17",
		NoClock:           "supposed: Manager without DateTime, and no Date",
		NoResetTime:       "11 of 25 captured trees",

		NoTag:        "Supermicro X10 (captured): the system has no AssetTag",
		TagReadOnly:  "Dell iDRAC 10: PropertyNotWritable at the system",
		TagPadded:    "HPE iLO 7 (captured): 32 bytes, filled with blanks",
		TagIgnored:   "supposed: 204, and the tag stays",
		NoLight:      "NVIDIA HGX, sushy-tools",
		LightRefused: "supposed of blades: the chassis manager owns the light, 403",
		OldLight:     "Supermicro X10 (captured): IndicatorLED without LocationIndicatorActive",

		NICsInAdapters: "NVIDIA GH200 (captured): no EthernetInterfaces, addresses are the adapters' alone",
		HostInterface:  "HPE, AMI: the port between server and BMC is among the system's",
		VLANInterface:  "DSP0268: an EthernetInterface with VLANEnable, and the address of the port below",

		NoMedia:             "Supermicro X10 (captured): an empty collection",
		EjectNeedsBody:      "HPE iLO: EjectMedia without {} is 400 or 415 (sushy)",
		InsertImageOnly:     "Supermicro X11: InsertMedia refuses Inserted and WriteProtected",
		MediaByPatch:        "Lenovo XCC: no actions, PATCH of Image and Inserted",
		MediaInSystem:       "Dell iDRAC from 6.00: under Systems, not Managers",
		InsertNeedsProtocol: "Nokia: TransferProtocolType is required",
		InsertNeedsStream:   "NVIDIA DGX: TransferMethod Stream, UserName and Password are required",
		EjectShownLate:      "Dell iDRAC: Inserted is true for a while after the eject",
		InsertNeedsEject:    "Dell iDRAC: VRM0012 where media is inserted",
		LicenceForMedia:     "HPE iLO without Advanced, Supermicro: 403",

		InfoObject:       "Supermicro X10: @Message.ExtendedInfo is one object (sushy)",
		InfoAtTop:        "HP iLO 4: Messages at the top, without error",
		ErrorsAreHTML:    "pages of the web server in front of the Redfish service",
		BusyRetryAfter:   "RFC 9110 §10.2.3: 503 that says when",
		Busy:             "a 503 that does not say when",
		SessionsTaken:    "Dell iDRAC: 503 RAC0218 at the login until others end",
		Reloading:        "Dell iDRAC (sushy): SYS518 while it reloads",
		DropsKeepAlive:   "AMI, Supermicro X10: idle connections are closed without a word",
		OneAtATime:       "AMI, Supermicro: a second request at the same time is 503",
		NoIdentity:       "HPE Gen10 Plus (sushy): 406 to Accept-Encoding: identity",
		RedirectsSlash:   "HPE iLO: 308 to the same path with a slash",
		ForbiddenStorage: "Supermicro (metal3-io/ironic-image#688): 403 at one GET, the login is good",
		ParentFirst:      "Lenovo XCC (NVIDIA infra-controller): a child is 404 until its parent was read",
		AnyCase:          "HPE iLO (captured): its resources refer to /redfish/v1/systems/1/bios, which is below /redfish/v1/Systems/1",
		Silent:           "a BMC that hangs: connections are accepted, nothing is answered",
	}
}
