package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
)

// A value of the store is a JSON object whose last field is a checksum of its key and the rest: etcd's database
// has none, so that a flipped bit would become part of an object. Readers of the JSON may ignore it.
const (
	sumField = `"sum":"`
	sumSize  = len(`,`) + len(sumField) + 8 + len(`"}`)
)

func sumOf(key string, body []byte) []byte {
	c := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, _ = c.Write([]byte(key + "\x00"))
	_, _ = c.Write(body)
	return fmt.Appendf(nil, `,%s%08x"}`, sumField, c.Sum32())
}

// summed adds a checksum to a JSON object that is not empty.
func summed(key string, object []byte) string {
	body, isObject := bytes.CutSuffix(object, []byte("}"))
	if !isObject || len(body) < 2 {
		return string(object)
	}
	return string(body) + string(sumOf(key, body))
}

var errSum = errors.New("its checksum is wrong")

// opened checks the checksum of a value, if it has one, and returns the value without it.
func opened(key string, value []byte) ([]byte, error) {
	if len(value) < sumSize {
		return value, nil
	}
	body, sum := value[:len(value)-sumSize], value[len(value)-sumSize:]
	if !bytes.Contains(sum, []byte(sumField)) && !looksSummed(sum) {
		return value, nil
	}
	if !bytes.Equal(sum, sumOf(key, body)) {
		return nil, fmt.Errorf("%s is damaged: %w", key, errSum)
	}
	return append(bytes.Clone(body), '}'), nil
}

// looksSummed reports whether a value ends with a damaged checksum: most of its constant bytes are present.
func looksSummed(sum []byte) bool {
	want, same := `,`+sumField, 0
	for i := range len(want) {
		if sum[i] == want[i] {
			same++
		}
	}
	return same >= len(want)-1
}
