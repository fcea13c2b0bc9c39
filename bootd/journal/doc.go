// Package journal owns bounded files of JSON lines: events, decision records, the audit log.
//
// A journal NAME in DIR is a few files NAME.FIRST.jsonl, where FIRST is the sequence number (20 digits)
// of the first record in it. Only the newest is written; when it is full another is begun, and the oldest
// removed. A line is one record:
//
//	{"seq":118,"time":"2026-11-21T03:15:56.123456789Z","lost":2,"data":{…}}
//
// Keeping records must never stop what they tell about. When the disk is full, a record is dropped and
// counted, and the next one that can be written says in "lost" how many are missing before it.
//
// After a crash the newest file may end in half a line or in garbage. Open cuts that off. Damage anywhere
// else is passed over by readers and counted.
package journal
