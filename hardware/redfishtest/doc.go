// Package redfishtest is a BMC to test clients against: a Redfish service that serves a tree of resources, captured or
// written by hand, and answers writes the way a vendor does. Only tests and benchmarks import it.
//
// What a BMC does differently from the standard is a Trait, a named value with a line where it is known from. A Vendor
// is a tree with its traits; a test may also combine them as it likes, or at random. Behind the tree is a small
// model of the server: power, POST, the boot override that a reset consumes, the asset tag that POST shows. It lives by
// a clock of its own, which tests move.
//
// Every request is recorded, so that a test can prove what a client may do to a BMC: one request at a time, no session
// left over, no accepted write sent twice, few requests for each verb.
package redfishtest
