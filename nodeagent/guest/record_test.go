package guest

import (
	"path/filepath"
	"testing"

	"github.com/rackweft/rackweft/internal/file/filetest"
)

// TestRecordOutlivesPower: that a share was given to another host is on the disk
// before bootd hears of it. The old record must not come back with the power.
func TestRecordOutlivesPower(t *testing.T) {
	d := filetest.NewDisk(t)
	dir := filepath.Join(d.Dir, "guest")
	r := record{}
	for _, user := range []int{1001, 1002} {
		r.User = user
		if err := r.write(dir); err != nil {
			t.Fatal(err)
		}
		found, err := readRecord(filepath.Join(d.Cut(), "guest"))
		if err != nil || found.User != user {
			t.Errorf("after the loss of power: %+v, %v; want user %d", found, err, user)
		}
	}
}
