//! A Discord that holds its clients to the rules of Discord: gateway, REST, generated guilds and events, faults
//! on demand, and an account of everything that happened. The README lists its flags, its admin API and the
//! rules that it enforces.
//!
//! ```no_run
//! # async fn example() -> Result<(), simcord::StartError> {
//! let sim = simcord::Sim::start(simcord::Config { guilds: 10, ..Default::default() }).await?;
//! println!("{}/api/v10/gateway", sim.url());
//! sim.stop().await;
//! # Ok(())
//! # }
//! ```

mod account;
mod admin;
mod app;
mod commands;
mod config;
mod gateway;
mod generate;
mod hub;
mod interactions;
mod rest;
mod server;
mod sim;
mod snowflake;
mod token;
mod world;

pub use config::{Config, GUILDS_MAX, PrivilegedIntent, RATE_MAX};
pub use sim::{Info, Sim, StartError};
pub use token::{DEVELOPMENT_TOKEN, TokenError};
