// Package nodeagent owns the host daemon: it joins a machine to its site,
// keeps one stream to bootd, caches the HostSpec that comes down it, makes the
// parts true through their handlers, and reports what it observed.
//
// One goroutine, the loop of Agent, owns all state; everything else asks it
// through Agent.do. The stream, the NIC watch and one worker per Handler run
// beside it, and Agent.Run waits for all of them.
//
// Absence is not deletion: a part that vanishes from the HostSpec, a damaged
// cache or a bootd that is gone changes nothing on the host. Only a tombstone
// with the object's uid removes anything.
package nodeagent
