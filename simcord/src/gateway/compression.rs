//! Transport compression: one stream per connection, flushed after each payload.

use axum::extract::ws::Message;
use zstd::stream::raw::{Operation, OutBuffer};

/// What a client may ask for by `compress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Zlib,
    Zstd,
}

impl Compression {
    pub(crate) fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("") => Some(Self::None),
            Some("zlib-stream") => Some(Self::Zlib),
            Some("zstd-stream") => Some(Self::Zstd),
            Some(_) => None,
        }
    }
}

/// Encodes payloads for one connection.
pub(crate) enum Encoder {
    Text,
    Zlib(Box<flate2::Compress>),
    Zstd(Box<zstd::stream::raw::Encoder<'static>>),
}

impl Encoder {
    pub(crate) fn new(compression: Compression) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Text,
            Compression::Zlib => Self::Zlib(Box::new(flate2::Compress::new(
                flate2::Compression::fast(),
                true,
            ))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::raw::Encoder::new(1)?)),
        })
    }

    pub(crate) fn encode(&mut self, payload: String) -> std::io::Result<Message> {
        match self {
            Self::Text => Ok(Message::Text(payload.into())),
            Self::Zlib(stream) => {
                deflate(stream, payload.as_bytes()).map(|bytes| Message::Binary(bytes.into()))
            }
            Self::Zstd(stream) => {
                zstd(stream, payload.as_bytes()).map(|bytes| Message::Binary(bytes.into()))
            }
        }
    }
}

fn deflate(stream: &mut flate2::Compress, payload: &[u8]) -> std::io::Result<Vec<u8>> {
    // More than deflate ever makes of it, so that one call does it: a flush that stops for want of room
    // and is taken up again is the part of every implementation that is tested least.
    let mut out = Vec::with_capacity(payload.len() + payload.len() / 8 + 256);
    let began = stream.total_in();
    loop {
        let rest = &payload[(stream.total_in() - began) as usize..];
        stream
            .compress_vec(rest, &mut out, flate2::FlushCompress::Sync)
            .map_err(std::io::Error::other)?;
        let all_read = stream.total_in() - began == payload.len() as u64;
        // Room left over means that the flush is complete.
        if all_read && out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(payload.len() / 4 + 64);
    }
}

fn zstd(
    stream: &mut zstd::stream::raw::Encoder<'static>,
    payload: &[u8],
) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(payload.len() / 3 + 64);
    let mut chunk = [0; 8192];
    let mut rest = payload;
    while !rest.is_empty() {
        let status = stream.run_on_buffers(rest, &mut chunk)?;
        out.extend_from_slice(&chunk[..status.bytes_written]);
        rest = &rest[status.bytes_read..];
    }
    loop {
        let mut buffer = OutBuffer::around(&mut chunk[..]);
        let left = stream.flush(&mut buffer)?;
        out.extend_from_slice(buffer.as_slice());
        if left == 0 {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(message: Message) -> Vec<u8> {
        match message {
            Message::Binary(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Whatever the output's length is beside the room that was made for it.
    #[test]
    fn a_flush_is_complete_at_every_length() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let length = rng.usize(1..9_000);
            let payload: String = (0..length).map(|_| rng.char('a'..='f')).collect();
            let mut zlib = Encoder::new(Compression::Zlib).expect("an encoder");
            let packed = bytes(zlib.encode(payload).expect("zlib"));
            assert!(packed.ends_with(&[0, 0, 0xff, 0xff]), "{length} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Every payload can be read as soon as its own bytes are there, whatever came before.
        #[test]
        fn each_message_ends_with_its_payload(
            payloads in proptest::collection::vec("[a-f]{1,9000}|.{1,900}", 1..8)
        ) {
            let mut zlib = Encoder::new(Compression::Zlib).expect("an encoder");
            let mut zstd = Encoder::new(Compression::Zstd).expect("an encoder");
            let mut inflate = flate2::Decompress::new(true);
            let mut unzstd = zstd::stream::raw::Decoder::new().expect("a decoder");
            for payload in payloads {
                let packed = bytes(zlib.encode(payload.clone()).expect("zlib"));
                prop_assert!(packed.ends_with(&[0, 0, 0xff, 0xff]));
                let mut out = Vec::with_capacity(payload.len() + 64);
                inflate.decompress_vec(&packed, &mut out, flate2::FlushDecompress::Sync).expect("inflates");
                prop_assert_eq!(&out[..], payload.as_bytes());

                let packed = bytes(zstd.encode(payload.clone()).expect("zstd"));
                let mut out = vec![0; payload.len() + 64];
                let mut input = zstd::stream::raw::InBuffer::around(&packed);
                let mut output = OutBuffer::around(&mut out[..]);
                while input.pos() < packed.len() {
                    unzstd.run(&mut input, &mut output).expect("unpacks");
                }
                prop_assert_eq!(output.as_slice(), payload.as_bytes());
            }
        }
    }
}
