package guard

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/component-helpers/auth/rbac/validation"
	rbachelpers "k8s.io/kubernetes/pkg/apis/rbac/v1"
)

// mostReached is how many service accounts are looked at for one request. 200, all weak
// and each bound in its namespace, take some 20 ms.
const mostReached = 200

// actions are all by which one acts as another service account: what validateDeveloper
// looks at, if a developer does it, and tokens. Names of objects in a rule say nothing:
// a developer makes the object that has the name.
var actions = []struct {
	verbs            []string
	group, resources string
}{
	{[]string{"create", "update", "patch"}, "", "pods pods/ephemeralcontainers podtemplates replicationcontrollers secrets serviceaccounts"},
	{[]string{"create", "update", "patch"}, "apps", "deployments replicasets statefulsets daemonsets"},
	{[]string{"create", "update", "patch"}, "batch", "jobs cronjobs"},
	{[]string{"create", "get"}, "", "pods/exec pods/attach pods/portforward"},
	{[]string{"create"}, "", "serviceaccounts/token"},
}

// account is a service account. It need not be there: who may make some makes that one.
type account struct{ namespace, name string }

func (a account) String() string { return a.name + " of namespace " + a.namespace }

func (a account) user() user.Info {
	is := serviceaccount.UserInfo(a.namespace, a.name, "")
	return &user.DefaultInfo{Name: is.GetName(), Groups: append(is.GetGroups(), user.AllAuthenticated)}
}

// mayBe says why who must not act as a service account of a namespace: what that, or one
// as which that may act in turn, may do and he may not.
func (g *Guard) mayBe(who user.Info, namespace, name string) error {
	r := &g.roles
	if !r.known() {
		return errors.New("the API server does not know all roles yet: ask again in a second")
	}
	var given []rbacv1.PolicyRule
	for _, name := range givenToAll {
		if role, err := r.cluster.Get(name); err == nil {
			given = append(given, role.Rules...)
		}
	}
	his := map[string][]rbacv1.PolicyRule{}
	first := account{namespace, cmp.Or(name, "default")} // what Kubernetes makes of it
	reached := []account{first}
	seen, all := map[account]bool{first: true}, map[string]bool{}
	for i := 0; i < len(reached); i++ { // it grows
		is := reached[i]
		if sa, err := r.accounts.ServiceAccounts(is.namespace).Get(is.name); err == nil && sa.Labels[developersLabel] == "true" {
			continue
		}
		if his[is.namespace] == nil {
			his[is.namespace] = slices.Concat(r.rulesOf(who, is.namespace), given)
		}
		if makesTokens(his[is.namespace], is.name) {
			continue
		}
		if i >= mostReached {
			return refuse(first, fmt.Sprintf("may act as more than %d others, which are not all looked at", mostReached))
		}
		where, err := r.bound(is)
		if err != nil {
			return err
		}
		for _, ns := range where {
			if his[ns] == nil {
				his[ns] = slices.Concat(r.rulesOf(who, ns), given)
			}
			rules := r.rulesOf(is.user(), ns)
			if ok, missing := validation.Covers(his[ns], rules); !ok {
				more := "may do more than you may (" + inWords(missing[0], ns) + ")"
				if is != first {
					more = "may act as " + is.String() + ", which " + more
				}
				return refuse(first, more)
			}
			if all[""] || all[ns] || !slices.ContainsFunc(rules, actsAsOthers) {
				continue
			}
			all[ns] = true
			others, err := r.named(ns)
			if err != nil {
				return err
			}
			for _, a := range others {
				if !seen[a] {
					seen[a] = true
					reached = append(reached, a)
				}
			}
		}
	}
	return nil
}

func refuse(a account, why string) error {
	return fmt.Errorf("service account %s %s, and developers act as no such: "+
		"choose another one as serviceAccountName, or have an admin of the workspace open this one to developers with: "+
		"kubectl -n %s label serviceaccount %s %s=true", a, why, a.namespace, a.name, developersLabel)
}

// actsAsOthers says whether a rule lets a service account act as all others where it has it.
func actsAsOthers(rule rbacv1.PolicyRule) bool {
	for _, a := range actions {
		if !rbachelpers.APIGroupMatches(&rule, a.group) ||
			!slices.ContainsFunc(a.verbs, func(verb string) bool { return rbachelpers.VerbMatches(&rule, verb) }) {
			continue
		}
		for resource := range strings.FieldsSeq(a.resources) {
			_, sub, _ := strings.Cut(resource, "/")
			if rbachelpers.ResourceMatches(&rule, resource, sub) {
				return true
			}
		}
	}
	return false
}

// inWords is a rule of one verb and one thing.
func inWords(r rbacv1.PolicyRule, namespace string) string {
	text := strings.Join(r.Verbs, ",") + " " + strings.Join(slices.Concat(r.Resources, r.NonResourceURLs), ",")
	if group := strings.Join(r.APIGroups, ","); group != "" {
		text += "." + group
	}
	if namespace != "" {
		text += " in namespace " + namespace
	}
	return text
}

// bound lists where the rules of a service account may be more than elsewhere: the
// whole cluster, "", first, and namespaces with a role binding that names it or its groups.
func (r *roles) bound(is account) (namespaces []string, err error) {
	all, err := r.bindings.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	u := is.user()
	namespaces = []string{""}
	names := append([]string{is.name, u.GetName()}, u.GetGroups()...)
	for _, b := range all {
		if slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return slices.Contains(names, s.Name) }) {
			namespaces = append(namespaces, b.Namespace)
		}
	}
	slices.Sort(namespaces)
	return slices.Compact(namespaces), nil
}

// named lists the service accounts of a namespace, "" is all namespaces, to which somebody
// has given something. "default" is for others: they have what all of the namespace have.
func (r *roles) named(namespace string) ([]account, error) {
	local, err := r.bindings.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	overall, err := r.overall.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	found := map[account]bool{}
	add := func(ns, name string) {
		if namespace == "" || ns == namespace {
			found[account{ns, name}] = true
			found[account{ns, "default"}] = true
		}
	}
	if namespace != "" {
		add(namespace, "default")
	}
	subjects := func(in string, all []rbacv1.Subject) {
		for _, s := range all {
			if ns, name, err := serviceaccount.SplitUsername(s.Name); s.Kind == rbacv1.UserKind && err == nil {
				add(ns, name)
			} else if ns, ok := strings.CutPrefix(s.Name, serviceaccount.ServiceAccountGroupPrefix); s.Kind == rbacv1.GroupKind && ok {
				add(ns, "default")
			} else if s.Kind == rbacv1.ServiceAccountKind {
				add(cmp.Or(s.Namespace, in), s.Name)
			}
		}
	}
	for _, b := range local {
		subjects(b.Namespace, b.Subjects)
	}
	for _, b := range overall {
		subjects("", b.Subjects)
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b account) int {
		return cmp.Or(strings.Compare(a.namespace, b.namespace), strings.Compare(a.name, b.name))
	}), nil
}
