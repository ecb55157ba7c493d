//! gvproxy: the userspace network of a virtual machine, and its sockets on the host.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod connection_limit;
pub mod daemon;
pub mod dial;
pub mod docker_sock;
pub mod engine;
pub mod forward;
#[cfg(target_os = "linux")]
pub mod guest;
pub mod host;
pub mod link;
pub mod listen;
pub mod logging;
pub mod notify;
pub mod pcap;
pub mod pidfile;
pub mod relay;
pub mod reverse;
pub mod ssh;
pub mod sys;
pub mod text;
pub mod vm;
pub mod vsock;
