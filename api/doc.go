// Package api owns rackweft's vocabulary: the kinds, their defaults and
// validation, the frames of the host stream, problem documents, and the typed
// client. It imports nothing else of rackweft, so every other package may
// import it.
//
// Objects follow Kubernetes' conventions without Kubernetes: metadata, spec
// (yours), status (rackweft's). A value that rackweft chooses lives in status;
// a spec field only pins it.
package api

// Version is the apiVersion of every object.
const Version = "rackweft/v1alpha1"
