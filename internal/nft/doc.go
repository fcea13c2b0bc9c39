// Package nft manages nftables for the packages that filter packets: a language
// of rules, as nft(8) writes them and as the kernel has them, and Apply, which
// brings a table of one network namespace to its wanted content.
//
// Apply lists what the kernel has and changes only the difference. Chains
// change in one transaction, so that no packet sees half of a change; sets have
// their elements before rules that refer to them are added.
package nft
