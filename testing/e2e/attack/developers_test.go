package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/wait"
)

// testDevelopers lets a developer of A's try to become a service account that may do
// everything: an operator's, in a namespace that was opened to developers. Owner and
// developer are of one tenant, and this is the wall between them.
func testDevelopers(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	const in, weak, strong, who = "/api/v1/namespaces/handy", "/api/v1/namespaces/handy-weak", "deployer", "developer of A, in a namespace open to him"
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"handy","labels":{"multipaas.internal/developers":"true"}}}`)
	for _, name := range []string{strong, "plain", "opened"} {
		k.must(t, in+"/serviceaccounts", `{"metadata":{"name":"`+name+`","labels":{"multipaas.internal/developers":"`+fmt.Sprint(name == "opened")+`"}}}`)
	}
	for _, name := range []string{strong, "opened"} {
		k.must(t, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"handy-`+name+`"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},
			"subjects":[{"kind":"ServiceAccount","namespace":"handy","name":"`+name+`"}]}`)
	}
	dev := k.as("multipaas:"+devA, "multipaas:org-developer")
	const dry = "dryRun=All" // admission runs as ever; what passes is not kept

	podSpec := func(account, more string) string {
		return `{"terminationGracePeriodSeconds":0,"serviceAccountName":"` + account + `","containers":[{"name":"c","image":"multipaas.internal/hello:1"}]` + more + `}`
	}
	template := func(spec string) string { return `{"metadata":{"labels":{"a":"b"}},"spec":` + spec + `}` }
	workload := func(replicas string) func(string) string {
		return func(spec string) string {
			return `{` + replicas + `"selector":{"matchLabels":{"a":"b"}},"template":` + template(spec) + `}`
		}
	}
	once := func(spec string) string { return strings.TrimSuffix(spec, "}") + `,"restartPolicy":"Never"}` }
	type kind struct {
		version, path string
		spec          func(podSpec string) string // of the object
		pods          string                      // where in a spec pods' is, as JSON with %s
	}
	const inTemplate = `{"spec":{"template":{"spec":%s}}}`
	kinds := map[string]kind{
		"Pod": {"v1", in + "/pods", func(spec string) string { return spec }, `{"spec":%s}`},
		"ReplicationController": {"v1", in + "/replicationcontrollers", func(spec string) string {
			return `{"replicas":0,"selector":{"a":"b"},"template":` + template(spec) + `}`
		}, inTemplate},
		"Deployment":  {"apps/v1", "/apis/apps/v1/namespaces/handy/deployments", workload(`"replicas":0,`), inTemplate},
		"ReplicaSet":  {"apps/v1", "/apis/apps/v1/namespaces/handy/replicasets", workload(`"replicas":0,`), inTemplate},
		"StatefulSet": {"apps/v1", "/apis/apps/v1/namespaces/handy/statefulsets", workload(`"replicas":0,"serviceName":"x",`), inTemplate},
		"DaemonSet":   {"apps/v1", "/apis/apps/v1/namespaces/handy/daemonsets", workload(``), inTemplate},
		"Job":         {"batch/v1", "/apis/batch/v1/namespaces/handy/jobs", func(spec string) string { return `{"suspend":true,"template":{"spec":` + once(spec) + `}}` }, ""},
		"CronJob": {"batch/v1", "/apis/batch/v1/namespaces/handy/cronjobs", func(spec string) string {
			return `{"suspend":true,"schedule":"0 0 1 1 *","jobTemplate":{"spec":{"template":{"spec":` + once(spec) + `}}}}`
		}, `{"spec":{"jobTemplate":{"spec":{"template":{"spec":%s}}}}}`},
	}
	object := func(name string, k kind, kindName, spec string) string {
		return `{"apiVersion":"` + k.version + `","kind":"` + kindName + `","metadata":{"name":"` + name + `"},"spec":` + k.spec(spec) + `}`
	}
	nowhere := `,"nodeSelector":{"is":"nowhere"}`
	for what, account := range map[string]string{"that may do nothing": "plain", "that was opened to him": "opened", "that every pod has": "default"} {
		err := wait.Until(t.Context(), wait.Patience, "developers may work in namespace handy", func(ctx context.Context) error {
			if r := dev.post(ctx, in+"/pods?"+dry, object("good", kinds["Pod"], "Pod", podSpec(account, ""))); r.code/100 != 2 {
				return errors.New(r.String())
			}
			return nil
		})
		if !s.control(t, "a developer makes a pod with a service account "+what, err) {
			return
		}
	}

	var all []try
	add := func(what string, do func(context.Context) reply) { all = append(all, try{what, who, do}) }
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		kd := kinds[name]
		of := func(spec string) string { return object("bad", kd, name, spec) }
		add("create a "+name+" that runs as an operator", func(ctx context.Context) reply {
			return dev.post(ctx, kd.path+"?"+dry, of(podSpec(strong, "")))
		})
		add("create a "+name+" by the field's old name", func(ctx context.Context) reply {
			return dev.post(ctx, kd.path+"?"+dry, of(strings.Replace(podSpec(strong, ""), "serviceAccountName", "serviceAccount", 1)))
		})
		add("create a "+name+" that mounts the token itself", func(ctx context.Context) reply {
			return dev.post(ctx, kd.path+"?"+dry, of(podSpec(strong, `,"automountServiceAccountToken":false,"volumes":[{"name":"t","projected":{"sources":[{"serviceAccountToken":{"path":"t"}}]}}]`)))
		})
		add("apply a "+name+" that runs as an operator", func(ctx context.Context) reply {
			return dev.patch(ctx, "apply", kd.path+"/bad?fieldManager=attack&force=true&"+dry, of(podSpec(strong, "")))
		})
		if kd.pods == "" {
			continue // the pods of one that is there never change
		}
		// What is there: an operator's and, of the developer's kind, one that may do nothing.
		k.must(t, kd.path, object("strong", kd, name, podSpec(strong, nowhere)))
		change := func(to, spec string) func(context.Context) reply {
			return func(ctx context.Context) reply {
				return dev.patch(ctx, "strategic-merge", kd.path+"/"+to+"?"+dry, fmt.Sprintf(kd.pods, spec))
			}
		}
		add("change the image of an operator's "+name, change("strong", `{"containers":[{"name":"c","image":"multipaas.internal/pause:1"}]}`))
		if name == "Pod" {
			continue
		}
		k.must(t, kd.path, object("weak", kd, name, podSpec("plain", nowhere)))
		add("give a "+name+" that may do nothing an operator's service account", change("weak", `{"serviceAccountName":"`+strong+`","serviceAccount":"`+strong+`"}`))
		add("add a container to an operator's "+name, change("strong", `{"containers":[{"name":"mine","image":"multipaas.internal/hello:1"}]}`))
		add("change the command in an operator's "+name, change("strong", `{"containers":[{"name":"c","command":["/bin/sh"]}]}`))
	}
	for _, how := range []string{"exec?command=id&stdout=true", "attach?stdout=true", "portforward?ports=8080"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			add(method+" of "+how+" in an operator's pod", func(ctx context.Context) reply { return dev.do(ctx, method, in+"/pods/strong/"+how, "", "") })
		}
	}
	secret := func(account string) string {
		return `{"metadata":{"name":"lasting","annotations":{"kubernetes.io/service-account.name":"` + account + `"}},"type":"kubernetes.io/service-account-token"}`
	}
	k.must(t, in+"/secrets", strings.Replace(secret("plain"), "lasting", "weak", 1))
	add("create a secret for an operator's token", func(ctx context.Context) reply { return dev.post(ctx, in+"/secrets?"+dry, secret(strong)) })
	add("make a secret with a token an operator's", func(ctx context.Context) reply {
		return dev.patch(ctx, "merge", in+"/secrets/weak?"+dry, `{"metadata":{"annotations":{"kubernetes.io/service-account.name":"`+strong+`"}}}`)
	})
	runners := newRunners(t, k)
	for _, r := range runners {
		err := wait.Until(t.Context(), wait.Patience, "developers may work in namespace handy-weak", func(ctx context.Context) error {
			if r := dev.post(ctx, weak+"/pods?"+dry, object("good", kinds["Pod"], "Pod", podSpec(r.account, ""))); r.code/100 != 2 {
				return errors.New(r.String())
			}
			return nil
		})
		if !s.control(t, "a developer makes a pod with a service account that may "+r.what+", beside none that may do more", err) {
			return
		}
		if r.what == "create pods" {
			is := k.as("system:serviceaccount:handy-weak:"+r.account, "system:serviceaccounts", "system:serviceaccounts:handy-weak", "system:authenticated")
			if r := is.post(t.Context(), weak+"/pods?"+dry, object("good", kinds["Pod"], "Pod", podSpec("default", ""))); r.code/100 != 2 {
				s.control(t, "a service account makes a pod as another", errors.New(r.String()))
			}
		}
	}
	for _, r := range runners {
		add("create a Pod as a service account that may "+r.what+" beside an operator's", func(ctx context.Context) reply {
			return dev.post(ctx, in+"/pods?"+dry, object("bad", kinds["Pod"], "Pod", podSpec(r.account, "")))
		})
		add("create a CronJob as a service account that may "+r.what+" beside an operator's", func(ctx context.Context) reply {
			return dev.post(ctx, kinds["CronJob"].path+"?"+dry, object("bad", kinds["CronJob"], "CronJob", podSpec(r.account, "")))
		})
		add("create a secret for the token of a service account that may "+r.what+" beside an operator's", func(ctx context.Context) reply {
			return dev.post(ctx, in+"/secrets?"+dry, secret(r.account))
		})
	}
	k.must(t, in+"/pods", object("runner", kinds["Pod"], "Pod", podSpec(runners[0].account, nowhere)))
	for _, how := range []string{"exec?command=id&stdout=true", "attach?stdout=true", "portforward?ports=8080"} {
		add("POST of "+how+" in the pod of one that may "+runners[0].what, func(ctx context.Context) reply {
			return dev.post(ctx, in+"/pods/runner/"+how, "")
		})
	}
	for _, hop := range []string{"next", "first"} {
		add("create a Pod as a service account that leads to an operator's by way of others: "+hop, func(ctx context.Context) reply {
			return dev.post(ctx, "/api/v1/namespaces/handy-far/pods?"+dry, object("bad", kinds["Pod"], "Pod", podSpec(hop, "")))
		})
	}
	const label = `"labels":{"multipaas.internal/developers":"true"}`
	add("open an operator's service account to developers", func(ctx context.Context) reply {
		return dev.patch(ctx, "merge", in+"/serviceaccounts/"+strong+"?"+dry, `{"metadata":{`+label+`}}`)
	})
	add("make an open service account that an operator will use", func(ctx context.Context) reply {
		return dev.post(ctx, in+"/serviceaccounts?"+dry, `{"metadata":{"name":"later",`+label+`}}`)
	})
	s.refuseAll(t, all)

	// What isn't his to change he may scale, restart and see.
	for what, change := range map[string]string{"scale": `{"spec":{"replicas":0,"minReadySeconds":1}}`, "restart": `{"spec":{"template":{"metadata":{"annotations":{"at":"now"}}}}}`} {
		r := dev.patch(t.Context(), "strategic-merge", kinds["Deployment"].path+"/strong?"+dry, change)
		if r.code/100 != 2 {
			s.control(t, "a developer may "+what+" an operator's Deployment", errors.New(r.String()))
		}
	}
	for _, namespace := range []string{"handy", "handy-weak", "handy-far"} {
		k.do(t.Context(), http.MethodDelete, "/api/v1/namespaces/"+namespace, "", "")
	}
}

// runner is a service account that may do one thing, which developers may do too.
type runner struct{ what, account string }

type runners []runner

// newRunners makes those of testdata, each in namespace handy, where an operator's service
// account is, and in handy-weak, where none may do more than a developer. In handy-far are
// "next", which makes pods in handy, and "first", which makes pods in handy-far.
func newRunners(t *testing.T, k *kube) (all runners) {
	t.Helper()
	const rbac = "/apis/rbac.authorization.k8s.io/v1"
	for _, namespace := range []string{"handy-weak", "handy-far"} {
		k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"`+namespace+`","labels":{"multipaas.internal/developers":"true"}}}`)
	}
	account := func(namespace, name string) {
		k.must(t, "/api/v1/namespaces/"+namespace+"/serviceaccounts", `{"metadata":{"name":"`+name+`"}}`)
	}
	bind := func(in, role, namespace, account string) {
		k.must(t, rbac+"/namespaces/"+in+"/rolebindings", `{"metadata":{"name":"`+account+`"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"`+role+`"},
			"subjects":[{"kind":"ServiceAccount","namespace":"`+namespace+`","name":"`+account+`"}]}`)
	}
	rights := rows[map[string]fields](t, "developers.yaml")
	for i, what := range slices.Sorted(maps.Keys(rights)) {
		r := runner{what, fmt.Sprint("runner-", i+1)}
		rule := fields{"apiGroups": []string{""}}
		maps.Copy(rule, rights[what])
		k.must(t, rbac+"/clusterroles", `{"metadata":{"name":"handy-`+r.account+`"},"rules":[{`+rule.String()+`}]}`)
		for _, namespace := range []string{"handy", "handy-weak"} {
			account(namespace, r.account)
			bind(namespace, "handy-"+r.account, namespace, r.account)
		}
		if what == "create pods" {
			account("handy-far", "next")
			account("handy-far", "first")
			bind("handy", "handy-"+r.account, "handy-far", "next")
			bind("handy-far", "handy-"+r.account, "handy-far", "first")
		}
		all = append(all, r)
	}
	return all
}
