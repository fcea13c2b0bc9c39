package api

import "testing"

// Each of these is said of its field, or is in order.
func TestGuestSpec(t *testing.T) {
	for text, pointer := range map[string]string{
		`"tpm":true`:                     "",
		`"tpm":true,"machine":"microvm"`: "/spec/tpm",
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
