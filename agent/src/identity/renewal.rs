//! Keeps this agent's certificate from ending: asks for a successor in good time, and uses it without a
//! restart.

use std::time::{Duration, SystemTime};

use tanako_pki::{Pending, Renewal};
use tanako_store::Backoff;

use super::{Credentials, service::Service};
use crate::history::{History, Severity};

/// Pauses after a try that failed.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// The clock is looked at so often: it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Renews until cancelled.
pub async fn keep(service: Service, credentials: Credentials, history: History) {
    let mut watch = credentials.watch();
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    let mut told = false;
    loop {
        let due = watch.borrow_and_update().identity.renew_at();
        let wait = due
            .duration_since(SystemTime::now())
            .unwrap_or_default()
            .min(LOOK_EVERY);
        if !wait.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = watch.changed() => {}
            }
            continue;
        }
        match renew(&service, &credentials).await {
            Ok(serial) => {
                backoff.reset();
                told = false;
                let message = format!("certificate {serial}");
                history.event(Severity::Info, "certificate-renewed", "agent", message);
            }
            Err(reason) => {
                tracing::warn!(reason, "the certificate is not renewed yet");
                let ended = credentials.current().identity.ends_at() <= SystemTime::now();
                if !told {
                    told = true;
                    let message = if ended {
                        format!(
                            "the certificate has ended, other agents refuse this one: {reason}; join anew with a token"
                        )
                    } else {
                        format!("the certificate cannot be renewed yet: {reason}")
                    };
                    let severity = if ended {
                        Severity::Error
                    } else {
                        Severity::Warning
                    };
                    history.event(severity, "certificate-not-renewed", "agent", message);
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn renew(service: &Service, credentials: &Credentials) -> Result<String, String> {
    let words = |error: tanako_pki::Error| crate::problem::with_sources(&error);
    let pending = Pending::generate().map_err(words)?;
    let current = credentials.current();
    let renewal = Renewal::of(&current.identity, &pending).map_err(words)?;
    let issued = service
        .renew_own(&renewal)
        .await
        .map_err(|problem| format!("{} {}", problem.message, problem.cause))?;
    let der = |list: Vec<bytes::Bytes>| list.into_iter().map(|der| der.to_vec());
    let identity = pending
        .complete(der(issued.chain), der(issued.authorities))
        .map_err(words)?;
    let (new, old) = (identity.peer(), current.identity.peer());
    if (&new.name, new.role, &new.fleet) != (&old.name, old.role, &old.fleet) {
        return Err(format!("the issuer sent a certificate of {new}"));
    }
    let serial = new.serial.to_string();
    credentials.replace(identity).map_err(words)?;
    Ok(serial)
}
