//! Whether a connection speaks HTTP/2, as seen between TLS and the server; pure.
//!
//! The server ends a connection that breaks the protocol and says nothing of it to us. What came in first
//! and how the server says good-bye tell enough for a line in the audit log.

/// How each HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame's length, type, flags and stream (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// The frame that ends a connection: last stream, then the error (RFC 9113, section 6.8).
const GOAWAY: u8 = 7;
/// Its bytes up to and with the error.
const GOAWAY_HEAD: usize = HEADER + 8;

/// One connection.
#[derive(Debug, Default)]
pub struct Overheard {
    /// How much of the preface has come.
    preface: usize,
    /// The beginning of the frame that goes out, as far as it has gone.
    head: [u8; GOAWAY_HEAD],
    filled: usize,
    /// What is left of its payload.
    left: usize,
}

impl Overheard {
    /// Looks at what came in; whether it may still be HTTP/2.
    pub fn came_in(&mut self, bytes: &[u8]) -> bool {
        let expected = &PREFACE[self.preface..];
        let len = expected.len().min(bytes.len());
        if expected[..len] != bytes[..len] {
            return false;
        }
        self.preface += len;
        true
    }

    /// Looks at what the server sent; why it ends the connection, if it does for the other's fault.
    pub fn went_out(&mut self, mut bytes: &[u8]) -> Option<&'static str> {
        let mut fault = None;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.wanted();
            let len = (wanted - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + len].copy_from_slice(&bytes[..len]);
            self.filled += len;
            bytes = &bytes[len..];
            if self.filled < self.wanted() {
                continue;
            }
            fault = fault.or(self.fault());
            self.left = (HEADER + self.payload()).saturating_sub(self.filled);
            self.filled = 0;
        }
        fault
    }

    /// How much of the frame is looked at.
    fn wanted(&self) -> usize {
        if self.filled >= HEADER && self.head[3] == GOAWAY {
            GOAWAY_HEAD.min(HEADER + self.payload())
        } else {
            HEADER
        }
    }

    fn payload(&self) -> usize {
        let [a, b, c, ..] = self.head;
        u32::from_be_bytes([0, a, b, c]) as usize
    }

    fn fault(&self) -> Option<&'static str> {
        if self.head[3] != GOAWAY || self.filled < GOAWAY_HEAD {
            return None;
        }
        let [.., a, b, c, d] = self.head;
        // RFC 9113, section 7.
        match u32::from_be_bytes([a, b, c, d]) {
            // It is done, or the fault is ours.
            0 | 2 => None,
            1 => Some("it broke the rules of HTTP/2"),
            3 => Some("it sent more than HTTP/2's flow control allows"),
            6 => Some("it sent a frame of a wrong size"),
            9 => Some("it sent headers that cannot be read"),
            11 => Some("it asked for too much at once"),
            _ => Some("it did not keep to HTTP/2"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    fn goaway(code: u32, text: &[u8]) -> Vec<u8> {
        let payload = [&[0, 0, 0, 1][..], &code.to_be_bytes(), text].concat();
        frame(GOAWAY, &payload)
    }

    #[test]
    fn what_does_not_begin_as_http_2_is_noise() {
        let mut overheard = Overheard::default();
        for part in [&PREFACE[..5], &PREFACE[5..], b"anything"] {
            assert!(overheard.came_in(part));
        }
        for noise in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 4096],
            b"PRI * HTTP/2.1",
        ] {
            assert!(!Overheard::default().came_in(noise));
        }
        assert!(Overheard::default().came_in(b""));
    }

    #[test]
    fn a_good_bye_without_a_fault_is_none() {
        let mut overheard = Overheard::default();
        assert_eq!(overheard.went_out(&goaway(0, b"")), None);
        assert_eq!(overheard.went_out(&goaway(2, b"ours")), None);
        assert_eq!(overheard.went_out(&frame(GOAWAY, b"short")), None);
        let fault = overheard.went_out(&goaway(9, b""));
        assert_eq!(fault, Some("it sent headers that cannot be read"));
    }

    proptest! {
        /// However what goes out is cut into pieces, whatever went before.
        #[test]
        fn a_good_bye_is_found_in_any_pieces(
            before in prop::collection::vec((0u8..12, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
            text in prop::collection::vec(any::<u8>(), 0..20),
            piece in 1usize..30,
        ) {
            let mut bytes = Vec::new();
            for (kind, payload) in &before {
                // Nothing but a good-bye is one, whatever its payload looks like.
                if *kind != GOAWAY {
                    bytes.extend(frame(*kind, payload));
                }
            }
            let mut overheard = Overheard::default();
            let found = |overheard: &mut Overheard, bytes: &[u8]| {
                bytes.chunks(piece).filter_map(|piece| overheard.went_out(piece)).count()
            };
            prop_assert_eq!(found(&mut overheard, &bytes), 0);
            prop_assert_eq!(found(&mut overheard, &goaway(1, &text)), 1);
            prop_assert_eq!(found(&mut overheard, &bytes), 0);
        }
    }
}
