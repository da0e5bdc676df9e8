package main

import (
	"encoding/json"
	"os"
	"time"
)

// The states of a service.
const (
	stateWaiting  = "waiting"  // for those it comes after
	stateStarting = "starting" // runs, not ready yet
	stateReady    = "ready"
	stateBackoff  = "backoff" // ended, will be started again
	stateStopping = "stopping"
	stateStopped  = "stopped"
)

// State is what the state file holds.
type State struct {
	PID      int            `json:"pid"`
	Started  time.Time      `json:"started"`
	Stopping bool           `json:"stopping"`
	Services []ServiceState `json:"services"`
}

// ServiceState is one service in it.
type ServiceState struct {
	Name       string    `json:"name"`
	State      string    `json:"state"`
	Since      time.Time `json:"since"`
	PID        int       `json:"pid,omitempty"`
	Restarts   int       `json:"restarts"`
	WaitingFor []string  `json:"waiting_for,omitempty"`
	// LastExit says how it last ended, "exit status 1" or "signal: killed".
	LastExit string `json:"last_exit,omitempty"`
}

// write replaces the state file in one step. Durability is not wanted: the
// file is about processes, which don't survive a power cut either.
func (s State) write(file string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}
