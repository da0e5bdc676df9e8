// Package node joins host machines to the platform and keeps them in step with
// it. The Hub is the server's side: it redeems join tokens, signs certificates,
// streams to every agent what it shall do and takes down what agents see. The
// Agent is the node's side: it keeps the last state on disk, so that a node
// which boots without its server still starts its machines, and drives the
// network and the machines through interfaces declared here.
//
// What travels is always the whole state (wire.State), never a
// command: a message lost, an agent restarted, a server replaced costs nothing.
// Only package appliance imports it.
package node
