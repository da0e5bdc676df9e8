package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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

// stateBytes is how long the state file is, ever: room for 16 services, whose words are few.
const stateBytes = 16 << 10

// write writes the state over the former one, by one call, with spaces behind it. The file
// keeps its length and its place: the host has mounted it here, to read it at its own end,
// and what is mounted can't be replaced. Who reads between two pages of a write reads again.
// Durability is not wanted: the file is about processes, which don't survive a power cut either.
func (s State) write(file string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= stateBytes {
		return fmt.Errorf("state of %d bytes: there is room for %d", len(data), stateBytes)
	}
	data = append(append(data, '\n'), bytes.Repeat([]byte(" "), stateBytes-len(data)-1)...)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}
