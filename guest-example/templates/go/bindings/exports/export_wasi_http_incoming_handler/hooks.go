// Package export_wasi_http_incoming_handler passes requests on to the service.
package export_wasi_http_incoming_handler

import "service/bindings/imports/wasi_http_types"

// OnRequest is set by package leasehold.
var OnRequest = func(*wasi_http_types.IncomingRequest, *wasi_http_types.ResponseOutparam) {}

// Handle is called by the host.
func Handle(request *wasi_http_types.IncomingRequest, out *wasi_http_types.ResponseOutparam) {
	OnRequest(request, out)
}
