package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// Move calls commit, which writes that a local volume shall be at Spec.Place, with what else is to be
// written; now was given its way there. "" stays where it is, and gives up what was begun. Nobody may use it: the
// caller has looked. An *access.Refusal says why it can't be.
func (c *Controller) Move(ctx context.Context, now *resource.Volume, commit func(...store.Op) error) error {
	done, err := c.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	ops, err := c.depart(ctx, now)
	var short *shortError
	if errors.As(err, &short) {
		return &access.Refusal{Reason: access.ErrExists, Text: "The volume can't be moved: " + short.Error() + "."}
	}
	if err != nil {
		return err
	}
	return commit(ops...)
}

// depart has a volume begin its way. The caller is alone.
func (c *Controller) depart(ctx context.Context, now *resource.Volume) ([]store.Op, error) {
	s := &now.Status
	s.Conditions = slices.Clone(s.Conditions) // now is a copy of what was read, and shares this
	if now.Spec.Place == "" {
		if s.Moving == nil || s.Moving.Stage != resource.MoveCopying {
			return nil, &shortError{"it is not on its way"}
		}
		giveUp(s)
		return nil, nil
	}
	host, err := c.host(ctx, now)
	if err != nil {
		return nil, err
	}
	ws, err := store.Of[resource.Workspace](c.cfg.Store).Get(ctx, now.WorkspaceKey())
	if err != nil {
		return nil, err
	}
	what, err := c.neededFor(ctx, now.WorkspaceKey(), now.UID)
	switch {
	case err != nil:
		return nil, err
	case now.Spec.Class != resource.LocalVolume:
		return nil, &shortError{"only volumes of class " + resource.LocalVolume + " are on one host"}
	case s.Moving != nil:
		return nil, &shortError{"it is on its way already"}
	case !now.Made():
		return nil, &shortError{"it is not made yet"}
	case host == nil:
		return nil, &shortError{"the host that it was on is not part of the platform any more, and what it held is lost with it"}
	case host.Status.Phase != resource.Ready:
		return nil, &shortError{"the host that it is on does not report"}
	case what != "":
		return nil, &shortError{what + " is being made from it"}
	case now.Spec.Place == wire.Place(ws.UID, host.UID):
		return nil, &shortError{"it is there"}
	}
	at, err := c.choose(ctx, now, []string{now.Spec.Place})
	if err != nil {
		return nil, err
	}
	for _, n := range []*resource.Node{host, at.host} {
		if !slices.Contains(n.Status.Drivers, wire.MoveDriver) {
			return nil, &shortError{"one of the two hosts can't move volumes yet: the operator has to upgrade it first"}
		}
	}
	s.Moving = &resource.VolumeMove{ID: rand.Text(), Stage: resource.MoveCopying,
		Node: at.host.Name, NodeUID: at.host.UID, Pool: at.pool, FirstUID: at.firstUID}
	s.Phase = resource.Updating
	s.Conditions.Set(moving("its host puts it away, to have it copied"))
	return c.stays(at), nil
}

func moving(text string) resource.Condition {
	return resource.Condition{Type: resource.VolumeReady, Status: resource.False, Reason: "Moving", Message: text}
}

// giveUp has a volume stay where it is: the other host takes away what it has of it.
func giveUp(s *resource.VolumeStatus) {
	m := *s.Moving
	m.Stage, m.Followed = resource.MoveRemoving, false
	s.Moving = &m
	s.Conditions.Set(moving("it stays where it was: its host brings it back"))
}

// move takes the next step for a volume that moves. host is the one that it is on, nil if that is no more.
func (c *Controller) move(ctx context.Context, v *resource.Volume, host *resource.Node) error {
	m := v.Status.Moving
	other, err := c.nodeOf(ctx, m.Node, m.NodeUID)
	if err != nil {
		return err
	}
	err = store.Of[resource.Volume](c.cfg.Store).Observe(ctx, v, func(now *resource.Volume) {
		if now.Status.Moving.Step() == m.Step() && now.Status.NodeUID == v.Status.NodeUID {
			stepMove(now, host, other)
		}
	})
	failpoint.Reach("storage/move/stepped")
	return err
}

// stepMove computes the next step from what was seen. Each is taken by one commit; hosts are told by it what to do,
// and what they said before counts no more.
func stepMove(v *resource.Volume, host, other *resource.Node) {
	s := &v.Status
	m := s.Moving
	gone := host == nil || host.LostPool(s.Pool)
	nowhere := other == nil || other.LostPool(m.Pool)
	switch {
	case m.Stage == resource.MoveCopying && gone && m.Copied && !nowhere:
		// The former host is lost, and all of it is on the other one.
		exchange(s, resource.MoveSwitched, m.Followed)
		s.Conditions.Set(moving("the host that it was on is removed, and all of it was copied: its new host brings it back"))
		host = other
	// Where nothing is left to copy from, the other host keeps what it has until the volume is deleted: it may be an older copy, of
	// when it was on that host before, see volume.Host.
	case m.Stage == resource.MoveCopying && (nowhere || other.Deleting() && !gone):
		giveUp(s)
		if !gone {
			s.Conditions.Set(moving("the host or disk that it was to go to is removed, so it stays where it was: its host " +
				"brings it back"))
		}
	case m.Stage == resource.MoveCopying && m.Away && m.Copied:
		// From here on the other one is the volume.
		exchange(s, resource.MoveSwitched, m.Followed)
		s.Conditions.Set(moving("all of it is copied: its new host brings it back"))
	case m.Stage == resource.MoveSwitched && gone && !nowhere:
		// The new host, or its disk, is lost, before anybody has written there: what it was before is on the former one.
		exchange(s, resource.MoveRemoving, false)
		s.Conditions.Set(moving("the host that it went to is removed: its former one brings it back"))
	case m.Stage == resource.MoveSwitched && s.Conditions.Is(resource.VolumeReady):
		m.Stage = resource.MoveRemoving
	case m.Stage == resource.MoveRemoving && (m.Removed || other == nil) && (m.Followed || host == nil):
		s.Moving = nil
	}
	if s.Moving == nil {
		settle(v, host)
		return
	}
	// What was asked for is done once it is on one host alone.
	asked := s.ObservedGeneration
	settle(v, host)
	if s.Phase != resource.Failed {
		s.ObservedGeneration = asked
	}
	if s.Phase == resource.Degraded && s.Moving.Stage != resource.MoveRemoving {
		s.Phase = resource.Updating
	}
	if other != nil && other.Silent() && s.Moving.Stage == resource.MoveCopying {
		s.Conditions.Set(moving("the host that it goes to does not report: it goes on with that"))
	}
}

// exchange makes the other host of a volume that moves the one that it is on.
func exchange(s *resource.VolumeStatus, stage resource.MoveStage, followed bool) {
	m := s.Moving
	s.Moving = &resource.VolumeMove{ID: m.ID, Stage: stage, Followed: followed,
		Node: s.Node, NodeUID: s.NodeUID, Pool: s.Pool, FirstUID: s.FirstUID}
	s.Node, s.NodeUID, s.Pool, s.FirstUID = m.Node, m.NodeUID, m.Pool, m.FirstUID
}

// endMove has the other host take away what it has of a volume that is deleted, and says whether it has nothing.
func endMove[T stored](ctx context.Context, c *Controller, kind store.Kind[T], v T) (over bool, err error) {
	m := v.Stored().Moving
	if m == nil {
		return true, nil
	}
	other, err := c.nodeOf(ctx, m.Node, m.NodeUID)
	if err != nil {
		return false, err
	}
	return false, kind.Observe(ctx, v, func(now T) {
		s := now.Stored()
		switch {
		case s.Moving.Step() != m.Step():
		case m.Removed || other == nil:
			s.Moving = nil
		default:
			s.Moving.Stage = resource.MoveRemoving
			s.Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.False, Reason: "Removing",
				Message: "it was on its way to another host: that one takes away first what it has of it"})
		}
	})
}

// Follower has the clusters of workspaces know on which host a volume that moves can be had: pods that use it
// wait for that one.
type Follower struct {
	Log      *slog.Logger
	Store    *store.Store
	Volumes  *store.Cache[*resource.Volume]
	Clusters Clusters
	// Registerer takes the metrics of the work queue. May be nil.
	Registerer prometheus.Registerer
}

// Run follows until ctx is done. The cache must be complete before.
func (f *Follower) Run(ctx context.Context, ready func()) error {
	loop := reconcile.New(reconcile.Config[string]{
		Name:       "volume-follower",
		Log:        f.Log,
		Reconcile:  f.follow,
		Tenant:     resource.OfWorkspace.Parent,
		Share:      1, // a cluster that hangs holds one
		Workers:    workers,
		Timeout:    30 * time.Second,
		Backoff:    time.Second,
		MaxBackoff: time.Minute,
		Registerer: f.Registerer,
	})
	f.Volumes.OnChangeOf(func(v *resource.Volume) any { return f.due(v) }, loop.Add)
	ready()
	loop.Run(ctx)
	return nil
}

// due is the UID of the node that a volume's cluster is to be told, "" for nothing.
func (f *Follower) due(v *resource.Volume) string {
	if m := v.Status.Moving; m != nil && !m.Followed && !v.Deleting() {
		return v.Status.Home()
	}
	return ""
}

func (f *Follower) follow(ctx context.Context, key string) (_ time.Duration, err error) {
	volumes := store.Of[resource.Volume](f.Store)
	v, err := volumes.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	home := ""
	if err == nil {
		home = f.due(v)
	}
	if home == "" {
		return 0, err
	}
	ws, err := store.Of[resource.Workspace](f.Store).Get(ctx, v.WorkspaceKey())
	if err != nil {
		return 0, err
	}
	client, err := f.Clusters.Client(ctx, ws.Key())
	if err == nil {
		err = again(func() error {
			return moveAffinity(ctx, client.CoreV1().PersistentVolumes(), v, wire.Place(ws.UID, home))
		})
	}
	if err != nil {
		return 0, err
	}
	_, err = volumes.Modify(ctx, key, func(now *resource.Volume) error {
		if now.UID != v.UID || f.due(now) != home {
			return store.ErrSkip // which is told anew
		}
		now.Status.Moving.Followed = true
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return 0, err
}

// moveAffinity has a volume's PersistentVolume, if there is one, name a place. The plane lets it change
// (its gate MutablePVNodeAffinity).
func moveAffinity(ctx context.Context, volumes persistentVolumes, v *resource.Volume, place string) error {
	pv, err := volumes.Get(ctx, v.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && !isOf(pv, v.UID) {
		return nil
	}
	if err != nil {
		return err
	}
	want := affinityOf(place)
	if reflect.DeepEqual(pv.Spec.NodeAffinity, want) {
		return nil
	}
	pv.Spec.NodeAffinity = want
	_, err = volumes.Update(ctx, pv, metav1.UpdateOptions{})
	return err
}

// Unused refuses, naming the pods, while some use the claim that has a volume, or if that can't be found out.
func (c Claims) Unused(ctx context.Context, ws *resource.Workspace, v *resource.Volume) error {
	if v.Spec.Claim == "" {
		return nil
	}
	client, err := c.Clusters.Client(ctx, ws.Key())
	if err != nil {
		return said(err)
	}
	namespace, claim, _ := strings.Cut(v.Spec.Claim, "/")
	return said(unused(ctx, client, namespace, claim))
}
