package client

import "time"

// defaultTimeout is how long a waiting command waits. A workspace of two
// machines takes under a minute on a calm host, several on a busy one.
const defaultTimeout = 10 * time.Minute

// completeWord is the hidden command that completion scripts call.
const completeWord = "__complete"

// commands is the tree of `mp`.
func (p *program) commands() *command {
	return &command{
		name:  "mp",
		usage: "the client of MultiPaaS: accounts, organizations, workspaces and apps",
		about: `A workspace is a Kubernetes cluster of its own, in an organization, in an account.
Commands work in the place that was chosen with 'mp accounts use', 'mp org use',
'mp ws use' and 'mp ns use'. MP_ACCOUNT, MP_ORGANIZATION, MP_WORKSPACE and MP_NAMESPACE
override that, and flags override those. 'mp ws:create' is 'mp ws create', and a noun
without a verb lists. Flags may stand anywhere; everything after -- is an argument.

The configuration is in MP_CONFIG, or ~/.config/multipaas. Exit codes: 0 ok, 1 failed,
2 usage or invalid value, 3 not found, 4 conflict, 5 timeout, 6 denied, 130 interrupted.`,
		examples: []string{
			"mp init https://multipaas.example:7443 --ca ca.crt",
			"mp login me@example.com",
			"mp ws create shop --machines 2",
			"mp apps deploy hello --image hello:1 --instances 2 --port 8080",
		},
		sub: []*command{
			p.initCommand(), p.registerCommand(), p.loginCommand(), p.logoutCommand(), p.sessionCommand(), p.passwdCommand(),
			p.accountCommands(), p.organizationCommands(), p.userCommands(),
			p.workspaceCommands(), p.namespaceCommands(), p.clusterCommands(),
			p.appCommands(), p.imageCommands(), p.taskCommands(), p.nodeCommands(),
			p.kubeCredentialCommand(), p.completionCommand(), p.versionCommand(),
		},
	}
}
