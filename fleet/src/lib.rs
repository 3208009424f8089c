//! The pure domain of Tanako: every decision a fleet takes is a function here
