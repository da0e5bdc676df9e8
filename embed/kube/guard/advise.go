package guard

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/apis/apps"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// What the platform writes itself, as modules/apps and embed/manifests name it.
const (
	labelManager = "app.kubernetes.io/managed-by"
	manager      = "multipaas"
)

// advise warns who writes what is allowed and won't do what he means it to. Nobody
// is refused here. The platform and controllers of the cluster read no warnings.
func (g *Guard) advise(ctx context.Context, a admission.Attributes) {
	who := a.GetUserInfo()
	if a.GetSubresource() != "" || who == nil || strings.HasPrefix(who.GetName(), "system:") || g.platform(who) {
		return
	}
	if text := adviceOn(a); text != "" {
		warning.AddWarning(ctx, "", text)
	}
}

func adviceOn(a admission.Attributes) string {
	obj := a.GetObject()
	if spec := podSpecOf(obj); spec != nil && spec.SecurityContext != nil &&
		spec.SecurityContext.HostUsers != nil && !*spec.SecurityContext.HostUsers {
		return "hostUsers: false asks for users of the pod's own, and machines have none to give: " +
			"on a machine that lives in a user namespace itself the pod does not start. Leave it out: " +
			"root in a pod is nobody on the host here anyway"
	}
	if a.GetOperation() != admission.Update {
		return ""
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return ""
	}
	switch obj.(type) {
	case *apps.Deployment, *api.Service:
		if m.GetLabels()[labelManager] == manager {
			return fmt.Sprintf("the platform runs this for its app %s and puts back what it has set itself: "+
				"change the app with `mp apps deploy` or `mp apps scale`; `kubectl scale` works too", m.GetName())
		}
	case *api.ConfigMap:
		if a.GetNamespace() == metav1.NamespaceSystem && m.GetName() == "coredns" {
			return "the platform writes this ConfigMap again, at the latest when the workspace is scaled: what is changed here " +
				"is lost then. Put it into the ConfigMap coredns-custom beside it, with keys that end in .server or .override"
		}
	}
	return ""
}
