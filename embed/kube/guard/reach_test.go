package guard

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// gives binds a role of the rules to service accounts "namespace/name" and to groups, in a
// namespace, or in all if that is "".
func gives(in, role string, rules []rbacv1.PolicyRule, to ...string) []runtime.Object {
	var subjects []rbacv1.Subject
	for _, name := range to {
		if ns, account, ok := strings.Cut(name, "/"); ok {
			subjects = append(subjects, rbacv1.Subject{Kind: "ServiceAccount", Namespace: ns, Name: account})
			continue
		}
		kind := "Group"
		if strings.HasPrefix(name, "system:serviceaccount:") {
			kind = "User"
		}
		subjects = append(subjects, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: name})
	}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}
	name := role + "-" + strings.NewReplacer("/", "-", ":", "-").Replace(strings.Join(to, "-"))
	var binding runtime.Object = &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: in, Name: name}, Subjects: subjects, RoleRef: ref}
	if in == "" {
		binding = &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: subjects, RoleRef: ref}
	}
	if rules == nil {
		return []runtime.Object{binding}
	}
	return []runtime.Object{&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: role}, Rules: rules}, binding}
}

func may(verbs, group, resources string) []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{Verbs: strings.Fields(verbs), APIGroups: []string{group}, Resources: strings.Fields(resources)}}
}

// developersRole is all that the real one has of what makes pods and reaches into them.
var developersRole = func() (all []rbacv1.PolicyRule) {
	const verbs = "get list watch create update patch delete deletecollection"
	all = append(all, may(verbs, "", "pods pods/exec pods/attach pods/portforward pods/ephemeralcontainers podtemplates replicationcontrollers secrets serviceaccounts configmaps services")...)
	all = append(all, may(verbs, "apps", "deployments deployments/scale replicasets statefulsets daemonsets")...)
	return append(all, may(verbs, "batch", "jobs cronjobs")...)
}()

var everything = may("*", "*", "*")

// A service account that may act as others is kept from nothing: it counts as all of them.
func TestServiceAccountsThatActAsOthersAreAllOfThem(t *testing.T) {
	named := may("patch", "apps", "deployments")
	named[0].ResourceNames = []string{"web"}
	type row struct {
		rules []rbacv1.PolicyRule
		acts  bool
	}
	rows := map[string]row{
		"update of one named": {named, true},
		"read pods":           {may("get list watch", "", "pods secrets serviceaccounts"), false},
		"delete pods":         {may("delete deletecollection", "", "pods"), false},
		"scale":               {may("update patch", "apps", "deployments/scale"), false},
		"config maps":         {may("create update patch", "", "configmaps services"), false},
		"nothing":             {nil, false},
	}
	for _, a := range actions {
		for resource := range strings.FieldsSeq(a.resources) {
			for _, verb := range a.verbs {
				if resource != "serviceaccounts/token" { // no developer's
					rows[verb+" "+schema.GroupResource{Group: a.group, Resource: resource}.String()] = row{may(verb, a.group, resource), true}
				}
			}
		}
	}
	var objects []runtime.Object
	n := 0
	names := map[string]string{}
	for what, r := range rows {
		n++
		names[what] = fmt.Sprint("maker-", n)
		for _, ns := range []string{"mixed", "weak"} {
			rules := r.rules
			if rules == nil {
				rules = []rbacv1.PolicyRule{}
			}
			objects = append(objects, gives(ns, fmt.Sprint(ns, "-maker-", n), rules, ns+"/"+names[what])...)
		}
	}
	objects = append(objects, gives("mixed", "of-developers", developersRole, developers)...)
	objects = append(objects, gives("weak", "of-developers", nil, developers)...)
	objects = append(objects, gives("", "everything", everything, "mixed/strong")...)
	g := newWorld(t, objects...)
	for what, r := range rows {
		words := ""
		if r.acts {
			words = "service account " + names[what] + " of namespace mixed may act as strong of namespace mixed, which may do more than you may (* *.*)"
		}
		t.Run(what, func(t *testing.T) {
			want(t, g.mayBe(developer, "mixed", names[what]), words)
			// Where none may do much, all goes on.
			want(t, g.mayBe(developer, "weak", names[what]), "")
		})
	}
	for kind := range kinds {
		gr := schema.ParseGroupResource(kind)
		if !actsAsOthers(may("create", gr.Group, gr.Resource)[0]) {
			t.Errorf("%s make pods, and who makes them acts as no other service account", kind)
		}
	}
	for _, rule := range [][]rbacv1.PolicyRule{everything, may("create", "", "*"), may("*", "", "pods"), may("get", "", "*/exec"), may("create", "", "serviceaccounts/token")} {
		if !actsAsOthers(rule[0]) {
			t.Errorf("%v acts as no other service account", rule)
		}
	}
}

func TestActingAsOthersGoesOn(t *testing.T) {
	pods := may("create", "", "pods")
	var objects []runtime.Object
	add := func(more []runtime.Object) { objects = append(objects, more...) }
	open := func(namespaces ...string) {
		for _, ns := range namespaces {
			add(gives(ns, "of-developers", nil, developers))
		}
	}
	add(gives("chain-c", "of-developers", developersRole, developers))
	open("chain-a", "chain-b", "named", "absent", "grouped", "labelled", "self", "alone")
	add(gives("", "everything", everything, "chain-c/strong"))
	add(gives("chain-b", "pods", pods, "chain-a/first"))
	add(gives("chain-c", "pods", nil, "chain-b/second"))
	add(gives("named", "pods", nil, "named/runner"))
	add(gives("", "everything", nil, "system:serviceaccount:named:strong"))
	add(gives("absent", "pods", nil, "absent/runner"))
	add(gives("absent", "everything", nil, "absent/not-made-yet"))
	add(gives("grouped", "pods", nil, "alone/into-grouped"))
	add(gives("", "everything", nil, "system:serviceaccounts:grouped"))
	add(gives("labelled", "pods", nil, "labelled/runner"))
	add(gives("", "everything", nil, "labelled/open"))
	objects = append(objects, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "labelled", Name: "open", Labels: map[string]string{developersLabel: "true"}}})
	add(gives("self", "pods", nil, "self/runner", "self/deployer", "system:serviceaccounts:self"))
	add(gives("", "pods", nil, "self/too-wide"))
	g := newWorld(t, objects...)
	for what, words := range map[string]string{
		"chain-c/default": "", // it makes nothing
		"chain-b/second":  "may act as strong of namespace chain-c",
		"chain-b/default": "",
		"chain-a/first":   "may act as strong of namespace chain-c", // by way of second
		"named/runner":    "may act as strong of namespace named",
		"absent/runner":   "may act as not-made-yet of namespace absent",
		// A binding of a group is every one's.
		"alone/into-grouped": "may act as default of namespace grouped",
		"labelled/runner":    "", // who is open may be acted as
		"self/runner":        "may act as too-wide of namespace self, which may do more than you may (create pods)",
	} {
		ns, name, _ := strings.Cut(what, "/")
		t.Run(what, func(t *testing.T) { want(t, g.mayBe(developer, ns, name), words) })
	}
}

// crowd is a namespace whose service accounts may all make pods.
func crowd(n int) (objects []runtime.Object) {
	objects = gives("crowded", "of-developers", developersRole, developers)
	pods := may("create", "", "pods")
	for i := range n {
		objects = append(objects, gives("crowded", "pods", pods, fmt.Sprint("crowded/a-", i))...)
		pods = nil
	}
	return objects
}

func TestNotAnyNumberOfServiceAccountsIsLookedAt(t *testing.T) {
	want(t, newWorld(t, crowd(mostReached-1)...).mayBe(developer, "crowded", "a-1"), "") // and "default"
	want(t, newWorld(t, crowd(mostReached+1)...).mayBe(developer, "crowded", "a-1"), "may act as more than 200 others")
}

func BenchmarkCrowd(b *testing.B) {
	g := newWorld(b, crowd(mostReached-1)...)
	for b.Loop() {
		if err := g.mayBe(developer, "crowded", "a-1"); err != nil {
			b.Fatal(err)
		}
	}
}
