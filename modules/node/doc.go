// Package node is the server's side of the hosts that joined the platform; it
// runs on servers only. The Hub redeems join tokens, signs certificates, streams
// to every agent what shall be on its host and takes down what agents see; the
// Monitor notices hosts that fell silent and takes removed nodes to their end.
//
// It promises that an agent is told of nothing but what is placed on its host,
// gets certificates for nothing else, and is never taken at its word about what
// belongs to others. A removed node's certificate is worthless at once.
//
// Parties: the agents of hosts (modules/agent) speak modules/wire with the Hub;
// controllers place machines by writing resources; the registry asks the Hub
// whose images a node may pull. Only package appliance imports it.
package node
