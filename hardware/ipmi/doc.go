// Package ipmi speaks IPMI 2.0 to BMCs by running ipmitool: power, boot device, locator light, and the serial console over
// LAN. What IPMI has no command for is an UnsupportedError of that verb.
//
// Commands are sent raw, so that answers are bytes and refusals are completion codes; the sections named in comments are
// those of the IPMI 2.0 specification, revision 1.1. Each command is a session of its own. The password reaches ipmitool in
// its environment, which only root and the user that bootd runs as can read, and never on its command line.
//
// bmclib's ipmitool provider (v2.3.5) runs the same program, and is not used. It drops what ipmitool says when it is
// verbose, without which a wrong password, a cipher suite that the BMC lacks and a BMC that is silent end in the same
// words, and the password would be sent again until the account is locked. Nor does it read boot flags back, lift their
// 60-second limit, open the console, choose a privilege level or limit the time.
package ipmi
