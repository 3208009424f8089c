//! The Tanako guild database node
fn main() {}
