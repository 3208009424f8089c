//! The wire contracts of Tanako: what `tanakoctl` asks of an agent ([`fleet`]), what the agents of a
//! fleet ask of each other ([`host`]), who belongs to it ([`identity`]), and what an agent and the
//! processes it supervises say to each other ([`worker`]).
//!
//! The code under `gen/` is generated from the `.proto` files beside it and committed;
//! `tests/bootstrap.rs` proves it fresh. There is no behaviour here beyond [`problem`], which puts a
//! [`fleet::v1::Problem`] into a gRPC status and takes it out again, because both ends must agree on it.

pub mod problem;

/// What the messages hold bytes in.
pub use bytes::Bytes;

/// What `tanakoctl` asks of any agent.
pub mod fleet {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        include!("gen/tanako.fleet.v1.rs");
    }
}

/// Between the agents of a fleet.
pub mod host {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        include!("gen/tanako.host.v1.rs");
    }
}

/// Who belongs to a fleet.
pub mod identity {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        include!("gen/tanako.identity.v1.rs");
    }
}

/// Between an agent and the processes it supervises.
pub mod worker {
    /// Version 1.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        include!("gen/tanako.worker.v1.rs");
    }
}
