package network

import "github.com/multipaas/multipaas/appliance/inventory"

// Traces are what the networks of workspaces and machines make on a host.
func Traces() inventory.Traces {
	return inventory.Traces{Network: &inventory.NetworkNames{
		Workspace:     workspacePrefix,
		Machine:       machinePrefix,
		Uplink:        uplinkPrefix,
		Port:          portPrefix,
		Links:         []string{bridgeName, vxlanName, uplinkName},
		MachineLink:   machineLink,
		Tables:        []string{tableName, sendersTable},
		RouteProtocol: routeProtocol,
	}}
}
