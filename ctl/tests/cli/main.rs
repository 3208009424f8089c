//! Drives the real `tanakoctl` against a fake agent, in a home of its own.

mod broadcast;
mod contexts;
mod demo;
mod failures;
mod fake;
mod offline;
mod operations;
mod remote;
mod rollouts;
mod status;
mod streams;
mod terminal;
mod world;
