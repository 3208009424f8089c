//! Whole-fleet tests on real binaries
