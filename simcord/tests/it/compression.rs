//! Transport compression, read with other code than it was written with.

use flate2::{Decompress, FlushDecompress};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use crate::client::{Gateway, PATIENCE, config, events, identify, start};

enum Stream {
    Zlib(Decompress),
    Zstd(zstd::stream::raw::Decoder<'static>),
}

impl Stream {
    fn decode(&mut self, bytes: &[u8]) -> Value {
        let mut out = vec![0; 1 << 20];
        let length = match self {
            Self::Zlib(stream) => {
                assert!(
                    bytes.ends_with(&[0, 0, 0xff, 0xff]),
                    "a zlib message ends with a flush"
                );
                let before = stream.total_out();
                stream
                    .decompress(bytes, &mut out, FlushDecompress::Sync)
                    .expect("zlib");
                (stream.total_out() - before) as usize
            }
            Self::Zstd(stream) => {
                let mut input = InBuffer::around(bytes);
                let mut output = OutBuffer::around(&mut out[..]);
                while input.pos() < bytes.len() {
                    stream.run(&mut input, &mut output).expect("zstd");
                }
                output.pos()
            }
        };
        serde_json::from_slice(&out[..length]).expect("one whole payload")
    }
}

async fn speaks(name: &str, mut stream: Stream) {
    let sim = start(config()).await;
    let url = format!("{}/?v=10&encoding=json&compress={name}", sim.info().gateway);
    let mut gateway = Gateway::open(&url).await;
    let mut seqs = Vec::new();
    let mut names = Vec::new();
    for n in 0..20 {
        let message = timeout(PATIENCE, gateway.socket.next())
            .await
            .expect("in time");
        let message = message.expect("a message").expect("a frame");
        assert!(message.is_binary());
        let payload = stream.decode(message.as_payload());
        match n {
            0 => {
                assert_eq!(payload["op"], 10);
                let token = simcord::DEVELOPMENT_TOKEN;
                gateway
                    .send(identify([0, 1], crate::client::ALL_INTENTS, token))
                    .await;
            }
            13 => events(&sim, "MESSAGE_CREATE", 6).await,
            _ => {}
        }
        seqs.extend(payload["s"].as_u64());
        names.extend(payload["t"].as_str().map(str::to_owned));
    }
    assert_eq!(seqs, (1..=19).collect::<Vec<u64>>());
    assert_eq!(names[0], "READY");
    assert!(names[1..13].iter().all(|name| name == "GUILD_CREATE"));
    assert!(names[13..].iter().all(|name| name == "MESSAGE_CREATE"));
}

#[tokio::test]
async fn zlib_stream_is_spoken() {
    speaks("zlib-stream", Stream::Zlib(Decompress::new(true))).await;
}

#[tokio::test]
async fn zstd_stream_is_spoken() {
    speaks(
        "zstd-stream",
        Stream::Zstd(zstd::stream::raw::Decoder::new().expect("a decoder")),
    )
    .await;
}

#[tokio::test]
async fn binary_messages_with_json_are_read() {
    let sim = start(config()).await;
    let mut gateway = Gateway::connect(&sim).await;
    let heartbeat = json!({ "op": 1, "d": null }).to_string().into_bytes();
    let message = tokio_websockets::Message::binary(heartbeat);
    futures_util::SinkExt::send(&mut gateway.socket, message)
        .await
        .expect("sent");
    gateway.opcode(11).await;
}
