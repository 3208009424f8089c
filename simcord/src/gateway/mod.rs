//! The gateway: what clients hold a WebSocket to.
//!
//! ```text
//!            IDENTIFY                       connection gone, not 1000/1001
//! (nothing) ──────────► attached ─────────────────────────────► detached
//!                          ▲                                       │  │
//!                          └────────────── RESUME ─────────────────┘  │ window over, 1000/1001,
//!                                                                     ▼ opcode 9 (d: false)
//!                                                                   void: what was not proven is lost
//! ```
//!
//! [`session`] decides about one session, [`limits`] about IDENTIFYs and sends, [`protocol`] about the form of
//! what clients send; none of them does IO. [`connection`] carries out.

mod compression;
pub(crate) mod connection;
mod event;
mod intents;
pub(crate) mod limits;
mod link;
mod protocol;
pub(crate) mod session;

pub(crate) use event::{Body, Event};
pub(crate) use intents::Intents;
pub(crate) use link::{Control, Link};
pub(crate) use protocol::{CloseCode, Command, Identify, RequestGuildMembers, Resume, Shard};
