// Package guard is the part of a workspace's API server that its tenant, who is
// cluster-admin in it, can't switch off: it keeps his pods from the machine
// they run on, because machines of several tenants share one kernel.
//
// It promises, while the workspace's level is not "privileged":
//   - no pod is created or changed to one that breaks the Pod Security Standard
//     of that level, whatever the labels of its namespace say;
//   - no pod and no PersistentVolume brings a volume that reaches for files or
//     devices of the machine;
//   - nobody poses as the platform: neither by impersonation nor by a
//     certificate of the cluster's own signers;
//   - nobody answers for the API server: kubelets run what "pods" says, and
//     the signers sign what "certificatesigningrequests" says, so the API
//     groups of Kubernetes itself are never handed on to a tenant's server.
//
// And whatever the level: who works in a namespace as a developer acts as no service
// account that may do more than he may (see developers.go); nothing is written that the datastore has no room
// for, but deleting goes on; and a machine that was taken away is not heard any
// more, whatever certificates of its are still good (see machines.go).
//
// The level stands in a file that is read at every check, so that lifting it
// needs no restart. A file that is missing or damaged means "baseline".
//
// Parties: package plane registers the plugin and the filter; embed/plane of
// the main module writes the file. Only package plane imports it.
package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	certificates "k8s.io/kubernetes/pkg/apis/certificates"
	api "k8s.io/kubernetes/pkg/apis/core"
	corev1conversion "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/storage"
	psaapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/multipaas/multipaas/embed/kube/budget"
	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// PluginName is the name of the plugin among the API server's.
const PluginName = "MultipaasGuard"

// remedy ends every refusal that a lifted level would not have made.
const remedy = "ask a sysadmin of the platform to lift the pod security of this workspace if it needs this"

// Config is what a Guard needs to know.
type Config struct {
	// LevelFile holds one word: privileged, baseline or restricted.
	LevelFile string `json:"levelFile"`
	// MachinesFile holds the UIDs of the machines that may speak, as a JSON array.
	MachinesFile string `json:"machinesFile"`
	// PlatformUser is the name in the platform's own client certificate. The
	// platform may make any PersistentVolume.
	PlatformUser string `json:"platformUser"`
	// Reserved are names of other clients of the platform, which may do little.
	Reserved []string `json:"reserved,omitempty"`
}

// Guard is a validating admission plugin, and a filter for requests.
type Guard struct {
	*admission.Handler
	cfg       Config
	evaluator policy.Evaluator
	budget    *budget.Budget
	started   atomic.Bool
	wrote     func(schema.GroupResource)
	machines  machines
	roles     roles
}

var _ admission.ValidationInterface = (*Guard)(nil)

// New returns a Guard. Nil for room is a datastore without a limit. wrote is told
// which kind of object is about to be made or changed, after each check that it
// passed; it must not block, and may be nil.
func New(cfg Config, room *budget.Budget, wrote func(schema.GroupResource)) (*Guard, error) {
	if cfg.LevelFile == "" || cfg.MachinesFile == "" || cfg.PlatformUser == "" {
		return nil, errors.New("guard: levelFile, machinesFile and platformUser must be set")
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, err
	}
	handles := admission.NewHandler(admission.Create, admission.Update, admission.Connect)
	return &Guard{Handler: handles, cfg: cfg, evaluator: evaluator, budget: room, wrote: wrote,
		machines: machines{file: cfg.MachinesFile}}, nil
}

// Factory makes the Guard known to the API server. The server's own plugin
// configuration is not read.
func (g *Guard) Factory(io.Reader) (admission.Interface, error) { return g, nil }

// Validate is called for every write, after everything that changes objects,
// the tenant's own webhooks included, and for what reaches into pods. It is safe for
// concurrent use.
func (g *Guard) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	err := g.validateDeveloper(ctx, a)
	if a.GetOperation() == admission.Connect {
		if err != nil {
			return admission.NewForbidden(a, err)
		}
		return nil
	}
	if err == nil {
		err = g.validateKind(a)
	}
	if err == nil {
		err = g.validateRoom(ctx, a)
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	g.advise(ctx, a)
	if g.wrote != nil && a.GetSubresource() == "" && !a.IsDryRun() {
		g.wrote(a.GetResource().GroupResource())
	}
	return nil
}

func (g *Guard) validateKind(a admission.Attributes) error {
	switch a.GetResource().GroupResource() {
	case api.Resource("pods"):
		switch a.GetSubresource() {
		case "", "ephemeralcontainers", "resize":
			return g.validatePod(a)
		}
	case api.Resource("persistentvolumes"):
		if a.GetSubresource() == "" {
			return g.validateVolume(a)
		}
	case storage.Resource("storageclasses"):
		return validateClass(a)
	case certificates.Resource("certificatesigningrequests"):
		if a.GetSubresource() == "" && a.GetOperation() == admission.Create {
			return g.validateCSR(a)
		}
	case apiregistration.Resource("apiservices"):
		return validateAPIService(a)
	}
	return nil
}

func (g *Guard) validatePod(a admission.Attributes) error {
	level := g.level()
	if level.Level == psaapi.LevelPrivileged {
		return nil
	}
	pod, err := versioned(a.GetObject())
	if err != nil {
		return err
	}
	if a.GetOperation() == admission.Update {
		// A pod from before the level was lowered must still be able to lose its
		// finalizers and to be labelled.
		old, err := versioned(a.GetOldObject())
		if err != nil {
			return err
		}
		if apiequality.Semantic.DeepEqual(old.Spec, pod.Spec) &&
			apiequality.Semantic.DeepEqual(old.Annotations, pod.Annotations) {
			return nil
		}
	}
	var wrong []string
	result := policy.AggregateCheckResults(g.evaluator.EvaluatePod(level, &pod.ObjectMeta, &pod.Spec))
	if !result.Allowed {
		wrong = append(wrong, result.ForbiddenDetail())
	}
	for _, v := range pod.Spec.Volumes {
		if kind, ok := podVolumeAllowed(v.VolumeSource); !ok {
			wrong = append(wrong, fmt.Sprintf("volume %q is of type %s", v.Name, kind))
		}
		if v.NFS != nil {
			if err := checkNFS(v.NFS.Server, nil); err != nil {
				wrong = append(wrong, fmt.Sprintf("volume %q: %v", v.Name, err))
			}
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	what := remedy
	if a.GetSubresource() == "ephemeralcontainers" {
		// kubectl's own profile asks for SYS_PTRACE.
		what = fmt.Sprintf("give `kubectl debug` the option --profile=%s, or %s", level.Level, remedy)
	}
	return fmt.Errorf("this workspace enforces the pod security level %q in all namespaces: %s; %s",
		level.Level, strings.Join(wrong, "; "), what)
}

// as is obj as the type that its resource has in the API server.
func as[T runtime.Object](obj runtime.Object) (T, error) {
	typed, ok := obj.(T)
	if !ok {
		return typed, fmt.Errorf("want a %T, got %T", typed, obj)
	}
	return typed, nil
}

func versioned(obj runtime.Object) (*corev1.Pod, error) {
	pod, err := as[*api.Pod](obj)
	if err != nil {
		return nil, err
	}
	out := new(corev1.Pod)
	// The conversion may share memory with pod; neither is written to.
	if err := corev1conversion.Convert_core_Pod_To_v1_Pod(pod, out, nil); err != nil {
		return nil, fmt.Errorf("convert pod: %w", err)
	}
	return out, nil
}

func (g *Guard) validateVolume(a admission.Attributes) error {
	level := g.level()
	if level.Level == psaapi.LevelPrivileged || g.platform(a.GetUserInfo()) {
		return nil
	}
	pv, err := as[*api.PersistentVolume](a.GetObject())
	if err != nil {
		return err
	}
	if a.GetOperation() == admission.Update {
		old, ok := a.GetOldObject().(*api.PersistentVolume)
		if ok && apiequality.Semantic.DeepEqual(old.Spec.PersistentVolumeSource, pv.Spec.PersistentVolumeSource) &&
			slices.Equal(mountOptions(old), mountOptions(pv)) {
			return nil
		}
	}
	if pv.Spec.NFS != nil {
		if err := checkNFS(pv.Spec.NFS.Server, mountOptions(pv)); err != nil {
			return fmt.Errorf("%w; %s", err, remedy)
		}
		return nil
	}
	if csi := pv.Spec.CSI; csi != nil {
		if csi.Driver != volumes.Driver {
			return nil
		}
		return checkOwn(csi.FSType, mountOptions(pv))
	}
	var out corev1.PersistentVolume
	if err := corev1conversion.Convert_core_PersistentVolume_To_v1_PersistentVolume(pv, &out, nil); err != nil {
		return err
	}
	return fmt.Errorf("persistent volumes of type %s reach for the machine itself; this workspace allows csi and nfs: %s",
		firstSet(out.Spec.PersistentVolumeSource), remedy)
}

// validateCSR holds whatever the level: a certificate outlives it.
func (g *Guard) validateCSR(a admission.Attributes) error {
	csr, err := as[*certificates.CertificateSigningRequest](a.GetObject())
	if err != nil {
		return err
	}
	if !strings.HasPrefix(csr.Spec.SignerName, "kubernetes.io/") {
		return nil // signed by the tenant's own signer, which the API server doesn't trust
	}
	parsed, err := certificates.ParseCSR(csr.Spec.Request)
	if err != nil {
		return nil // the API refuses it with its own words
	}
	if parsed.Subject.CommonName == g.cfg.PlatformUser || slices.Contains(parsed.Subject.Organization, user.SystemPrivilegedGroup) {
		return fmt.Errorf("the name %q and the group %q belong to the platform: ask for a certificate with another name",
			g.cfg.PlatformUser, user.SystemPrivilegedGroup)
	}
	if slices.Contains(g.cfg.Reserved, parsed.Subject.CommonName) {
		return fmt.Errorf("the name %q belongs to the platform: ask for a certificate with another name", parsed.Subject.CommonName)
	}
	if slices.ContainsFunc(parsed.Subject.Organization, func(o string) bool { return strings.HasPrefix(o, machineGroup) }) {
		return fmt.Errorf("groups that begin with %q are those of the platform's machines: ask for a certificate without one",
			machineGroup)
	}
	return nil
}

// validateAPIService holds whatever the level, as validateCSR does.
func validateAPIService(a admission.Attributes) error {
	s, err := as[*apiregistration.APIService](a.GetObject())
	if err != nil {
		return err
	}
	if s.Spec.Service == nil || !ownGroup(s.Spec.Group) {
		return nil
	}
	return fmt.Errorf("the API group %q is served by Kubernetes itself and can't be handed to a service: choose a group of your own", s.Spec.Group)
}

// ownGroup says whether the API server itself serves the group.
func ownGroup(group string) bool {
	return group == "" || group == apiregistration.GroupName || group == apiextensions.GroupName || legacyscheme.Scheme.IsGroupRegistered(group)
}

// Filter refuses requests that impersonate the platform, which itself has no need
// to, and those of machines that were taken away.
func (g *Guard) Filter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range r.Header.Values("Impersonate-User") {
			if name == g.cfg.PlatformUser || slices.Contains(g.cfg.Reserved, name) {
				answer(w, apierrors.NewForbidden(corev1.Resource("users"), name,
					errors.New("this name belongs to the platform and can't be impersonated")))
				return
			}
		}
		if uid, ok := machineOf(r.TLS); ok {
			ctx, leave, lives := g.machines.enter(r.Context(), uid)
			defer leave()
			if !lives {
				// What the client has may have been renewed since: have it connect anew.
				w.Header().Set("Connection", "close")
				answer(w, apierrors.NewUnauthorized("this certificate is not of a machine that the workspace has"))
				return
			}
			r = r.WithContext(ctx)
		}
		if !g.started.Load() {
			w = responsewriter.WrapForHTTP1Or2(&starting{ResponseWriter: w})
		}
		next.ServeHTTP(w, r)
	})
}

// answer writes an error as the API does.
func answer(w http.ResponseWriter, err *apierrors.StatusError) {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status)
}

// Started says that roles and bindings are known. Until then what is forbidden
// is answered as "not ready, ask again", which clients do by themselves: for
// a second after a restart the API server knows nobody's rights.
func (g *Guard) Started() { g.started.Store(true) }

// starting is a response that forbids nothing for good.
type starting struct {
	http.ResponseWriter
	replaced bool
}

func (s *starting) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *starting) WriteHeader(code int) {
	if code != http.StatusForbidden || s.replaced {
		s.ResponseWriter.WriteHeader(code)
		return
	}
	s.replaced = true
	h := s.Header()
	h.Del("Content-Length")
	h.Del("Content-Encoding")
	h.Set("Retry-After", "1")
	answer(s.ResponseWriter, apierrors.NewServiceUnavailable("the API server is starting: ask again in a second"))
}

func (s *starting) Write(data []byte) (int, error) {
	if s.replaced {
		return len(data), nil
	}
	return s.ResponseWriter.Write(data)
}

// platform says whether u is the platform's own client. The name alone would not
// do: a tenant could have his cluster sign it. The group alone would not either:
// he may impersonate that. Filter and validateCSR see to it that no one but
// the platform has both.
func (g *Guard) platform(u user.Info) bool {
	return u != nil && u.GetName() == g.cfg.PlatformUser && slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup)
}

// level reads the level that is in force. The file is a few bytes and pods are
// written a few times a second at most, so it is not cached.
func (g *Guard) level() psaapi.LevelVersion {
	data, err := os.ReadFile(g.cfg.LevelFile)
	level, invalid := psaapi.ParseLevel(strings.TrimSpace(string(data)))
	if err != nil || invalid != nil {
		level = psaapi.LevelBaseline
	}
	return psaapi.LevelVersion{Level: level, Version: psaapi.LatestVersion()}
}
