// Package attack tries to break out of a tenant. Tenant A is account beta with
// its workspace box, hostile; tenant B is acme with its workspace shop, the
// victim. Both stand on the same hosts of one datacenter, made by `lab up`.
//
// Every attempt is one row of a table: what was tried, from where, what should
// happen, what happened. A row counts only if the attempt was really made, so
// each kind of attempt has a control: the same thing done to something of A's own,
// which must work. A row that isn't blocked fails the test.
//
// It holds tests only; nothing imports it. They need root, dist/multipaas and
// dist/lab: `make attack` builds both. The table is printed (rows that failed; all of
// them with -v) and saved beside $MULTIPAAS_COUNTS as attacks.txt. MULTIPAAS_LAB=DIR
// and MULTIPAAS_KEEP=failure mean what they do in package e2e.
package attack
