// Package apps turns the apps in the store into a Deployment and a Service in
// their workspace's cluster and a route of the balancer, and tells how they
// fare. Its one controller is level-triggered: a pass over an app compares what
// is wanted with what is in the cluster and writes the difference, so it may be
// repeated, lost or cut short at any point.
//
// Parties: the API writes what is wanted; the balancer serves the route and
// says so in it; clusters and images are reached through interfaces declared
// here. Only package appliance imports it.
package apps
