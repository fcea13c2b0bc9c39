// Package nft is the language of nftables rules: terms, as nft(8) writes them
// and as the kernel has them.
package nft
