// Package export_leasehold_registry_lifecycle passes the start and the end on to the service.
package export_leasehold_registry_lifecycle

import wit "go.bytecodealliance.org/pkg/wit/types"

// OnStart and OnStop are set by package leasehold.
var (
	OnStart = func() error { return nil }
	OnStop  = func() {}
)

// Start is called by the host.
func Start() wit.Result[wit.Unit, string] {
	if err := OnStart(); err != nil {
		return wit.Err[wit.Unit, string](err.Error())
	}
	return wit.Ok[wit.Unit, string](wit.Unit{})
}

// Stop is called by the host.
func Stop() { OnStop() }
