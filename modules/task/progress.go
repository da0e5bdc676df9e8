package task

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// progress returns the status that task t has when its resource looks like
// target; nil is gone.
//
// It is the same for an older task of the same resource: whoever reaches a newer
// generation has reached the older one, and deletion ends all that wanted something
// else. One that is open after all that is replaced.
func progress(t *resource.Task, target resource.Stateful, now time.Time) resource.TaskStatus {
	status := t.Status
	status.Steps = slices.Clone(status.Steps)
	end := func(state resource.TaskState, message string) resource.TaskStatus {
		ended := now.UTC()
		status.State, status.Message, status.EndedAt = state, message, &ended
		return status
	}
	what := noun(t.Spec.Kind)

	if target == nil || t.Spec.TargetUID != "" && t.Spec.TargetUID != target.Metadata().UID {
		if t.Spec.Gone {
			return end(resource.TaskDone, "")
		}
		return end(resource.TaskFailed, fmt.Sprintf("The %s %s was deleted before this was done.", what, t.Spec.Target))
	}
	seen := target.State()
	for _, c := range seen.Conditions {
		// While something is taken away, what came true long ago is no step.
		if t.Spec.Gone && c.Since.Before(t.CreatedAt) {
			continue
		}
		if i := slices.IndexFunc(status.Steps, func(s resource.Condition) bool { return s.Type == c.Type }); i >= 0 {
			status.Steps[i] = c
		} else {
			status.Steps = append(status.Steps, c)
		}
	}
	switch {
	case t.Spec.Gone:
		return status
	case target.Metadata().Deleting():
		return end(resource.TaskFailed, fmt.Sprintf("The %s %s is being deleted.", what, t.Spec.Target))
	case seen.ObservedGeneration < t.Spec.Generation:
		// The controller hasn't looked yet: what it said is about an older wish.
		return status
	case seen.Phase == resource.Ready:
		return end(resource.TaskDone, "")
	}
	for _, c := range seen.Conditions {
		if c.Status == resource.False && c.Final {
			return end(resource.TaskFailed, reason(c))
		}
	}
	if seen.Phase == resource.Failed {
		for _, c := range slices.Backward(seen.Conditions) {
			if c.Status != resource.True {
				return end(resource.TaskFailed, reason(c))
			}
		}
		return end(resource.TaskFailed, fmt.Sprintf("The %s %s has failed.", what, t.Spec.Target))
	}
	return status
}

// replaced returns the status of t once the task with the key latest goes on in its
// place.
func replaced(t *resource.Task, latest string, now time.Time) resource.TaskStatus {
	status, ended := t.Status, now.UTC()
	status.State, status.EndedAt, status.ReplacedBy = resource.TaskReplaced, &ended, nameOf(latest)
	status.Message = fmt.Sprintf("Another change of the %s %s came before this one was done.", noun(t.Spec.Kind), t.Spec.Target)
	return status
}

func reason(c resource.Condition) string {
	if c.Message != "" {
		return c.Message
	}
	return strings.TrimSpace(c.Type + " is " + string(c.Status) + ". " + c.Reason)
}

// noun is the kind in a sentence: "workspaces" is a "workspace".
func noun(kind string) string { return strings.TrimSuffix(kind, "s") }
