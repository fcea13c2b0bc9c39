package api

// BMCIPMI holds the settings of IPMI sessions.
type BMCIPMI struct {
	CipherSuite *int   `json:"cipherSuite,omitempty" doc:"Cipher suite of the session: 17 (HMAC-SHA256 and AES-128), or 3 (HMAC-SHA1 and AES-128) for a BMC that has no 17. Suite 0, which asks for no password, is never used. Default: 17."`
	Privilege   string `json:"privilege,omitzero" enum:"administrator,operator" doc:"Privilege level that the session asks for; operator is enough for power, boot device and console. Default: administrator."`
}

// Cipher suites of IPMI sessions (IPMI 2.0 section 22.15.2).
const (
	CipherSuiteSHA1   = 3
	CipherSuiteSHA256 = 17
)

// Protocols that BMCs are spoken to in.
const (
	ProtocolRedfish = "redfish"
	ProtocolIPMI    = "ipmi"
)

// SpeaksIPMI reports whether the BMC may be spoken to in IPMI.
func (b *BMC) SpeaksIPMI() bool { return b.Protocol == ProtocolIPMI || b.Fallback == ProtocolIPMI }

func (b *BMC) setDefaults() {
	if b.Protocol == "" {
		b.Protocol = ProtocolRedfish
	}
	if b.Console == "" {
		b.Console = ConsoleBoot
	}
	if !b.SpeaksIPMI() {
		return
	}
	if b.IPMI == nil {
		b.IPMI = new(BMCIPMI)
	}
	if b.IPMI.CipherSuite == nil {
		suite := CipherSuiteSHA256
		b.IPMI.CipherSuite = &suite
	}
	if b.IPMI.Privilege == "" {
		b.IPMI.Privilege = "administrator"
	}
}

func (b *BMC) validateIPMI(e *FieldErrors) {
	if b.Fallback != "" {
		e.oneOf(at("spec", "bmc", "fallback"), b.Fallback, ProtocolIPMI)
	}
	if b.Fallback != "" && b.Protocol == ProtocolIPMI {
		e.add(at("spec", "bmc", "fallback"), "there is nothing to fall back from: protocol is ipmi already")
	}
	if !b.SpeaksIPMI() {
		if b.IPMI != nil {
			e.add(at("spec", "bmc", "ipmi"), "IPMI is not spoken to this BMC: set protocol or fallback to ipmi, or leave it out")
		}
		return
	}
	if b.System != "" {
		e.add(at("spec", "bmc", "system"), "IPMI cannot say which of a BMC's systems it means: leave out system, or IPMI")
	}
	if b.Protocol == ProtocolIPMI && b.TLS.Fingerprint != "" {
		e.add(at("spec", "bmc", "tls", "fingerprint"), "IPMI shows no certificate: leave it out")
	}
	if b.IPMI == nil {
		return
	}
	if suite := b.IPMI.CipherSuite; suite != nil && *suite != CipherSuiteSHA256 && *suite != CipherSuiteSHA1 {
		e.add(at("spec", "bmc", "ipmi", "cipherSuite"), "invalid cipher suite %d: want 17, or 3 for a BMC that has no 17; the others do not encrypt, or accept a login without a password", *suite)
	}
	e.oneOf(at("spec", "bmc", "ipmi", "privilege"), b.IPMI.Privilege, "administrator", "operator")
}
