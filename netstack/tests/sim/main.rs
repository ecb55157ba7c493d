//! `netstack::Stack` against guests on simulated links, in virtual time.
//!
//! `SIM_SEED=<n> cargo test -p gvproxy-netstack --test sim <name>` runs a test again with the seed that its
//! failure printed.
//! Read next: `network.rs`, which is the driver's calling order in small.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

mod checker;
#[path = "../shared/config.rs"]
mod config;
mod errors;
mod field;
#[path = "../shared/frames.rs"]
mod frames;
mod guest;
mod keepalive;
mod link;
mod loss;
mod network;
mod raw;
#[path = "../shared/rng.rs"]
mod rng;

mod backpressure;
mod closing;
mod crowded;
mod dial_in;
mod dial_out;
mod identity;
mod mtu;
mod random;
mod sequence;
mod services;
mod shrinking;
mod stale;
mod switching;
mod transfer;
mod udp;
mod windows;
