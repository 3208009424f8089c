//! Generates the committed client code of etcd's interface, and fails when what is committed is stale.
//!
//! `UPDATE=1 cargo test -p tanako-store --test bootstrap` writes the file instead.

use std::path::Path;

const FILE: &str = "etcd.proto";
const GENERATED: &str = "etcdserverpb.rs";

#[test]
fn generated_code_is_fresh() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().expect("a temporary directory");
    let descriptors =
        protox::compile([FILE], [&home.join("proto")]).expect("the .proto file compiles");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(false)
        .bytes(".")
        // Debug must never show a password or a token.
        .skip_debug(["AuthenticateRequest", "AuthenticateResponse"])
        .emit_rerun_if_changed(false)
        .out_dir(fresh.path())
        .compile_fds(descriptors)
        .expect("code is generated");
    let new = std::fs::read_to_string(fresh.path().join(GENERATED)).expect("generated text");
    let committed = home.join("src/etcd/gen").join(GENERATED);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&committed, &new).expect("the committed file is writable");
    }
    let old = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        old == new,
        "{} is stale: run `UPDATE=1 cargo test -p tanako-store --test bootstrap`",
        committed.display()
    );
}
