package server

import (
	"net/http"
	"strconv"
)

// backupTrailer says why a backup was interrupted: its status was sent long before.
const backupTrailer = "Rackweft-Error"

func (h *upkeep) backupRoutes() []route {
	return []route{
		{method: "GET", path: "/v1/backup", tag: "service", role: admin, local: true, stream: true, audited: true,
			summary: "The complete state of bootd, with every key in clear: for bootd backup, which encrypts it. On bootd's unix socket only",
			query:   []parameter{{"blobs", "with the files of Images", "boolean"}}, outType: "application/x-tar", handle: h.sendBackup},
	}
}

func (h *upkeep) sendBackup(c *call) error {
	blobs, err := c.flag("blobs")
	if err != nil {
		return err
	}
	if h.backup == nil {
		return problem(http.StatusNotFound, "this bootd makes no backups")
	}
	ctx, cancel := h.streams.lasting(c)
	defer cancel()
	c.w.Header().Set("Content-Type", "application/x-tar")
	c.w.Header().Set("Cache-Control", "no-store")
	c.changed, c.status = true, http.StatusOK // the audit must record it
	c.w.WriteHeader(http.StatusOK)
	if err := c.rc.Flush(); err != nil { // a short answer that is not flushed has no trailer
		return err
	}
	if err := h.backup(ctx, c.w, blobs); err != nil {
		h.log.Error("a backup was interrupted", "error", err)
		c.w.Header().Set(http.TrailerPrefix+backupTrailer, strconv.QuoteToASCII(err.Error()))
		return err
	}
	return nil
}
