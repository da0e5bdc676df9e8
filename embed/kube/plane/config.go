// Package plane runs the control plane of one workspace in this process: kine
// if the configuration asks for it, then API server, controller manager and
// scheduler, all upstream's.
//
// It promises that the parts start in that order and stop in the reverse one,
// and that the process ends when any of them does, saying which. It knows
// nothing of workspaces: what makes them different are upstream's flags in the
// configuration, which embed/plane of the main module renders.
//
// Only command kube imports it, and calls Run once: upstream's parts fill
// globals of the process.
package plane

import (
	"encoding/json"
	"errors"
	"io"

	"github.com/multipaas/multipaas/embed/kube/budget"
	"github.com/multipaas/multipaas/embed/kube/guard"
	"github.com/multipaas/multipaas/embed/kube/storage"
	"github.com/multipaas/multipaas/embed/kube/usage"
)

// Config is what `kube plane` reads.
type Config struct {
	// Kine is the datastore in this process. Absent: the API server's flags name
	// another.
	Kine *KineConfig `json:"kine,omitempty"`
	// Upstream's flags, "--name=value" each.
	APIServer         []string `json:"apiserver"`
	ControllerManager []string `json:"controllerManager"`
	Scheduler         []string `json:"scheduler"`
	// ReadyURL is asked, trusting ReadyCA only, before what needs the API server
	// is started.
	ReadyURL string       `json:"readyURL"`
	ReadyCA  string       `json:"readyCA"`
	Guard    guard.Config `json:"guard"`
	// Budget is what the datastore may grow to.
	Budget budget.Config `json:"budget"`
	// Usage is how kubelets are asked for what metrics.k8s.io says.
	Usage usage.Config `json:"usage"`
	// Storage is where claims are provided with volumes. Absent: nobody does.
	Storage *storage.Config `json:"storage,omitempty"`
}

// KineConfig says where kine listens and where it keeps its data.
type KineConfig struct {
	Socket   string `json:"socket"`   // path of a unix socket
	Endpoint string `json:"endpoint"` // "sqlite://...", "postgres://..." or "mysql://..."
	// File is the path of the SQLite file. Empty: another server has the data,
	// and bounds it.
	File string `json:"file,omitempty"`
}

// ReadConfig reads a Config and refuses what it doesn't know.
func ReadConfig(r io.Reader) (Config, error) {
	var cfg Config
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil {
		return cfg, err
	}
	var errs []error
	if len(cfg.APIServer) == 0 || len(cfg.ControllerManager) == 0 || len(cfg.Scheduler) == 0 {
		errs = append(errs, errors.New("apiserver, controllerManager and scheduler: each needs flags"))
	}
	if cfg.ReadyURL == "" || cfg.ReadyCA == "" {
		errs = append(errs, errors.New("readyURL and readyCA must be set"))
	}
	if k := cfg.Kine; k != nil && (k.Socket == "" || k.Endpoint == "") {
		errs = append(errs, errors.New("kine: socket and endpoint must be set"))
	}
	if s := cfg.Storage; s != nil && (s.Socket == "" || s.Kubeconfig == "") {
		errs = append(errs, errors.New("storage: socket and kubeconfig must be set"))
	}
	return cfg, errors.Join(errs...)
}
