package api

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Column is one property of the objects of a kind, as shown in tables.
type Column struct {
	Title string
	Wide  bool                // only in a wide table
	Value func(Object) string // "" when unknown
}

func of[T Object](title string, value func(T) string) Column {
	return Column{Title: title, Value: func(o Object) string { return value(o.(T)) }}
}

func wide(c Column) Column {
	c.Wide = true
	return c
}

// ReadyColumn shows the condition Ready of a kind that has one: yes, or why
// not.
func ReadyColumn() Column {
	return Column{Title: "READY", Value: func(o Object) string {
		c := ConditionsOf(o).Get(CondReady)
		switch {
		case c == nil:
			return ""
		case c.Status == True:
			return "yes"
		}
		return "no: " + c.Reason
	}}
}

func join[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i := range list {
		words[i] = list[i].String()
	}
	return strings.Join(words, ",")
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func written(v interface{ MarshalText() ([]byte, error) }) string {
	raw, err := v.MarshalText()
	if err != nil {
		return ""
	}
	return string(raw)
}
