package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// guarded are the words of refusals that mean what was asked for, the platform's
// own and then Kubernetes': what was refused for another reason was not an attempt.
var guarded = []string{"this workspace enforces the pod security level", "reach for the machine itself", "is neither a name nor an address",
	"is not one of nfs", "belong to the platform", "belongs to the platform", "is served by Kubernetes itself",
	"signer with system:masters group is not allowed", "the legacy signerName is not allowed", "must be false to use `Unmasked`",
	"developers act as no such", "opens it to developers, so an admin of the workspace has to set it"}

func refused(r reply) bool {
	if r.code != http.StatusForbidden && r.code != http.StatusUnprocessableEntity {
		return false
	}
	for _, words := range guarded {
		if strings.Contains(r.body, words) {
			return true
		}
	}
	return false
}

const goodPod = `"terminationGracePeriodSeconds":0,"restartPolicy":"Never"`

// podJSON merges pieces into a pod.
func podJSON(metadata, spec, container string) string {
	join := func(parts ...string) string {
		var some []string
		for _, p := range parts {
			if p != "" {
				some = append(some, p)
			}
		}
		return strings.Join(some, ",")
	}
	return `{"apiVersion":"v1","kind":"Pod","metadata":{` + metadata + `},"spec":{` +
		join(goodPod, spec, `"containers":[{`+join(`"name":"c","image":"multipaas.internal/hello:1"`, container)+`}]`) + `}}`
}

// try is one request that must be refused by the platform.
type try struct {
	what, from string
	do         func(ctx context.Context) reply
}

// refuseAll makes the requests, some at once, and records what came of them.
func (s *suite) refuseAll(t *testing.T, all []try) {
	t.Helper()
	var wg sync.WaitGroup
	places := make(chan struct{}, 8)
	for _, a := range all {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			r := a.do(t.Context())
			for range 5 { // a busy API says so
				if r.code != 0 && r.code < 500 && r.code != http.StatusTooManyRequests {
					break
				}
				time.Sleep(time.Second)
				r = a.do(t.Context())
			}
			s.record(t, attempt{What: a.what, From: a.from, Want: "refused by the platform's guard", Got: r.String(), Blocked: refused(r)})
		})
	}
	wg.Wait()
}

// testAdmission asks A's own API, of which A is cluster-admin, for pods and
// volumes that would take over the machine they run on, in every way that an
// object can come into being.
func testAdmission(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"loose","labels":{"pod-security.kubernetes.io/enforce":"privileged"}}}`)
	k.must(t, "/apis/node.k8s.io/v1/runtimeclasses", `{"metadata":{"name":"attack"},"handler":"runc"}`)
	const pods, who = "/api/v1/namespaces/loose/pods", "owner of A, cluster-admin"
	const dry = "?dryRun=All" // admission runs as ever; what passes is not kept
	var r reply
	var err error
	wait.For(t, wait.Patience, "namespace loose takes pods", func(ctx context.Context) error {
		r = k.post(ctx, pods, podJSON(`"name":"plain"`, "", ""))
		if r.code/100 != 2 && r.code != http.StatusConflict {
			return errors.New(r.String())
		}
		return nil
	})
	if !s.control(t, "a plain pod is taken", err) {
		return
	}
	var all []try
	add := func(what, from string, do func(context.Context) reply) { all = append(all, try{what, from, do}) }
	for what, bad := range badPods(t) {
		add("create a pod: "+what, who, func(ctx context.Context) reply {
			return k.post(ctx, pods+dry, podJSON(`"name":"bad"`, bad.Spec.String(), bad.Container.String()))
		})
		add("apply a pod: "+what, who, func(ctx context.Context) reply {
			return k.patch(ctx, "apply", pods+"/bad?fieldManager=attack&force=true&dryRun=All", podJSON(`"name":"bad"`, bad.Spec.String(), bad.Container.String()))
		})
	}
	// In other people's names.
	for from, other := range map[string]*kube{
		"A as system:masters":              k.as("root", "system:masters"),
		"A as its node":                    k.as("system:node:box-1", "system:nodes"),
		"A as the scheduler":               k.as("system:kube-scheduler", "system:masters"),
		"A as the controller manager":      k.as("system:kube-controller-manager", "system:masters"),
		"A as a controller":                k.as("system:serviceaccount:kube-system:daemon-set-controller", "system:serviceaccounts", "system:masters"),
		"A as anonymous, of masters":       k.as("system:anonymous", "system:masters", "system:unauthenticated"),
		"A as the platform's name":         k.as("multipaas:platform", "system:masters"),
		"A as the platform's name, spaced": k.as(" multipaas:platform ", "system:masters"),
	} {
		mirror := `"name":"mirror","annotations":{"kubernetes.io/config.mirror":"x","kubernetes.io/config.source":"file"}`
		if strings.Contains(from, "node") {
			mirror += `,"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"box-1","uid":"` + s.nodeUID(t) + `","controller":true}]`
		}
		add("create a static pod's mirror with host network", from, func(ctx context.Context) reply {
			return other.post(ctx, pods+dry, podJSON(mirror, `"nodeName":"box-1","hostNetwork":true`, ""))
		})
		add("create a PersistentVolume of hostPath", from, func(ctx context.Context) reply {
			return other.as2("system:masters").post(ctx, "/api/v1/persistentvolumes"+dry, volumeJSON(`"hostPath":{"path":"/"}`, ""))
		})
	}
	// Changes of pods that are there.
	for kind, body := range map[string]string{
		"strategic-merge": `{"spec":{"ephemeralContainers":[{"name":"e","image":"multipaas.internal/hello:1","securityContext":{"privileged":true}}]}}`,
		"merge":           `{"spec":{"ephemeralContainers":[{"name":"e","image":"multipaas.internal/hello:1","securityContext":{"capabilities":{"add":["SYS_ADMIN"]}}}]}}`,
		"json":            `[{"op":"add","path":"/spec/ephemeralContainers","value":[{"name":"e","image":"multipaas.internal/hello:1","securityContext":{"procMount":"Unmasked"}}]}]`,
		"apply":           `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"plain"},"spec":{"ephemeralContainers":[{"name":"e","image":"multipaas.internal/hello:1","securityContext":{"privileged":true}}]}}`,
	} {
		add("add a privileged ephemeral container by "+kind+" patch", who, func(ctx context.Context) reply {
			return k.patch(ctx, kind, pods+"/plain/ephemeralcontainers?fieldManager=attack&dryRun=All", body)
		})
	}
	for what, source := range rows[map[string]fields](t, "volumes.yaml") {
		add("create a PersistentVolume: "+what, who, func(ctx context.Context) reply {
			return k.post(ctx, "/api/v1/persistentvolumes"+dry, volumeJSON(source.String(), ""))
		})
	}
	add("create a PersistentVolume: nfs with bind by annotation", who, func(ctx context.Context) reply {
		return k.post(ctx, "/api/v1/persistentvolumes"+dry, volumeJSON(`"nfs":{"server":"a","path":"/"}`, `"annotations":{"volume.beta.kubernetes.io/mount-options":"bind"}`))
	})
	for what, subject := range map[string]pkix.Name{
		"the platform's name":            {CommonName: "multipaas:platform"},
		"system:masters":                 {CommonName: "a", Organization: []string{"system:masters"}},
		"system:masters among others":    {CommonName: "a", Organization: []string{"b", "system:masters", "c"}},
		"the platform's name and others": {CommonName: "multipaas:platform", Organization: []string{"b"}},
	} {
		for _, signer := range []string{"kubernetes.io/kube-apiserver-client", "kubernetes.io/legacy-unknown", "kubernetes.io/kubelet-serving"} {
			add("ask "+signer+" for a certificate of "+what, who, func(ctx context.Context) reply {
				return k.post(ctx, "/apis/certificates.k8s.io/v1/certificatesigningrequests"+dry, csrJSON(t, signer, subject))
			})
		}
	}
	for _, group := range []string{"apps", "authentication.k8s.io", "authorization.k8s.io", "certificates.k8s.io", "node.k8s.io", "storage.k8s.io",
		"admissionregistration.k8s.io", "apiregistration.k8s.io", "apiextensions.k8s.io", "coordination.k8s.io", "discovery.k8s.io", "resource.k8s.io"} {
		version := "v9"
		name := version + "." + group
		add(fmt.Sprintf("answer for API group %q", group), who, func(ctx context.Context) reply {
			return k.post(ctx, "/apis/apiregistration.k8s.io/v1/apiservices"+dry, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"group":%q,"version":%q,
				"groupPriorityMinimum":20000,"versionPriority":1000,"insecureSkipTLSVerify":true,"service":{"namespace":"loose","name":"x"}}}`, name, group, version))
		})
	}
	add("take over the API group of pods", who, func(ctx context.Context) reply {
		return k.patch(ctx, "merge", "/apis/apiregistration.k8s.io/v1/apiservices/v1."+dry,
			`{"spec":{"insecureSkipTLSVerify":true,"service":{"namespace":"loose","name":"x","port":443}}}`)
	})
	s.refuseAll(t, all)
	s.controllers(t, k)
	s.mutated(t, k)
}

// as2 is for a second group; it keeps the name.
func (k *kube) as2(group string) *kube {
	user := k.header.Get("Impersonate-User")
	return k.as(user, group)
}

func (s *suite) nodeUID(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(s.Kube(t, s.box, "", "get", "node", s.attacker.node, "-o", "jsonpath={.metadata.uid}").Out)
}

func volumeJSON(source, metadata string) string {
	if metadata != "" {
		metadata = "," + metadata
	}
	return `{"metadata":{"name":"bad"` + metadata + `},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],` + source + `}}`
}

func csrJSON(t testing.TB, signer string, subject pkix.Name) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Error(err)
		return ""
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Error(err)
		return ""
	}
	request := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	return fmt.Sprintf(`{"metadata":{"name":"bad"},"spec":{"signerName":%q,"request":%q,"usages":["client auth","digital signature"]}}`, signer, request)
}

// controllers lets Kubernetes' own controllers make bad pods for A.
func (s *suite) controllers(t *testing.T, k *kube) {
	template := `"template":{"metadata":{"labels":{"a":"KIND"}},"spec":{"hostNetwork":true,"terminationGracePeriodSeconds":0,RESTART"containers":[{"name":"c","image":"multipaas.internal/hello:1","securityContext":{"privileged":true}}]}}`
	kinds := map[string]struct{ path, spec string }{
		"deployments":            {"/apis/apps/v1", `"replicas":1,"selector":{"matchLabels":{"a":"KIND"}},`},
		"replicasets":            {"/apis/apps/v1", `"replicas":1,"selector":{"matchLabels":{"a":"KIND"}},`},
		"statefulsets":           {"/apis/apps/v1", `"replicas":1,"serviceName":"x","selector":{"matchLabels":{"a":"KIND"}},`},
		"daemonsets":             {"/apis/apps/v1", `"selector":{"matchLabels":{"a":"KIND"}},`},
		"replicationcontrollers": {"/api/v1", `"replicas":1,"selector":{"a":"KIND"},`},
		"jobs":                   {"/apis/batch/v1", `"backoffLimit":1,`},
	}
	for kind, c := range kinds {
		restart := ""
		if kind == "jobs" {
			restart = `"restartPolicy":"Never",`
		}
		body := `{"metadata":{"name":"bad-` + kind + `"},"spec":{` + c.spec + strings.ReplaceAll(template, "RESTART", restart) + `}}`
		k.must(t, c.path+"/namespaces/loose/"+kind, strings.ReplaceAll(body, "KIND", kind))
	}
	var wg sync.WaitGroup
	for kind := range kinds {
		wg.Go(func() {
			got, made := "", 0
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			for ctx.Err() == nil && got == "" && made == 0 {
				var list struct {
					Items []struct {
						Message        string
						InvolvedObject struct{ Name string }
					}
				}
				r := k.do(ctx, http.MethodGet, "/api/v1/namespaces/loose/events", "", "")
				_ = json.Unmarshal([]byte(r.body), &list)
				for _, e := range list.Items {
					if strings.HasPrefix(e.InvolvedObject.Name, "bad-"+kind) && strings.Contains(e.Message, guarded[0]) {
						got = e.Message
					}
				}
				var pods struct{ Items []json.RawMessage }
				r = k.do(ctx, http.MethodGet, "/api/v1/namespaces/loose/pods?labelSelector=a%3D"+kind, "", "")
				_ = json.Unmarshal([]byte(r.body), &pods)
				made = len(pods.Items)
				time.Sleep(200 * time.Millisecond)
			}
			s.record(t, attempt{What: "have a privileged pod with host network made by " + kind, From: "owner of A, cluster-admin",
				Want: "refused by the platform's guard", Got: fmt.Sprintf("%d pods; %s", made, got), Blocked: made == 0 && got != ""})
		})
	}
	wg.Wait()
}

// mutated lets a policy of A's own change a harmless pod on its way in.
func (s *suite) mutated(t *testing.T, k *kube) {
	const policies = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolic"
	k.must(t, policies+"ies", `{"metadata":{"name":"attack"},"spec":{"failurePolicy":"Fail","reinvocationPolicy":"IfNeeded",
		"matchConstraints":{"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"]}],"objectSelector":{"matchLabels":{"attack":"mutate"}}},
		"mutations":[{"patchType":"ApplyConfiguration","applyConfiguration":{"expression":"Object{metadata: Object.metadata{annotations: {\"mutated\": \"yes\"}}, spec: Object.spec{hostNetwork: object.metadata.name == 'bad', hostPID: object.metadata.name == 'bad'}}"}}]}}`)
	k.must(t, policies+"ybindings", `{"metadata":{"name":"attack"},"spec":{"policyName":"attack"}}`)
	defer func() {
		for _, path := range []string{"ybindings/attack", "ies/attack"} {
			k.do(context.WithoutCancel(t.Context()), http.MethodDelete, policies+path, "", "")
		}
	}()
	var r reply
	err := errors.New("")
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		r = k.post(t.Context(), "/api/v1/namespaces/loose/pods?dryRun=All", podJSON(`"name":"good","labels":{"attack":"mutate"}`, "", ""))
		if err = nil; !strings.Contains(r.body, `"mutated":"yes"`) {
			err = errors.New(r.String())
		}
	}
	if !s.control(t, "A's policy changes a pod", err) {
		return
	}
	s.refuseAll(t, []try{{"have a pod changed by a policy after the guard could have looked", "owner of A, cluster-admin", func(ctx context.Context) reply {
		return k.post(ctx, "/api/v1/namespaces/loose/pods?dryRun=All", podJSON(`"name":"bad","labels":{"attack":"mutate"}`, "", ""))
	}}})
}
