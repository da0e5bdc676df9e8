package plane

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emicklei/go-restful/v3"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/component-base/version"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// lazyOpenAPI serves the OpenAPI documents of Kubernetes' own groups, built when
// they are asked for and dropped a while later. Upstream builds all of them, in
// two versions, before it is ready, and keeps them: more than half of the live
// heap and of the CPU time of a start, for what an idle plane is never asked.
//
// It stands where upstream's handlers of the same server would, below the
// aggregator's, which merge its documents with those of the tenant's custom
// resources and aggregated APIs as ever. What it answers is built by upstream's
// code; only the tags differ, since a hash of a document needs the document.
// They name the version and the flags that decide what is in it.
//
// Server-side apply does not need it: its types are made at the start, group by
// group, from the same definitions.
type lazyOpenAPI struct {
	server *genericapiserver.GenericAPIServer
	config routes.OpenAPI // complete, but for the definitions
	salt   string         // of the tags

	mu    sync.Mutex
	whole *routes.OpenAPI         // config with the definitions
	built map[string]http.Handler // by path without "/openapi/"
	drop  *time.Timer
}

// openAPIKept is how long documents are kept after the last one was asked for:
// clients ask for a group at a time while they go through a list of objects.
const openAPIKept = time.Minute

// install serves the documents of the server's routes at its own paths.
func (l *lazyOpenAPI) install() {
	paths := l.server.Handler.NonGoRestfulMux
	paths.Handle("/openapi/v2", http.HandlerFunc(l.serveV2))
	paths.Handle("/openapi/v3", http.HandlerFunc(l.serveIndex))
	paths.HandlePrefix("/openapi/v3/", http.HandlerFunc(l.serveGroup))
}

// groups are the root paths of all web services: "api/v1", "apis/apps/v1".
func (l *lazyOpenAPI) groups() map[string]*restful.WebService {
	groups := map[string]*restful.WebService{}
	for _, ws := range l.server.Handler.GoRestfulContainer.RegisteredWebServices() {
		groups[strings.TrimPrefix(ws.RootPath(), "/")] = ws
	}
	return groups
}

// tags returns what makes the tags of documents: each changes when its document
// may have. One sum over all groups serves them all, for the index has a tag of
// each, and the aggregator asks for that again and again.
func (l *lazyOpenAPI) tags(groups map[string]*restful.WebService) func(document string) string {
	v := version.Get()
	all := sha512.Sum512([]byte(strings.Join(append(slices.Sorted(maps.Keys(groups)), v.GitVersion, v.GitCommit, l.salt), "\n")))
	return func(document string) string {
		return fmt.Sprintf("%X", sha512.Sum512(append(all[:], document...)))
	}
}

// tag is that of one document.
func (l *lazyOpenAPI) tag(document string) string { return l.tags(l.groups())(document) }

func relativeURL(group, tag string) string { return "/openapi/v3/" + group + "?hash=" + tag }

func (l *lazyOpenAPI) serveIndex(w http.ResponseWriter, r *http.Request) {
	index := handler3.OpenAPIV3Discovery{Paths: map[string]handler3.OpenAPIV3DiscoveryGroupVersion{}}
	groups := l.groups()
	tag := l.tags(groups)
	for group := range groups {
		index.Paths[group] = handler3.OpenAPIV3DiscoveryGroupVersion{ServerRelativeURL: relativeURL(group, tag(group))}
	}
	data, err := json.Marshal(index)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Etag", `"`+tag("index")+`"`)
	w.Header().Set("Content-Type", "application/json")
	http.ServeContent(w, r, "/openapi/v3", time.Time{}, bytes.NewReader(data))
}

func (l *lazyOpenAPI) serveGroup(w http.ResponseWriter, r *http.Request) {
	group := strings.TrimPrefix(r.URL.Path, "/openapi/v3/")
	groups := l.groups()
	ws, ok := groups[group]
	if !ok {
		http.NotFound(w, r)
		return
	}
	tag := l.tags(groups)(group)
	w.Header().Set("Vary", "Accept")
	if hash := r.URL.Query().Get("hash"); hash != "" {
		if hash != tag {
			http.Redirect(w, r, relativeURL(group, tag), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
	}
	l.serve(w, r, "v3/"+group, tag, func(config routes.OpenAPI, m *mux.PathRecorderMux) {
		one := restful.NewContainer() // only its services are read
		one.Add(ws)
		config.InstallV3(one, m)
	})
}

func (l *lazyOpenAPI) serveV2(w http.ResponseWriter, r *http.Request) {
	l.serve(w, r, "v2", l.tag("v2"), func(config routes.OpenAPI, m *mux.PathRecorderMux) {
		config.InstallV2(l.server.Handler.GoRestfulContainer, m)
	})
}

// serve answers with a document, which build installs if it is not there.
func (l *lazyOpenAPI) serve(w http.ResponseWriter, r *http.Request, document, tag string, build func(routes.OpenAPI, *mux.PathRecorderMux)) {
	quoted := `"` + tag + `"`
	if slices.Contains(r.Header.Values("If-None-Match"), quoted) {
		w.Header().Set("Etag", quoted)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	inner := r.Clone(r.Context())
	inner.URL.RawQuery = ""
	inner.Header.Del("If-None-Match")
	l.handler(document, build).ServeHTTP(&tagged{w, quoted}, inner)
}

// handler builds one document at a time: two would take twice the memory.
func (l *lazyOpenAPI) handler(document string, build func(routes.OpenAPI, *mux.PathRecorderMux)) http.Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.drop != nil {
		l.drop.Stop()
	}
	l.drop = time.AfterFunc(openAPIKept, l.forget)
	if h, ok := l.built[document]; ok {
		return h
	}
	if l.whole == nil {
		l.whole = withDefinitions(l.config)
	}
	m := mux.NewPathRecorderMux("openapi " + document)
	build(*l.whole, m)
	l.built[document] = m
	return m
}

func (l *lazyOpenAPI) forget() {
	l.mu.Lock()
	clear(l.built)
	l.whole = nil
	l.mu.Unlock()
	debug.FreeOSMemory()
}

// tagged is a response whose tag is not the handler's.
type tagged struct {
	http.ResponseWriter
	tag string
}

func (t *tagged) WriteHeader(status int) {
	if status == http.StatusOK {
		t.Header().Set("Etag", t.tag)
	}
	t.ResponseWriter.WriteHeader(status)
}

// withDefinitions is a copy of config with all definitions in it: some 50 ms
// and 20 MB.
func withDefinitions(config routes.OpenAPI) *routes.OpenAPI {
	v3 := *config.V3Config
	v3.Definitions = v3.GetDefinitions(func(name string) spec.Ref {
		name, _ = v3.GetDefinitionName(name)
		return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(name))
	})
	return &routes.OpenAPI{Config: config.Config, V3Config: &v3}
}
