//! The one suite that every engine must pass.
