module gates.multipaas.internal

go 1.26.0

require (
	k8s.io/apiserver v0.36.3
	k8s.io/component-base v0.36.3
)
