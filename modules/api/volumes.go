package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// VolumePatch is the body of volumes.patch: what is left out stays.
type VolumePatch struct {
	Spec struct {
		SizeBytes *int64 `json:"sizeBytes,omitempty" minimum:"0" doc:"What it shall hold; not less than it does"`
	} `json:"spec"`
}

const (
	volumeStep = 1 << 20 // sizes are multiples of it: file systems in files want whole blocks

	// claimedPrefix begins the names of volumes that were made for claims.
	claimedPrefix = "pvc-"
)

func (a *API) volumeOperations() {
	volumes := &collection[resource.Volume, *resource.Volume]{
		api:     a,
		noun:    "volume",
		path:    workspacesPath + "/{workspace}/volumes",
		example: "db",
		fresh: func(place, name string) *resource.Volume {
			return &resource.Volume{
				InWorkspace: resource.NewInWorkspace(place, name),
				Status:      resource.VolumeStatus{State: resource.State{Phase: resource.Pending}},
			}
		},
		// Which claim has it is not for the caller to say.
		adopt: func(now, body *resource.Volume) {
			now.Spec.Class, now.Spec.SizeBytes, now.Spec.Source = body.Spec.Class, body.Spec.SizeBytes, body.Spec.Source
			now.Spec.Replicas, now.Spec.Arbiter, now.Spec.Encrypted = body.Spec.Replicas, body.Spec.Arbiter, body.Spec.Encrypted
			now.Spec.Import, now.Spec.Block = body.Spec.Import, body.Spec.Block
		},
		complete: completeVolume,
		check: func(ctx context.Context, now, was *resource.Volume) error {
			if was == nil && now.Spec.Source != nil {
				if err := a.findSource(ctx, now); err != nil {
					return err
				}
			}
			return checkVolume(ctx, now, was)
		},
		within: func(ctx context.Context, now, was *resource.Volume, commit func(...store.Op) error) error {
			if was == nil && now.Spec.Source != nil {
				return a.cfg.Volumes.Copy(ctx, now, commit)
			}
			if was == nil { // its host is chosen later
				if err := a.cfg.Volumes.CheckEncryption(now); err != nil {
					return err
				}
				return commit()
			}
			if now.Spec.Place != was.Spec.Place {
				return a.cfg.Volumes.Move(ctx, now, commit)
			}
			if more := now.Spec.SizeBytes - was.Spec.SizeBytes; more > 0 {
				return a.cfg.Volumes.Grow(ctx, was, more, func() error { return commit() })
			}
			return commit()
		},
		verb: func(now, was *resource.Volume) string {
			switch {
			case now.Spec.Place != was.Spec.Place:
				return "move"
			case now.Spec.Claim == was.Spec.Claim:
				return "resize"
			case now.Spec.Claim == "":
				return "unbind"
			}
			return "bind"
		},
		show: a.showVolumes,
	}
	volumes.list("The volumes of a workspace")
	volumes.get("One volume")
	volumes.put("Make a volume, or make it larger")
	patch(volumes, "Make a volume larger", func(now *resource.Volume, body VolumePatch) {
		set(&now.Spec.SizeBytes, body.Spec.SizeBytes)
	})
	add(a, volumes.operation("delete", http.MethodDelete, "Put a volume into the trash, or delete it with all data in it"),
		func(ctx context.Context, in *struct {
			Place
			Match
			Purge bool `query:"purge" doc:"Delete it at once, with all data in it"`
		}) (*Output[resource.Accepted[*resource.Volume]], error) {
			var obj *resource.Volume
			var task string
			err := volumes.retry(ctx, in.Place, in.Match, func(was *resource.Volume) (err error) {
				obj = was
				if !was.Deleting() {
					if err := a.keepVolume(ctx, was); err != nil {
						return err
					}
					if done, err := a.toTrash(ctx, was, in.Purge); done || err != nil {
						return err
					}
				}
				task, err = markDeleted(ctx, a, volumes.kind(), "volume.delete", was)
				return err
			})
			if err != nil {
				return nil, err
			}
			return accepted(obj, task), volumes.shown(ctx, obj)
		})
	a.bindOperations(volumes)
	a.moveOperation(volumes)
	a.scrubOperation(volumes)
	a.importOperations(volumes)
}

// completeVolume takes a class that is left out from what is there, or the default, and
// rounds a new size up.
func completeVolume(now, was *resource.Volume) {
	from := resource.VolumeSpec{Class: resource.LocalVolume}
	if was != nil {
		from = was.Spec
	}
	spec := &now.Spec
	if spec.Source != nil {
		spec.Source = new(*spec.Source) // a change begins with what is stored, and shares this
		spec.Source.UID = ""            // not the caller's to say
		if from.Source != nil {
			spec.Source.UID = from.Source.UID
		}
	}
	if from.Source != nil && (spec.Source == nil || *spec.Source == *from.Source) {
		spec.Source = from.Source
	}
	if was != nil || spec.Source == nil { // a copy's is that of what it is made from
		spec.Class = cmp.Or(spec.Class, from.Class)
	}
	spec.Replicas, spec.Arbiter = cmp.Or(spec.Replicas, from.Replicas), spec.Arbiter || from.Arbiter
	spec.Encrypted, spec.Import = spec.Encrypted || from.Encrypted, spec.Import || from.Import
	spec.Block = spec.Block || from.Block
	if spec.SizeBytes != from.SizeBytes && spec.SizeBytes <= resource.MaxVolumeBytes {
		spec.SizeBytes = (spec.SizeBytes + volumeStep - 1) / volumeStep * volumeStep
	}
}

func checkVolume(_ context.Context, now, was *resource.Volume) error {
	size, least, most := now.Spec.SizeBytes, int64(resource.MinVolumeBytes), int64(resource.MaxVolumeBytes)
	text := resource.Bytes.Text
	wrong := func(remedy, format string, args ...any) error {
		return invalid("body.spec.sizeBytes", fmt.Sprintf(format, args...), remedy)
	}
	why, remedy := now.Spec.CheckCopies()
	switch {
	case was == nil && strings.HasPrefix(now.Name, claimedPrefix):
		return invalid("path.volume", "names that begin with "+claimedPrefix+" are of volumes that were made for claims",
			"Choose another name.")
	case was == nil && now.Spec.Class != resource.LocalVolume && now.Spec.Class != resource.SharedVolume:
		return invalid("body.spec.class", fmt.Sprintf("%q is no class of volumes", short(now.Spec.Class)),
			"There are "+resource.LocalVolume+" and "+resource.SharedVolume+".")
	case was != nil && now.Spec.Class != was.Spec.Class:
		return invalid("body.spec.class", "can't be changed: the volume is "+was.Spec.Class,
			"Leave it out, or make another volume and copy the data.")
	case was != nil && (now.Spec.Replicas != was.Spec.Replicas || now.Spec.Arbiter != was.Spec.Arbiter):
		return invalid("body.spec.replicas", "how many copies there are can't be changed",
			"Leave it out, or make another volume and copy the data.")
	case was != nil && now.Spec.Encrypted != was.Spec.Encrypted:
		return invalid("body.spec.encrypted", "can't be changed: what is on the disk would stay there as it is",
			"Leave it out, or make another volume and copy the data.")
	case was != nil && now.Spec.Import != was.Spec.Import:
		return invalid("body.spec.import", "can't be changed: the volume is there", "Import into a new volume.")
	case was != nil && now.Spec.Block != was.Spec.Block:
		return invalid("body.spec.block", "can't be changed: what is in it would be lost", "Make another volume.")
	case now.Spec.Block && now.Spec.Class != resource.LocalVolume:
		return invalid("body.spec.block", "a "+now.Spec.Class+" volume has a file system",
			"Use class "+resource.LocalVolume+", or leave it out.")
	case now.Spec.Block && now.Spec.Encrypted:
		return invalid("body.spec.block", "an encrypted volume has a file system", "Leave one of the two out.")
	case now.Spec.Block && now.Spec.Import:
		return invalid("body.spec.block", "a file has files and folders, and raw blocks have none", "Leave it out.")
	case now.Spec.Import && now.Spec.Source != nil:
		return invalid("body.spec.import", "a volume is made from a file, or from a snapshot or volume", "Leave one of them out.")
	case why != "":
		return invalid("body.spec.replicas", why, remedy)
	case was != nil && now.Spec.Source != was.Spec.Source:
		return invalid("body.spec.source", "can't be changed", "Leave it out, or make another volume.")
	case size < least:
		return wrong("Ask for more.", "%s is too small: a volume has at least %s", text(size), text(least))
	case size > most:
		return wrong("Ask for less.", "%s is too large: a volume has at most %s", text(size), text(most))
	case was == nil:
	case size < was.Spec.SizeBytes:
		return wrong("Make a smaller one, copy what you need, and delete this one.",
			"%s is less than the volume has, %s: it can't shrink", text(size), text(was.Spec.SizeBytes))
	case size > was.Spec.SizeBytes && was.Spec.Claim != "":
		namespace, claim, _ := strings.Cut(was.Spec.Claim, "/")
		return conflict("in-use", fmt.Sprintf("The claim %s has the volume, and says how large it is.", was.Spec.Claim),
			fmt.Sprintf("Let the claim ask for more, and the volume grows: set spec.resources.requests.storage with "+
				"`kubectl -n %s edit pvc %s`.", namespace, claim))
	}
	return nil
}

// askUsers is how long it is waited for a cluster that is asked which pods use a claim.
const askUsers = 2 * time.Second

// keepVolume names what holds a volume, and how to let go.
func (a *API) keepVolume(ctx context.Context, v *resource.Volume) error {
	if v.Spec.Claim == "" {
		return nil
	}
	remedy := "Let go of it first: `mp volumes unbind " + v.Name + "`."
	if v.Spec.Provisioned {
		namespace, claim, _ := strings.Cut(v.Spec.Claim, "/")
		remedy = fmt.Sprintf("Delete the claim, and the volume goes with it, unless its class retains it: "+
			"`mp pvc delete %s --namespace %s`. "+
			"If there is no such claim any more: `mp volumes unbind %s`.", claim, namespace, v.Name)
	}
	text := fmt.Sprintf("The claim %s has the volume.", v.Spec.Claim)
	// Which pods use it helps, and is known where the cluster answers.
	ask, cancel := context.WithTimeout(ctx, askUsers)
	defer cancel()
	if ws, err := store.Of[resource.Workspace](a.store).Get(ask, v.WorkspaceKey()); err == nil {
		if pods, err := a.cfg.Claims.Users(ask, ws, a.id.KubeUser(who(ctx), ws), v); err == nil && len(pods) > 0 {
			namespace, _, _ := strings.Cut(v.Spec.Claim, "/")
			text += fmt.Sprintf(" It is in use in namespace %s by: %s.", namespace, strings.Join(pods, ", "))
		}
	}
	return conflict("in-use", text, remedy)
}

// showVolumes names the host that a volume is on only to those who may know it.
func (a *API) showVolumes(ctx context.Context, volumes ...*resource.Volume) error {
	if a.seesHosts(ctx) {
		return nil
	}
	for _, v := range volumes {
		v.Status.HideHosts()
	}
	return nil
}
