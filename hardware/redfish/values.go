package redfish

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"
)

// decode is json.Unmarshal that skips members of a wrong type: BMCs answer null, "" or "N/A" where the
// schema has a number or an object. What is no JSON at all is an error.
func decode(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return nil
	}
	return err
}

// text is a string without padding; placeholders that factories leave in, and other types, read as empty.
type text string

func (t *text) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) != nil {
		*t = ""
		return nil
	}
	s = strings.TrimSpace(s)
	switch strings.ToLower(s) {
	case "to be filled by o.e.m.", "n/a", "na", "not available", "not specified", "default string", "unknown":
		s = ""
	}
	*t = text(s)
	return nil
}

// number is a number, also where a BMC quotes it; anything else reads as 0.
type number float64

func (n *number) UnmarshalJSON(data []byte) error {
	f, err := strconv.ParseFloat(strings.Trim(string(data), `" `), 64)
	if err != nil || f < 0 || f > 1<<62 || f != f {
		f = 0
	}
	*n = number(f)
	return nil
}

// link is a reference to another resource. Only its path counts: a BMC cannot send us to another host.
type link struct {
	ID text `json:"@odata.id"`
}

// links is a list of references, or a single one.
type links []link

func (l *links) UnmarshalJSON(data []byte) error {
	var many []link
	if json.Unmarshal(data, &many) == nil {
		*l = many
		return nil
	}
	var one link
	if json.Unmarshal(data, &one) == nil && one.ID != "" {
		*l = links{one}
	}
	return nil
}

func (l links) first() string {
	if len(l) == 0 {
		return ""
	}
	return string(l[0].ID)
}

// bmcTime reads a Redfish date-time (DSP0266 9.7.4), with or without its zone; false for none and for the
// beginnings of time that BMCs send instead of "never".
func bmcTime(s, offset text) (time.Time, bool) {
	value := string(s)
	at, err := time.Parse(time.RFC3339Nano, value)
	if err != nil {
		at, err = time.Parse(time.RFC3339Nano, value+string(offset))
	}
	if err != nil {
		at, err = time.Parse("2006-01-02T15:04:05", value)
	}
	if err != nil || at.Unix() == 0 || at.Year() < 1970 {
		return time.Time{}, false
	}
	return at, true
}
