package store

// Open returns the kind called name, for a resource that only one module knows,
// such as its own secrets. The name must not be one of the kinds above.
func Open[V any, P object[V]](s *Store, name string) Kind[P] { return kindOf[V, P](s, name) }
