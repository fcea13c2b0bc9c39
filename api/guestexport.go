package api

import (
	"encoding/json"
	"fmt"
)

// GuestExport requests a point-in-time copy of a Guest's disks.
type GuestExport struct {
	Disk   string   `json:"disk,omitzero" doc:"Name of one disk. Default: all."`
	Format string   `json:"format,omitzero" enum:"qcow2,raw" doc:"Format of the files. Default: qcow2."`
	Rate   Quantity `json:"rate,omitzero" doc:"Bytes per second that are copied on the host at most; 128Mi."`
}

// ExportRate is the default rate of a GuestExport, in bytes per second.
const ExportRate = 128 << 20

// SetDefaults sets the defaults.
func (e *GuestExport) SetDefaults() {
	if e.Format == "" {
		e.Format = "qcow2"
	}
	if e.Rate.Value() == 0 {
		e.Rate = Bytes(ExportRate)
	}
}

// Check returns an error for an export that no host can do.
func (e GuestExport) Check() error {
	if e.Format != "qcow2" && e.Format != "raw" {
		return fmt.Errorf("invalid format %q: want qcow2 or raw", e.Format)
	}
	if e.Rate.Value() < 1<<20 {
		return fmt.Errorf("invalid rate: want at least 1Mi bytes per second")
	}
	if e.Disk == "" {
		return nil
	}
	return ValidateName(e.Disk)
}

// An export is a stream of lines, each an ExportLine in JSON. Data is followed
// by that many bytes. A stream without a last line with End or Fault was
// truncated.

// ExportLine is one line of an export; exactly one of its fields is set.
type ExportLine struct {
	Progress string      `json:"progress,omitzero" doc:"How far the host is with its copy."`
	Disk     *ExportDisk `json:"disk,omitempty" doc:"What follows is of this disk."`
	Data     *ExportData `json:"data,omitempty" doc:"The bytes follow the line. What is in no Data is zero."`
	Fault    string      `json:"fault,omitzero" doc:"Why it ended early."`
	End      bool        `json:"end,omitzero" doc:"All of it has come."`
}

// ExportDisk is a disk's file in an export.
type ExportDisk struct {
	Name        string      `json:"name"`
	Format      string      `json:"format" enum:"qcow2,raw"`
	Size        int64       `json:"size" doc:"Of the file, in bytes."`
	Consistency Consistency `json:"consistency" enum:"Frozen,Crash,Stopped"`
}

// ExportData is a part of a disk's file.
type ExportData struct {
	Offset int64 `json:"offset"`
	Length int   `json:"length"`
}

// MaxExportData is the longest Data.
const MaxExportData = 1 << 20

// ReadExportLine decodes and validates a line.
func ReadExportLine(raw []byte) (ExportLine, error) {
	var l ExportLine
	if err := json.Unmarshal(raw, &l); err != nil {
		return l, fmt.Errorf("a line of the export: %w", err)
	}
	if d := l.Disk; d != nil && (ValidateName(d.Name) != nil || d.Size < 0 || d.Format != "qcow2" && d.Format != "raw") {
		return l, fmt.Errorf("the export has a disk %q of %d bytes, in format %q", d.Name, d.Size, d.Format)
	}
	if d := l.Data; d != nil && (d.Offset < 0 || d.Length < 1 || d.Length > MaxExportData) {
		return l, fmt.Errorf("the export has %d bytes at %d", d.Length, d.Offset)
	}
	return l, nil
}
