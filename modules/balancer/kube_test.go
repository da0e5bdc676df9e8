package balancer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// kubeAPI speaks the part of the Kubernetes API that the balancer uses, list and
// watch of EndpointSlices, over HTTP to the real client.
type kubeAPI struct {
	server *httptest.Server
	closed context.Context // then its watches end
	end    context.CancelFunc

	mu       sync.Mutex
	slices   map[string]*discovery.EndpointSlice
	revision int
	watches  map[chan metav1.WatchEvent]labels.Selector
}

func newKubeAPI(t *testing.T) *kubeAPI {
	t.Helper()
	closed, end := context.WithCancel(context.Background())
	k := &kubeAPI{closed: closed, end: end, slices: map[string]*discovery.EndpointSlice{}, watches: map[chan metav1.WatchEvent]labels.Selector{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/discovery.k8s.io/v1/endpointslices", k.serve)
	k.server = httptest.NewServer(mux)
	t.Cleanup(k.close)
	return k
}

// close is for good: who watches again between the two lines would else be waited
// for.
func (k *kubeAPI) close() {
	k.end()
	k.server.CloseClientConnections()
	k.server.Close()
}

func (k *kubeAPI) client() (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(&rest.Config{Host: k.server.URL})
}

func (k *kubeAPI) serve(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	k.mu.Lock()
	if r.URL.Query().Get("watch") == "" {
		defer k.mu.Unlock()
		list := discovery.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
		list.ResourceVersion = strconv.Itoa(k.revision)
		for _, s := range k.slices {
			if selector.Matches(labels.Set(s.Labels)) {
				list.Items = append(list.Items, *s)
			}
		}
		json.NewEncoder(w).Encode(list)
		return
	}
	if r.URL.Query().Get("resourceVersion") != strconv.Itoa(k.revision) {
		k.mu.Unlock()
		fmt.Fprintf(w, `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410,"reason":"Expired"}}`+"\n")
		return
	}
	events := make(chan metav1.WatchEvent, 100)
	k.watches[events] = selector
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.watches, events)
		k.mu.Unlock()
	}()
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-events:
			if json.NewEncoder(w).Encode(e) != nil {
				return
			}
			w.(http.Flusher).Flush()
		case <-k.closed.Done():
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (k *kubeAPI) set(namespace, service string, endpoints ...discovery.Endpoint) {
	k.setSlice(namespace, service, service, endpoints...)
}

// setSlice sets one of several slices of a service.
func (k *kubeAPI) setSlice(namespace, service, slice string, endpoints ...discovery.Endpoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.revision++
	s := &discovery.EndpointSlice{
		TypeMeta: metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: slice + "-1", ResourceVersion: strconv.Itoa(k.revision),
			Labels: map[string]string{discovery.LabelServiceName: service}},
		AddressType: discovery.AddressTypeIPv4, Endpoints: endpoints,
	}
	kind := "ADDED"
	if k.slices[namespace+"/"+slice] != nil {
		kind = "MODIFIED"
	}
	k.slices[namespace+"/"+slice] = s
	k.tell(kind, s)
}

func (k *kubeAPI) remove(namespace, service string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.revision++
	s := k.slices[namespace+"/"+service]
	delete(k.slices, namespace+"/"+service)
	k.tell("DELETED", s)
}

func (k *kubeAPI) tell(kind string, s *discovery.EndpointSlice) {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	for events, selector := range k.watches {
		if selector.Matches(labels.Set(s.Labels)) {
			e := metav1.WatchEvent{Type: kind}
			e.Object.Raw = raw
			events <- e
		}
	}
}

// endpoint is a pod; ready and leaving as Kubernetes says it.
func endpoint(address string, ready, leaving bool) discovery.Endpoint {
	return discovery.Endpoint{Addresses: []string{address}, Conditions: discovery.EndpointConditions{Ready: &ready, Terminating: &leaving}}
}

func pods(addresses ...string) (out []discovery.Endpoint) {
	for _, a := range addresses {
		out = append(out, endpoint(a, true, false))
	}
	return out
}

// sliceOf is one slice of pods.
func sliceOf(addresses ...string) *discovery.EndpointSlice {
	return &discovery.EndpointSlice{AddressType: discovery.AddressTypeIPv4, Endpoints: pods(addresses...)}
}
