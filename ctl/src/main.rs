//! The Tanako command line and live terminal view
fn main() {}
