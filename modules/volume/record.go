package volume

import "github.com/multipaas/multipaas/appliance/atomicfile"

// changeRecord changes what is written down of a volume as it is now: an import that ends has read it minutes ago, and who
// makes the volume as it shall be may be at it too.
func (h *Host) changeRecord(p place, change func(*record)) error {
	h.recording.Lock()
	defer h.recording.Unlock()
	rec, err := p.record()
	if err != nil {
		return err
	}
	change(&rec)
	return atomicfile.WriteJSON(p.at(recordName), rec)
}
