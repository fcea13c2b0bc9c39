package api

import "testing"

// Each of these is said of its field, or is in order.
func TestGuestSpec(t *testing.T) {
	for text, pointer := range map[string]string{
		`"tpm":true`:                     "",
		`"tpm":true,"machine":"microvm"`: "/spec/tpm",
		`"shares":[{"name":"tls","secret":"web"},{"name":"conf","files":{"a.yaml":"b"}}]`: "",
		`"cloudInit":{"userData":"#cloud-config"}`:                                        "",
		`"cloudInit":{},"ignition":{"layers":["a"]}`:                                      "/spec/cloudInit",
		`"shares":[{"name":"tls"}]`:                                                       "/spec/shares/0",
		`"shares":[{"name":"tls","secret":"web","files":{"a":"b"}}]`:                      "/spec/shares/0",
		`"shares":[{"name":"tls","files":{"../a":"b"}}]`:                                  "/spec/shares/0/files/..~1a",
		`"shares":[{"name":"tls","files":{"..":"b"}}]`:                                    "/spec/shares/0/files/..",
		`"shares":[{"name":"tls","secret":"a"},{"name":"tls","secret":"b"}]`:              "/spec/shares/1/name",
		`"shares":[{"name":"a2345678901234567890123456789012","secret":"a"}]`:             "/spec/shares/0/name",
	} {
		o, err := DecodeObject([]byte(`{"apiVersion":"rackweft/v1alpha1","kind":"Guest","metadata":{"name":"g"},"spec":{"network":"n","cpus":1,"memory":"1Gi","image":"i",` + text + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		o.SetDefaults()
		got := o.Validate()
		if pointer == "" && len(got) > 0 || pointer != "" && (len(got) != 1 || got[0].Pointer != pointer) {
			t.Errorf("%s: %v", text, got)
		}
	}
}
