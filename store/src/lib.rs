//! The durable store of a fleet: one trait, one contract suite, several backends
