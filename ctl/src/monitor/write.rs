//! Changes to the fleet, and the token without which none can be built.
//!
//! `--readonly` is not a check in each place that writes: a [`Write`] is only made with a
//! [`WriteToken`], and a read-only monitor never has one.

use tanako_proto::fleet::v1::OperationRequest;

/// The right to change the fleet.
#[derive(Debug)]
pub struct WriteToken(());

impl WriteToken {
    /// The token, unless the monitor is read-only.
    pub fn unless(readonly: bool) -> Option<Self> {
        (!readonly).then_some(Self(()))
    }
}

/// What the monitor can do to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Start what is stopped.
    Start,
    /// Stop, until started again.
    Stop,
    /// Stop and start, one after the other.
    Restart,
    /// Take a backup of the database.
    Backup,
}

impl Verb {
    /// As the fleet service calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Backup => "backup",
        }
    }

    /// For a title and a button.
    pub fn title(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Stop => "Stop",
            Self::Restart => "Restart",
            Self::Backup => "Back up",
        }
    }
}

/// A change that may be planned and submitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    verb: Verb,
    request: OperationRequest,
}

impl Write {
    /// `verb` on `targets`. `request_id` makes a repeated submission the same operation.
    pub fn new(_: &WriteToken, verb: Verb, targets: Vec<String>, request_id: String) -> Self {
        let kind = verb.kind().to_owned();
        Self {
            verb,
            request: OperationRequest {
                kind,
                targets,
                request_id,
                ..OperationRequest::default()
            },
        }
    }

    /// Bound to the version of the desired state that its plan was made from.
    pub fn based_on(mut self, version: u64) -> Self {
        self.request.base_version = version;
        self
    }

    /// What is done.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// To what.
    pub fn targets(&self) -> &[String] {
        &self.request.targets
    }

    /// As the fleet service takes it.
    pub fn request(&self) -> &OperationRequest {
        &self.request
    }
}
