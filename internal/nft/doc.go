// Package nft is nftables for the rooms that filter: the language of rules,
// as nft(8) writes it and as the kernel has it, and Apply, which makes a table
// of one network namespace what it should be.
//
// Apply lists what the kernel has and changes only what differs. Chains change
// in one transaction, so that no packet meets half of a change; sets that rules
// ask for have their elements before the rules come.
package nft
