package plane

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"slices"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

func testTokens(t *testing.T, p *Plane, iss *issuer) {
	me, err := whoAmI(t.Context(), withToken(p, iss.token(t, "ann@acme.example", audience, "multipaas:org-admin")))
	if err != nil || me.Username != "multipaas:ann@acme.example" || !slices.Contains(me.Groups, "multipaas:org-admin") {
		t.Errorf("I am %+v, %v; want multipaas:ann@acme.example, an org-admin", me, err)
	}
	for name, token := range map[string]string{
		"another workspace's": iss.token(t, "ann@acme.example", "other-workspace", "multipaas:org-admin"),
		"one of the masters":  iss.token(t, "ann@acme.example", audience, "system:masters"),
		"none":                "",
		"garbage":             "a.b.c",
	} {
		if me, err := whoAmI(t.Context(), withToken(p, token)); !apierrors.IsUnauthorized(err) {
			t.Errorf("with token %s I am %+v, %v; want unauthorized", name, me, err)
		}
	}
	developer := clientFor(t, withToken(p, iss.token(t, "dev@acme.example", audience, "multipaas:org-developer")))
	// ClusterRole edit has that from view, by a controller that adds roles up.
	wait.For(t, wait.Patience, "developer lists config maps", func(ctx context.Context) error {
		_, err := developer.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
		return err
	})
	if _, err := developer.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("developer lists nodes: %v, want forbidden", err)
	}
}

func testSigning(t *testing.T, p *Plane, admin kubernetes.Interface) {
	requests := admin.CertificatesV1().CertificateSigningRequests()
	posing, _ := request(t, platformUser)
	_, err := requests.Create(t.Context(), posing, metav1.CreateOptions{})
	wantRefused(t, "request in the platform's name", err, "belong to the platform")
	master, _ := request(t, "ann", "system:masters")
	_, err = requests.Create(t.Context(), master, metav1.CreateOptions{})
	wantRefused(t, "request for system:masters", err, "system:masters")

	plain, key := request(t, "ann", "friends")
	plain, err = requests.Create(t.Context(), plain, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plain.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{
		{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	if _, err := requests.UpdateApproval(t.Context(), plain.Name, plain, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	var cert []byte
	wait.For(t, wait.Patience, "certificate", func(ctx context.Context) error {
		got, err := requests.Get(ctx, plain.Name, metav1.GetOptions{})
		if err == nil && len(got.Status.Certificate) == 0 {
			err = errors.New("not signed yet")
		}
		if err == nil {
			cert = got.Status.Certificate
		}
		return err
	})
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cfg := withToken(p, "")
	cfg.CertData, cfg.KeyData = cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if me, err := whoAmI(t.Context(), cfg); err != nil || me.Username != "ann" || !slices.Contains(me.Groups, "friends") {
		t.Errorf("with the certificate I am %+v, %v; want ann, of friends", me, err)
	}
	parsed, err := pki.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(p.cfg.Keys.CACert)
	if _, err := parsed.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the cluster's signer signs with the authority that the platform's clients trust")
	}
}

// testRenewal replaces the files as a renewal does.
func testRenewal(t *testing.T, p *Plane) {
	before, err := servedSerial(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(p.cfg.Keys.CACert, p.cfg.Keys.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.Request{CommonName: "kube-apiserver", Server: true, Hosts: p.serverNames()})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmp.Or(pki.WriteFiles(p.path("pki", "apiserver.crt"), p.path("pki", "apiserver.key"), cert, key),
		os.Chmod(p.path("pki", "apiserver.key"), 0o640), os.Chown(p.path("pki", "apiserver.key"), 0, p.cfg.UID)); err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	wait.For(t, wait.Patience, "the new certificate", func(ctx context.Context) error {
		now, err := servedSerial(ctx, p)
		if err == nil && now == before {
			err = errors.New("still the old one")
		}
		return err
	})
	if p.PID() != pid {
		t.Error("the process was restarted")
	}
}

func bind(t *testing.T, c kubernetes.Interface, name, role, group string) {
	t.Helper()
	_, err := c.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func whoAmI(ctx context.Context, cfg *rest.Config) (authenticationv1.UserInfo, error) {
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	review, err := c.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return review.Status.UserInfo, nil
}

func request(t *testing.T, name string, organizations ...string) (csr *certificatesv1.CertificateSigningRequest, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: organizations}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, key
}
