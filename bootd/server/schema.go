package server

import (
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
)

// The types that represent others in the OpenAPI document.
type (
	addrText   struct{}
	macText    struct{}
	digestText struct{}
	unsigned32 struct{}
)

// Schema implements huma.SchemaProvider.
func (addrText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, AnyOf: []*huma.Schema{{Format: "ipv4"}, {Format: "ipv6"}}}
}

// Schema implements huma.SchemaProvider.
func (macText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Examples: []any{"52:54:00:01:07:00"}}
}

// Schema implements huma.SchemaProvider.
func (digestText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Pattern: "^(sha256:)?[0-9a-fA-F]{64}$"}
}

// Schema implements huma.SchemaProvider.
func (unsigned32) Schema(huma.Registry) *huma.Schema {
	low, high := 0.0, float64(1<<32-1)
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Minimum: &low, Maximum: &high}
}

func statusText(status int) string {
	if status == 0 {
		status = http.StatusOK
	}
	return strconv.Itoa(status)
}
