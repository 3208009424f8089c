//! The live terminal view of a fleet.
