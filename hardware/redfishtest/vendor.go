package redfishtest

import (
	"embed"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

//go:embed testdata/*.json
var trees embed.FS

// Vendor is one family of BMCs: a tree and the traits that go with it.
type Vendor struct {
	Name     string // of its tree below testdata
	System   string // the path of the system that has a power switch
	Captured []string
	Traits   []Trait
}

// Vendors are the families, each with the folders of captured trees of real machines that behave as it does.
func Vendors() []Vendor {
	const one, dell, self = rootPath + "/Systems/1", rootPath + "/Systems/System.Embedded.1", rootPath + "/Systems/Self"
	hpe := func(more ...Trait) []Trait {
		return append([]Trait{WeakETags, SessionAbsoluteLocation, NoIdentity, RefusesInPOST, AlreadyBadRequest, TooSoon, EjectNeedsBody, AnyCase}, more...)
	}
	idrac := func(more ...Trait) []Trait {
		return append([]Trait{ETagInHeader, AlreadyConflict, FewSessions}, more...)
	}
	return []Vendor{
		{"hp-ilo4", one, nil, []Trait{WeakETags, SessionAbsoluteLocation, InfoAtTop, ModeUnknown, NoResetTime, OldLight, MediaByPatch, AlreadyBadRequest}},
		{"hpe-ilo5", one, []string{"hpe-dl325gen10plus-ilo5", "hpe-dl360gen10-ilo5-2.96"}, hpe()},
		{"hpe-ilo7", one, []string{"hpe-dl360gen12-ilo7"}, hpe(StandsInDiscovery, TagPadded)},
		{"dell-idrac8", dell, nil, idrac(ModeReadOnly, OldLight, NoResetTime, InsertNeedsEject)},
		{"dell-idrac9", dell, []string{"dell-xr8620t-idrac9-6.10"}, idrac(EjectShownLate, InsertNeedsEject)},
		{"dell-idrac10", dell, nil, idrac(BootInSettings, TagReadOnly, ConflictAtFirst, MediaInSystem)},
		{"supermicro-x10", one, []string{"supermicro-x10"}, []Trait{ETagInHeader, ModeUnknown, NoMedia, NoTag, OldLight, InfoObject, SessionsEnd, DropsKeepAlive, NoResetTime}},
		{"supermicro-x11", one, nil, []Trait{ModeFallsBack, OldLight, InsertImageOnly, NoResetTime, OneAtATime}},
		{"lenovo-xcc", one, nil, []Trait{OnceOrDisabled, MediaByPatch, ParentFirst, AlreadyConflict}},
		{"lenovo-tsm", self, nil, []Trait{WeakETags, StrongCompare, IfMatchRequired, BootNeedsAll, BootInFutureState, DropsKeepAlive, NoResetTime, PatchNoContent}},
		{"ami", self, nil, []Trait{IfMatchRequired, BootNeedsAll, BootInFutureState, FutureStateUnnamed, NoClock, NoResetTime, OneAtATime, PatchNoContent}},
		{"openbmc", rootPath + "/Systems/system", nil, []Trait{SessionNoLocation, PowerLags, OverrideLate, PatchNoContent}},
		{"two-systems", rootPath + "/Systems/System_0", []string{"nvidia-gh200"}, []Trait{ModeUnknown, PowerLags, InsertNeedsStream, PatchNoContent}},
		{"sushy-tools", rootPath + "/Systems/00000014-0000-4000-8000-000000000014", nil, []Trait{NoSessions, PatchNoContent, NoResetTime}},
	}
}

// Tree reads the vendor's tree.
func (v Vendor) Tree() (Tree, error) {
	data, err := trees.ReadFile("testdata/" + v.Name + ".json")
	if err != nil {
		return nil, fmt.Errorf("tree of vendor %q: %w", v.Name, err)
	}
	return ParseTree(data)
}

// VendorOf finds a family by its name.
func VendorOf(name string) (Vendor, error) {
	for _, v := range Vendors() {
		if v.Name == name {
			return v, nil
		}
	}
	return Vendor{}, fmt.Errorf("invalid vendor %q: want one of Vendors", name)
}

// StartVendor serves a BMC of the family, with more traits as asked for, until the test ends.
func StartVendor(tb testing.TB, name string, more ...Trait) *Server {
	tb.Helper()
	v, err := VendorOf(name)
	if err != nil {
		tb.Fatal(err)
	}
	tree, err := v.Tree()
	if err != nil {
		tb.Fatal(err)
	}
	return Start(tb, tree, append(v.Traits, more...)...)
}

// Captured are the trees of real machines in a directory, each with the family that it behaves as. It is empty where
// they are not next to the checkout.
func Captured(tb testing.TB, dir string) map[string]Vendor {
	tb.Helper()
	found := map[string]Vendor{}
	for _, v := range Vendors() {
		for _, folder := range v.Captured {
			if _, err := os.Stat(filepath.Join(dir, folder)); err == nil {
				found[folder] = v
			}
		}
	}
	return found
}

// StartCaptured serves a captured tree with the traits of its family until the test ends.
func StartCaptured(tb testing.TB, root string, v Vendor, more ...Trait) *Server {
	tb.Helper()
	tree, err := ReadTree(os.DirFS(root))
	if err != nil {
		tb.Fatal(err)
	}
	return Start(tb, tree, append(v.Traits, more...)...)
}

// contradictions are traits that no BMC has together: nothing would be left to do about one of them, or nothing to see.
func contradictions() [][2]Trait {
	return [][2]Trait{
		{IfMatchRequired, IfMatchRefused}, {IfMatchRequired, EmptyETag},
		{BootNeedsAll, ModeReadOnly}, {BootNeedsAll, ModeUnknown}, {BootNeedsAll, ModeUnchanged}, {ModeFallsBack, ModeReadOnly}, {ModeFallsBack, ModeUnknown},
		{BootInFutureState, BootInSettings},
		{ResetDoesNothing, NoResetTime},
		{NoSessions, NoBasic}, {SessionsNeedLicence, NoBasic}, {SessionOnlyID, NoBasic},
	}
}

// Pick chooses up to n more traits that go with the vendor's and with each other, none of those in but.
func (v Vendor) Pick(random *rand.Rand, n int, but ...Trait) []Trait {
	has := rules{}
	for _, trait := range v.Traits {
		has[trait] = true
	}
	var more []Trait
	all := slices.Sorted(maps.Keys(Traits()))
	for _, i := range random.Perm(len(all)) {
		trait := all[i]
		if len(more) == n {
			break
		}
		if has[trait] || slices.Contains(but, trait) || has.contradicts(trait) {
			continue
		}
		has[trait] = true
		more = append(more, trait)
	}
	return more
}

func (r rules) contradicts(trait Trait) bool {
	for _, pair := range contradictions() {
		if pair[0] == trait && r[pair[1]] || pair[1] == trait && r[pair[0]] {
			return true
		}
	}
	return false
}
