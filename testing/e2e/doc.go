// Package e2e tries a whole datacenter from outside, the way its users and its
// operators do: the one file as `make build` makes it, on lab hosts, set up by
// `lab up`, driven by `multipaas mp`, by kubectl and by HTTPS. Nothing in it is
// a stand-in.
//
// It holds tests only; nothing imports it. They need root, dist/multipaas and
// dist/lab: `make test-e2e` builds both. All share one datacenter, which they
// leave behind if a test failed and MULTIPAAS_KEEP is "failure". With
// MULTIPAAS_LAB=DIR they use the lab that stands in DIR, made by an earlier run
// or by `lab -C DIR up`, and leave it standing: so one test can be tried again
// without waiting.
package e2e
