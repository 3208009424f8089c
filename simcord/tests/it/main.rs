//! Every rule that simcord enforces, seen by a raw WebSocket client and a raw HTTP client.

mod client;
mod compression;
mod faults;
mod fuzz;
mod gateway;
mod identify;
mod interactions;
mod process;
mod rest;
mod resume;
