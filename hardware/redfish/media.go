package redfish

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rackweft/rackweft/hardware"
)

// drives has what concerns virtual media.
type drives struct{ *driver }

// mediaDrive is a VirtualMedia resource (DMTF VirtualMedia 1.3): what is inserted appears as a USB drive of the server.
type mediaDrive struct {
	Path         text   `json:"@odata.id"`
	Image        text   `json:"Image"`
	Inserted     bool   `json:"Inserted"`
	MediaTypes   []text `json:"MediaTypes"`
	Verify       *bool  `json:"VerifyCertificate"` // nil: it cannot
	Certificates link   `json:"Certificates"`
	Actions      struct {
		Insert action `json:"#VirtualMedia.InsertMedia"`
		Eject  action `json:"#VirtualMedia.EjectMedia"`
	} `json:"Actions"`

	etag string
}

type action struct {
	Target text `json:"target"`
}

// full reports whether something is in the drive. iLO 4 reports it by Inserted alone, GH200's has no Image.
func (d mediaDrive) full() bool { return d.Inserted || d.Image != "" }

// insertMedia has an image in the server's CD drive. What is in it already is ejected first: iDRAC refuses otherwise. The URL
// may be a secret, which errors do not repeat.
func (r drives) insertMedia(ctx context.Context, media hardware.Media) error {
	image := media.Image
	d, err := r.cdDrive(ctx)
	if err != nil {
		return err
	}
	if media.CA != nil {
		if err := r.checkWith(ctx, d, media.CA); err != nil {
			return err
		}
	}
	if d.Inserted && string(d.Image) == image {
		return nil
	}
	if d.full() {
		if err := r.eject(ctx, d); err != nil {
			return redacted{fmt.Errorf("eject what is in it: %w", err), image}
		}
	}
	if err := r.lookedAfter(ctx, d.insertion(image), d, func(now mediaDrive) bool { return now.full() }); err != nil {
		return redacted{err, image}
	}
	return nil
}

// checkWith has the BMC check the certificate of an image's server with a CA (VirtualMedia 1.4).
func (r drives) checkWith(ctx context.Context, d mediaDrive, ca *x509.Certificate) error {
	if d.Verify == nil || d.Certificates.ID == "" {
		return fmt.Errorf("%w: its virtual CD drive cannot check an image's server with a CA", hardware.ErrUnsupported)
	}
	if err := anchors(r).addCertificate(ctx, string(d.Certificates.ID), ca); err != nil {
		return err
	}
	if *d.Verify {
		return nil
	}
	if err := r.patch(ctx, &write{path: string(d.Path), etag: d.etag, fields: map[string]any{"VerifyCertificate": true}}); err != nil {
		return err
	}
	now, err := r.readDrive(ctx, string(d.Path))
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if now.Verify == nil || !*now.Verify {
		return fmt.Errorf("%s: VerifyCertificate: %w", d.Path, hardware.ErrNotSeen)
	}
	return nil
}

// ejectMedia empties the CD drive. Another image than the one that is named stays.
func (r drives) ejectMedia(ctx context.Context, image string) error {
	d, err := r.cdDrive(ctx)
	if err != nil {
		return err
	}
	if !d.full() || image != "" && d.Image != "" && string(d.Image) != image {
		return nil
	}
	return r.eject(ctx, d)
}

func (r drives) eject(ctx context.Context, d mediaDrive) error {
	return r.lookedAfter(ctx, d.ejection(), d, func(now mediaDrive) bool { return !now.full() })
}

// insertion is the action, or a PATCH where there is none. The action has the image alone: that it is inserted and
// write-protected is what is meant without a word (DSP0268), and Supermicro's X11 refuses more. Others want more: Nokia the
// protocol, NVIDIA's DGX a user as well, of whom the web server does not know.
func (d mediaDrive) insertion(image string) *write {
	w := &write{path: string(d.Actions.Insert.Target), method: http.MethodPost, fields: map[string]any{"Image": image}, secret: image}
	if w.path == "" {
		w.path, w.etag, w.method, w.fields["Inserted"] = string(d.Path), d.etag, "", true
	}
	protocol, _, _ := strings.Cut(image, ":")
	w.has = map[string]any{"Inserted": true, "WriteProtected": true, "TransferProtocolType": strings.ToUpper(protocol), "TransferMethod": "Stream", "UserName": "none", "Password": "none"}
	w.together = []string{"UserName", "Password"}
	w.droppable = func(field string) bool { return field != "Image" }
	return w
}

// ejection is the action, with the empty body that iLO wants, or a PATCH where there is none.
func (d mediaDrive) ejection() *write {
	if at := string(d.Actions.Eject.Target); at != "" {
		return &write{path: at, method: http.MethodPost, fields: map[string]any{}}
	}
	return &write{path: string(d.Path), etag: d.etag, fields: map[string]any{"Image": nil, "Inserted": false},
		droppable: func(field string) bool { return field == "Inserted" }}
}

// lookedAfter writes, and reads the drive until it is as it ought to be. A BMC may fetch the image before it shows it, and an
// iDRAC shows what was ejected for a while.
func (r drives) lookedAfter(ctx context.Context, w *write, d mediaDrive, done func(mediaDrive) bool) error {
	err := r.patch(ctx, w)
	lost := errors.Is(err, hardware.ErrUnreachable)
	if err != nil && !lost {
		return err
	}
	for range 15 {
		now, readErr := r.readDrive(ctx, string(d.Path))
		if readErr != nil {
			return errors.Join(err, fmt.Errorf("read back: %w", readErr))
		}
		if done(now) {
			return nil
		}
		if pauseErr := r.transport.pause(ctx, 2*time.Second); pauseErr != nil {
			return pauseErr
		}
	}
	if lost {
		return err
	}
	return fmt.Errorf("%s: %w", d.Path, hardware.ErrNotSeen)
}

// cdDrive is the first drive for CDs below the system, else below its manager.
func (r drives) cdDrive(ctx context.Context) (mediaDrive, error) {
	sys, _, err := r.system(ctx)
	if err != nil {
		return mediaDrive{}, err
	}
	m, err := r.manager(ctx, sys)
	if err != nil {
		return mediaDrive{}, err
	}
	if d, err := r.firstCD(ctx, string(sys.VirtualMedia.ID)); err != nil || d.Path != "" {
		return d, err
	}
	d, err := r.firstCD(ctx, string(m.VirtualMedia.ID))
	if err != nil {
		return mediaDrive{}, err
	}
	if d.Path == "" {
		return mediaDrive{}, fmt.Errorf("%w: it has no virtual CD drive", hardware.ErrUnsupported)
	}
	if len(m.Links.Servers) > 1 {
		return mediaDrive{}, fmt.Errorf("%w: its virtual CD drive %s does not say which of its %d servers has it", hardware.ErrUnsupported, d.Path, len(m.Links.Servers))
	}
	return d, nil
}

// firstCD is the first drive of a collection that takes CDs; its path is empty when there is none.
func (r drives) firstCD(ctx context.Context, collection string) (mediaDrive, error) {
	if collection == "" {
		return mediaDrive{}, nil
	}
	paths, err := r.members(ctx, collection)
	if err != nil {
		return mediaDrive{}, ignoreMissing(err)
	}
	for _, at := range paths {
		d, err := r.readDrive(ctx, at)
		if err != nil {
			return mediaDrive{}, err
		}
		if len(d.MediaTypes) == 0 || slices.Contains(d.MediaTypes, "CD") || slices.Contains(d.MediaTypes, "DVD") {
			return d, nil
		}
	}
	return mediaDrive{}, nil
}

func (r drives) readDrive(ctx context.Context, at string) (d mediaDrive, err error) {
	d.etag, err = r.get(ctx, at, &d)
	d.Path = text(at)
	return d, err
}

// ignoreMissing drops an answer that says that there is no such resource: iDRACs link to collections that they do not have.
func ignoreMissing(err error) error {
	var no *refusal
	if errors.As(err, &no) && no.status == http.StatusNotFound {
		return nil
	}
	return err
}
