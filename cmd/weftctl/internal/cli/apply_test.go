package cli

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rackweft/rackweft/api"
)

const rack = `kind: Machine
metadata: {name: r1u07, labels: {tier: app}}
spec:
  zone: yellow
  links: [{name: pxe0, mac: "52:54:00:01:07:00", subnet: pxe}]
---
kind: Zone
metadata: {name: yellow}
spec: {asn: 64601}
---
kind: Secret
metadata: {name: r1-bmc}
spec: {data: {username: admin, password: hunter2}}
`

func TestApply(t *testing.T) {
	b := newBootd(t)
	file := write(t, t.TempDir(), "rack.yaml", rack)
	b.run(t, "", "apply", "-f", file, "--dry-run").want(t, 0, "secret/r1-bmc created (dry run)\nzone/yellow created (dry run)\nmachine/r1u07 created (dry run)\n")
	b.run(t, "", "apply", "-f", file).want(t, 0, "secret/r1-bmc created\nzone/yellow created\nmachine/r1u07 created\n")
	b.run(t, "", "apply", "-f", file).want(t, 0, "secret/r1-bmc unchanged\nzone/yellow unchanged\nmachine/r1u07 unchanged\n")

	m := b.objects["machines/r1u07"].(*api.Machine)
	m.Status.Phase = api.PhaseActive // what moves by itself is no change
	changed := strings.NewReplacer("tier: app", "tier: db", "64601", "64602", "hunter2", "hunter3").Replace(rack)
	b.run(t, changed, "apply", "-f", "-", "--dry-run").want(t, 0, "secret/r1-bmc configured (dry run)\nzone/yellow configured (dry run)\nmachine/r1u07 configured (dry run)\n")
	b.run(t, changed, "apply", "-f", "-").want(t, 0, "secret/r1-bmc configured\nzone/yellow configured\nmachine/r1u07 configured\n")
	if got := b.objects["machines/r1u07"].Meta().Labels["tier"]; got != "db" {
		t.Errorf("tier is %q", got)
	}
}

func TestApplyShowsFaultsWhereTheyStand(t *testing.T) {
	b := newBootd(t)
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, "a.yaml", `kind: Machine
metadata: {name: r1u07}
spec:
  links:
    - {name: pxe0, mac: "52:54"}
---
kind: Machine
metadata: {name: r1u08}
spec:
  zome: yellow
  links: [{name: pxe0, mac: "52:54:00:01:08:00"}]
---
kind: Zone
metadata: {name: Yellow}
spec:
  asn: 0
`)
	write(t, dir, "b.yaml", "kind: Zone\nmetadata: {name: red}\nspec: {asn: 64601}\n---\nkind: Zone\nmetadata: {name: red}\nspec: {asn: 64602}\n")
	write(t, dir, "c.yaml", "kind: HostSpec\nmetadata: {name: a}\n")
	r := b.run(t, "", "apply", "-f", "a.yaml", "-f", "b.yaml", "-f", "c.yaml")
	want := `a.yaml:5: /spec/links/0/mac: invalid MAC address "52:54": want six octets, such as 52:54:00:01:07:00
    5 |     - {name: pxe0, mac: "52:54"}
a.yaml:10: /spec/zome: unknown field "zome": want one of zone, location, profile, links, loopbacks, bmc, boot, trust, variables, state
   10 |   zome: yellow
a.yaml:14: /metadata/name: invalid name "Yellow": want an RFC 1123 label, up to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit
   14 | metadata: {name: Yellow}
a.yaml:16: /spec/asn: 0 is reserved (RFC 7607, 6793, 7300): use a private ASN, 64512-65534 or 4200000000-4294967294
   16 |   asn: 0
c.yaml:1: /kind: a HostSpec is compiled from other objects: apply those
    1 | kind: HostSpec
b.yaml:6: /metadata/name: zone/red is already in b.yaml:2
    6 | metadata: {name: red}
error: 6 faults in 3 files; nothing was sent
`
	if diff := cmp.Diff(want, r.err); diff != "" {
		t.Error(diff)
	}
	if r.code != 1 || len(b.requests) != 0 {
		t.Errorf("exit code %d, sent %v", r.code, b.requests)
	}
}

func TestApplyShowsWhatBootdRefuses(t *testing.T) {
	b := newBootd(t)
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, dir, "rack.yaml", rack)
	b.refuse["PUT /v1/machines/r1u07"] = &api.Problem{Status: 422, Title: "Unprocessable Content",
		Errors: api.FieldErrors{{Pointer: "/spec/links/0/mac", Message: "MAC 52:54:00:01:07:00 is r1u08's already"}}}
	b.warnings["zones/yellow"] = []string{`/spec/asn: "quoted" größer`, "just so"}
	r := b.run(t, "", "apply", "-f", "rack.yaml")
	r.want(t, 1, "secret/r1-bmc created\nzone/yellow created\n",
		"rack.yaml:5: /spec/links/0/mac: MAC 52:54:00:01:07:00 is r1u08's already\n    5 |   links:",
		`warning: rack.yaml:9: /spec/asn: "quoted" größer`, "warning: zone/yellow: just so", "error: bootd accepted 2 of 3 objects\n")

	b.refuse = map[string]*api.Problem{}
	stale := strings.Replace(rack, "name: yellow", `name: yellow, resourceVersion: "3"`, 1)
	b.run(t, stale, "apply", "-f", "-").want(t, 1, "secret/r1-bmc unchanged\nmachine/r1u07 created\n",
		"stdin:7: zone/yellow: Conflict: it is no longer current", "read it again")
}

func TestApplyDoesNotWarnOfWhatComesAlongInADryRun(t *testing.T) {
	b := newBootd(t)
	b.warnings["machines/r1u07"] = []string{`/spec/zone: Zone "yellow" does not exist yet`, `/spec/links/0/subnet: Subnet "pxe" does not exist yet`}
	r := b.run(t, rack, "apply", "-f", "-", "--dry-run")
	if strings.Contains(r.err, "yellow") || !strings.Contains(r.err, `Subnet "pxe"`) {
		t.Errorf("%s", r.err)
	}
}

func TestApplyUploadsFilesOfImages(t *testing.T) {
	b := newBootd(t)
	dir := t.TempDir()
	write(t, dir, "vmlinuz", "kernel bytes")
	write(t, dir, "initrd.img", "initrd bytes")
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("initrd bytes")))
	held := fmt.Sprintf("%x", sha256.Sum256([]byte("rootfs bytes")))
	b.blobs["sha256:"+held] = []byte("rootfs bytes")
	image := `kind: Image
metadata: {name: deb}
spec:
  version: "12"
  files:
    kernel: {source: vmlinuz}
    initrd: {source: ./initrd.img, sha256: ` + sum + `}
    rootfs: {source: gone.squashfs, sha256: ` + held + `}
    disk: {source: "https://example.com/disk", sha256: ` + held + `}
`
	file := write(t, dir, "image.yaml", image)
	r := b.run(t, "", "apply", "-f", file)
	r.want(t, 0, "image/deb created\n", "upload kernel  12 B in ", "upload initrd  12 B in ")
	if len(b.blobs) != 3 || len(b.sent("PUT")) != 3 {
		t.Errorf("%d blobs, PUT %v", len(b.blobs), b.sent("PUT"))
	}
	got := b.objects["images/deb"].(*api.Image)
	if got.Spec.Files["kernel"].SHA256 != api.SHA256(fmt.Sprintf("%x", sha256.Sum256([]byte("kernel bytes")))) || got.Spec.Files["kernel"].Source != "vmlinuz" {
		t.Errorf("%+v", got.Spec.Files["kernel"])
	}
	b.requests = nil
	b.run(t, "", "apply", "-f", file).want(t, 0, "image/deb unchanged\n")
	if n := len(b.sent("PUT")); n != 1 {
		t.Errorf("uploaded again: %v", b.sent("PUT"))
	}

	b.requests = nil
	write(t, dir, "initrd.img", "other bytes")
	write(t, dir, "image.yaml", strings.Replace(image, "vmlinuz", "vmlinux", 1))
	r = b.run(t, "", "apply", "-f", file)
	r.want(t, 1, "", file+":7: /spec/files/initrd/sha256: "+filepath.Join(dir, "initrd.img")+" has another digest",
		file+":6: /spec/files/kernel/source: open "+filepath.Join(dir, "vmlinux"), "2 faults in 1 file; nothing was sent")
	delete(b.blobs, "sha256:"+held)
	write(t, dir, "initrd.img", "initrd bytes")
	write(t, dir, "image.yaml", image)
	r = b.run(t, "", "apply", "-f", file)
	r.want(t, 1, "", file+":8: /spec/files/rootfs/source: "+filepath.Join(dir, "gone.squashfs")+" does not exist, and bootd does not hold its digest either")
	if len(b.sent("PUT")) != 0 {
		t.Errorf("sent %v", b.sent("PUT"))
	}
}

func TestApplyUsage(t *testing.T) {
	b := newBootd(t)
	b.run(t, "", "apply").want(t, 2, "", "name the files with -f")
	b.run(t, "", "apply", "x.yaml").want(t, 2, "", `unknown command "x.yaml"`)
	b.run(t, "", "apply", "-f", "/nope").want(t, 1, "", "read manifests: stat /nope")
	b.run(t, "# nothing\n", "apply", "-f", "-").want(t, 1, "", "no object in it")
	b.run(t, "a: [", "apply", "-f", "-").want(t, 1, "", "stdin:", "not YAML")
}

func TestDeleteInTurnedRoundOrder(t *testing.T) {
	b := newBootd(t)
	b.run(t, rack, "apply", "-f", "-")
	b.run(t, rack, "delete", "-f", "-").want(t, 0, "machine/r1u07 deleted\nzone/yellow deleted\nsecret/r1-bmc deleted\n")
	b.run(t, rack, "delete", "-f", "-", "--ignore-missing").want(t, 0, "")
	b.run(t, "", "delete", "zone/yellow", "machine/x").want(t, 1, "", "error: delete zone/yellow: Not Found", "error: delete machine/x: Not Found")
	b.run(t, "", "delete", "zones").want(t, 2, "", "not all are deleted at once")
	b.run(t, "", "delete").want(t, 2, "", "name the objects")
}

func TestDiff(t *testing.T) {
	b := newBootd(t)
	b.run(t, rack, "apply", "-f", "-")
	b.run(t, rack, "diff", "-f", "-").want(t, 0, "")
	changed := strings.NewReplacer("tier: app", "tier: db", "hunter2", "hunter3", "password", "token").Replace(rack)
	b.run(t, changed+"---\nkind: Zone\nmetadata: {name: red}\nspec: {asn: 64603}\n", "diff", "-f", "-").want(t, 1, `--- secret/r1-bmc at bootd
+++ secret/r1-bmc in stdin
@@ -1,4 +1,4 @@
 spec:
   data:
-    password: '***'
+    token: '***'
     username: '***'
--- zone/red at bootd
+++ zone/red in stdin
@@ -0,0 +1,5 @@
+spec:
+  asn: 64603
+  reflectors:
+    count: 2
+  encryption: none
--- machine/r1u07 at bootd
+++ machine/r1u07 in stdin
@@ -1,5 +1,5 @@
 labels:
-  tier: app
+  tier: db
 spec:
   zone: yellow
   links:
`)
}

// TestEditsLeadFromOneToTheOther holds for any two texts.
func TestEditsLeadFromOneToTheOther(t *testing.T) {
	texts := [][]string{nil, {"a"}, {"a", "b", "c"}, {"c", "b", "a"}, {"b"}, {"x", "a", "y", "b", "z", "c"}, {"a", "a", "b", "b"}}
	for _, before := range texts {
		for _, after := range texts {
			var gotBefore, gotAfter []string
			for _, e := range edits(before, after) {
				if e.mark != '+' {
					gotBefore = append(gotBefore, e.line)
				}
				if e.mark != '-' {
					gotAfter = append(gotAfter, e.line)
				}
			}
			if !slices.Equal(gotBefore, before) || !slices.Equal(gotAfter, after) {
				t.Errorf("%v to %v", before, after)
			}
		}
	}
}

func TestUnifiedHunks(t *testing.T) {
	var before, after strings.Builder
	for i := range 30 {
		fmt.Fprintf(&before, "%d\n", i)
		if i != 2 {
			fmt.Fprintf(&after, "%d\n", i)
		}
		if i == 25 {
			after.WriteString("new\n")
		}
	}
	want := `--- a
+++ b
@@ -1,6 +1,5 @@
 0
 1
-2
 3
 4
 5
@@ -24,6 +23,7 @@
 23
 24
 25
+new
 26
 27
 28
`
	if diff := cmp.Diff(want, unified("a", "b", before.String(), after.String())); diff != "" {
		t.Error(diff)
	}
}

func TestEdit(t *testing.T) {
	b := newBootd(t)
	b.run(t, rack, "apply", "-f", "-")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	edit := func(script string, args ...string) result {
		t.Helper()
		env := map[string]string{"RACKWEFT_SERVER": "unix://" + b.socket, "EDITOR": script}
		return runWith(t, t.Context(), env, "", append([]string{"edit"}, args...)...)
	}
	edit("true", "zone", "yellow").want(t, 0, "zone/yellow unchanged\n")
	edit("sed -i s/64601/64607/", "zone", "yellow").want(t, 0, "zone/yellow configured\n")
	if left, _ := filepath.Glob(filepath.Join(tmp, "*", "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	r := edit("sed -i s/asn/asm/", "zone/yellow")
	r.want(t, 1, "", "zone-yellow.yaml:7: /spec/asm: unknown field", "your edit is kept: weftctl apply -f "+tmp)
	left, _ := filepath.Glob(filepath.Join(tmp, "*", "*"))
	if len(left) != 1 {
		t.Fatalf("the edit is not kept: %v", left)
	}
	text, err := os.ReadFile(left[0])
	if err != nil || !strings.Contains(string(text), "asm: 64607") {
		t.Errorf("%s %v", text, err)
	}
	edit("false", "zone", "yellow").want(t, 1, "", "editor false")
	edit("true", "secret", "r1-bmc").want(t, 2, "", "cannot be read back")
	edit("true", "hostspec", "r1u07").want(t, 2, "", "compiled from other objects")
	edit("true", "zones").want(t, 2, "", "one object at a time")

	// Somebody else's change in between is not overwritten.
	script := write(t, tmp, "editor", "#!/bin/sh\nsed -i s/64607/64608/ $1\n")
	b.mu.Lock()
	b.refuse["PUT /v1/zones/yellow"] = &api.Problem{Status: 409, Title: "Conflict", Detail: "it is no longer current"}
	b.mu.Unlock()
	edit("sh "+script, "zone", "yellow").want(t, 1, "", "Conflict: it is no longer current", "your edit is kept")
}
