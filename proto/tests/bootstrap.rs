//! Generates the committed code from the `.proto` files, and fails when what is committed is stale.
//!
//! `UPDATE=1 cargo test -p tanako-proto --test bootstrap` writes the files instead.

use std::path::{Path, PathBuf};

const FILES: &[&str] = &[
    "tanako/worker/v1/worker.proto",
    "tanako/fleet/v1/fleet.proto",
    "tanako/host/v1/host.proto",
    "tanako/identity/v1/identity.proto",
];

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let descriptors = protox::compile(FILES, [&root]).expect("the .proto files compile");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("code is generated");
}

#[test]
fn generated_code_is_fresh() {
    let committed: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    let fresh = tempfile::tempdir().expect("a temporary directory");
    generate(fresh.path());
    let mut seen = 0;
    for entry in std::fs::read_dir(fresh.path()).expect("generated files") {
        let entry = entry.expect("a directory entry");
        let target = committed.join(entry.file_name());
        let new = std::fs::read_to_string(entry.path()).expect("generated text");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&target, &new).expect("the committed file is writable");
        }
        let old = std::fs::read_to_string(&target).unwrap_or_default();
        assert!(
            old == new,
            "{} is stale: run `UPDATE=1 cargo test -p tanako-proto --test bootstrap`",
            target.display()
        );
        seen += 1;
    }
    assert_eq!(seen, FILES.len(), "one generated file per package");
}
