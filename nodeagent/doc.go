// Package nodeagent owns the host daemon: it joins a machine to its site,
// keeps one stream to bootd, caches the HostSpec that it receives, applies the
// parts through their handlers, and reports what it observes.
//
// One goroutine, the loop of Agent, owns all state; others access it through
// Agent.do. The stream, the NIC watch and one worker per Handler run in goroutines
// of their own, and Agent.Run waits for all of them.
//
// Absence is not deletion: a part that vanishes from the HostSpec, a damaged cache
// or an unreachable bootd changes nothing on the host. Only a tombstone with the
// object's uid removes anything.
package nodeagent
