package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rackweft/rackweft/api"
	"github.com/rackweft/rackweft/cmd/weftctl/internal/terminal"
)

func (a *guestCommands) guestExportCommand() *cobra.Command {
	var e api.GuestExport
	var output, rate string
	c := &cobra.Command{
		Use:   "export NAME -o FILE|DIRECTORY",
		Short: "Copy a Guest's disks at one point in time, while it runs",
		Long: `export copies disks of a Guest at one point in time, including their Image's data: each copy is self-contained. The
Guest may keep running. When an agent (qemu-ga) answers in it, its file systems are frozen for the copy's point in
time; otherwise the copy is crash-consistent, as after a power loss, and the command says so.

The host makes the copy next to the disks, and needs space for it. -o is a file for one disk, or an existing directory,
where each disk becomes DISK.FORMAT. A file gets its name only when it is complete; an interrupted export leaves nothing.`,
		Example: `  weftctl guest export web --disk root -o web-root.qcow2
  weftctl image import web-copy disk=web-root.qcow2      # an Image, for new Guests`,
		Args: exactly(1, "NAME"), ValidArgsFunction: a.completeOne("guests"),
		RunE: func(c *cobra.Command, args []string) error {
			if output == "" {
				return usagef("give -o FILE or DIRECTORY")
			}
			if rate != "" {
				var err error
				if e.Rate, err = api.ParseQuantity(rate); err != nil {
					return usagef("--rate: %s", err)
				}
			}
			e.SetDefaults()
			if err := e.Check(); err != nil {
				return usagef("%s", err)
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := a.guestExport(c.Context(), client, args[0], e, output); err != nil {
				return fmt.Errorf("export guest/%s: %w", args[0], err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "", "the file of one disk, or a directory for all")
	f.StringVar(&e.Disk, "disk", "", "the disk. Default: all of them")
	f.StringVar(&e.Format, "format", "qcow2", "qcow2 or raw")
	f.StringVar(&rate, "rate", "", "limit of the host's copying, in bytes per second. Default: 128Mi")
	complete(c, "format", "qcow2", "raw")
	_ = c.RegisterFlagCompletionFunc("disk", func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.diskNames(c.Context(), args[0]), cobra.ShellCompDirectiveNoFileComp
	}) // the flag exists
	return c
}

func (a *guestCommands) diskNames(ctx context.Context, guest string) []string {
	client, err := a.client()
	if err != nil {
		return nil
	}
	g, err := api.Get[api.Guest](ctx, client, guest)
	if err != nil {
		return nil // a completion reports no error
	}
	var names []string
	for _, d := range g.Spec.Disks {
		names = append(names, d.Name)
	}
	return names
}

func (a *guestCommands) guestExport(ctx context.Context, client *api.Client, name string, e api.GuestExport, output string) error {
	g, err := api.Get[api.Guest](ctx, client, name)
	if err != nil {
		return err
	}
	info, err := os.Stat(output)
	directory := err == nil && info.IsDir()
	switch {
	case err == nil && !directory:
		return fmt.Errorf("%s exists already: move it away", output)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case !directory && e.Disk == "" && len(g.Spec.Disks) > 1:
		return fmt.Errorf("it has %d disks: give --disk, or an existing directory as -o", len(g.Spec.Disks))
	}
	stream, err := client.GuestExport(ctx, name, e)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	r := exportReader{app: a.app, region: a.err.Region(), in: bufio.NewReaderSize(stream, 64<<10), path: func(d *api.ExportDisk) string {
		if directory {
			return filepath.Join(output, d.Name+"."+d.Format)
		}
		return output
	}}
	return r.receive()
}

// exportReader writes the received export to files, which get their names when it is complete.
type exportReader struct {
	app   *app
	in    *bufio.Reader
	path  func(*api.ExportDisk) string
	files []*exportFile

	region *terminal.Region // of the progress
}

type exportFile struct {
	*os.File
	disk api.ExportDisk
	path string // that it will have
}

func (r *exportReader) receive() error {
	err := r.read()
	if r.app.err.Live() {
		r.region.Draw(nil)
	}
	for _, f := range r.files {
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	for _, f := range r.files {
		if err == nil {
			err = os.Link(f.Name(), f.path) // replaces nothing
		}
		_ = os.Remove(f.Name())
		if err == nil {
			err = r.app.printf("%s: disk %s, %s\n", f.path, f.disk.Name, worthOf(f.disk.Consistency))
		}
	}
	return err
}

// worthOf describes a consistency for people.
func worthOf(c api.Consistency) string {
	switch c {
	case api.ConsistentFrozen:
		return "its file systems frozen"
	case api.ConsistentStopped:
		return "of a stopped Guest"
	}
	return "crash-consistent"
}

// maxExportLine is more than an ExportLine has.
const maxExportLine = 8 << 10

func (r *exportReader) read() error {
	for {
		raw, err := r.in.ReadSlice('\n')
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("interrupted: nothing is kept; the host or bootd has disconnected, see weftctl events")
		}
		if err != nil {
			return fmt.Errorf("interrupted: nothing is kept: %w", err)
		}
		if len(raw) > maxExportLine {
			return errors.New("invalid export")
		}
		line, err := api.ReadExportLine(raw)
		if err != nil {
			return err
		}
		switch {
		case line.Fault != "":
			return errors.New(terminal.Clean(line.Fault))
		case line.End && len(r.files) == 0:
			return errors.New("invalid export: it has no disks")
		case line.End:
			return nil
		case line.Progress != "":
			if r.app.err.Live() {
				r.region.Draw([]string{terminal.Clean(line.Progress)})
			}
		case line.Disk != nil:
			err = r.begin(line.Disk)
		case line.Data != nil:
			err = r.take(line.Data)
		}
		if err != nil {
			return err
		}
	}
}

func (r *exportReader) begin(d *api.ExportDisk) error {
	path := r.path(d)
	for _, f := range r.files {
		if f.path == path {
			return fmt.Errorf("disks %s and %s would both be %s: give an existing directory as -o", f.disk.Name, d.Name, path)
		}
	}
	f, err := os.OpenFile(path+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	r.files = append(r.files, &exportFile{f, *d, path})
	return f.Truncate(d.Size)
}

func (r *exportReader) take(d *api.ExportData) error {
	if len(r.files) == 0 {
		return errors.New("invalid export: data without a disk")
	}
	f := r.files[len(r.files)-1]
	if d.Offset > f.disk.Size-int64(d.Length) {
		return fmt.Errorf("invalid export: %d bytes at %d of %d", d.Length, d.Offset, f.disk.Size)
	}
	n, err := io.Copy(io.NewOffsetWriter(f, d.Offset), io.LimitReader(r.in, int64(d.Length)))
	if err == nil && n < int64(d.Length) {
		err = errors.New("interrupted: nothing is kept")
	}
	return err
}
