//! What was asked for: the flags and the file of `-config` as one. Owns: which of the two counts, and where
//! in the file a value stands. May not: judge values. Read next: `../config.rs`.
//!
//! As in the original a flag counts before the file, but for the four addresses, where the file counts
//! before the flags.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, ensure};
use serde_saphyr::Spanned;
use tracing::level_filters::LevelFilter;

use super::file::{File, Stack, Text};
use super::keys;
use crate::addr::ListenAddress;
use crate::cli::RawArgs;
use crate::text::quote;

/// Which frames are written into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedFrames {
    /// The first hundred of every five seconds, and how many there were between them.
    Some,
    /// Every one, whatever that costs.
    All,
}

/// Flags and file as one.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The flags; where one was not given, what the file says in its place.
    pub(super) args: RawArgs,
    file: Option<File>,
    /// The flags whose value is the file's: name, line.
    places: Vec<(&'static str, u64)>,
    /// What the file says in `log-level`.
    log_level: Option<String>,
}

impl Asked {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// The file cannot be read or is wrong, as one line; or a flag and another name of it are given.
    pub fn new(args: RawArgs) -> Result<Self> {
        let mut args = args;
        if !args.listen_unixgram.is_empty() {
            ensure!(
                args.listen_vfkit.is_empty(),
                "-listen-unixgram and -listen-vfkit are the same: give one"
            );
            args.listen_vfkit = std::mem::take(&mut args.listen_unixgram);
        }
        let mut asked = Self { args, file: None, places: Vec::new(), log_level: None };
        if !asked.args.config.is_empty() {
            let file = File::read(Path::new(&asked.args.config))?;
            asked.take(&file);
            asked.file = Some(file);
        }
        Ok(asked)
    }

    /// The file of the log, empty for standard error.
    pub fn log_file(&self) -> &Path {
        Path::new(&self.args.log_file)
    }

    /// The least severe level that is logged, or what stands in its place and is none.
    ///
    /// # Errors
    /// A level that there is not: its name.
    pub fn log_level(&self) -> Result<LevelFilter, String> {
        if self.args.debug {
            return Ok(LevelFilter::DEBUG);
        }
        let Some(name) = &self.log_level else { return Ok(LevelFilter::INFO) };
        match name.to_ascii_lowercase().as_str() {
            "panic" | "fatal" | "error" => Ok(LevelFilter::ERROR),
            "warn" | "warning" => Ok(LevelFilter::WARN),
            "" | "info" => Ok(LevelFilter::INFO),
            "debug" => Ok(LevelFilter::DEBUG),
            "trace" => Ok(LevelFilter::TRACE),
            _ => Err(name.clone()),
        }
    }

    /// Which frames the log is to have: as many as it can bear at debug level or where the file asks for
    /// it, all at trace level.
    pub(super) fn frame_log(&self) -> Option<LoggedFrames> {
        let level = self.log_level().unwrap_or(LevelFilter::INFO);
        let asked_for = self.stack().and_then(|stack| stack.debug.as_ref()).is_some_and(|debug| debug.value);
        match level {
            LevelFilter::TRACE => Some(LoggedFrames::All),
            LevelFilter::DEBUG => Some(LoggedFrames::Some),
            _ => asked_for.then_some(LoggedFrames::Some),
        }
    }

    /// What of it is about the process as a whole, as flag or as key of the file: what another program in
    /// which a daemon runs does itself.
    pub fn about_process(&self) -> Option<&'static str> {
        let args = &self.args;
        let asked = [
            ("version", args.version),
            ("qmp-status", args.qmp_status),
            ("pid-file", !args.pid_file.is_empty()),
            ("log-file", !args.log_file.is_empty()),
            ("log-level", self.log_level.is_some()),
            ("debug", args.debug),
            ("listen-stdio", !args.listen_stdio.is_empty()),
        ];
        asked.into_iter().find(|(_, is_asked)| *is_asked).map(|(name, _)| name)
    }

    /// The paths of the sockets for clients, of `-forward-sock`, `-listen` and `-services`. Those for
    /// virtual machines are not among them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let of_file = self.file.iter().flat_map(|file| &file.forwards);
        let of_file = of_file.filter_map(|forward| Some(OsStr::new(&forward.value.socket.as_ref()?.value)));
        let forwards = self.args.forward_sock.iter().map(OsString::as_os_str).chain(of_file);
        let forwards =
            forwards.filter_map(|typed| ListenAddress::parse(typed).ok()?.path().map(Path::to_owned));
        let apis = self.args.listen.iter().chain([&self.args.services]);
        let apis =
            apis.filter_map(|url| ListenAddress::parse_url("listen", url).ok()?.path().map(Path::to_owned));
        forwards.chain(apis).collect()
    }

    /// What the file says, if there is one: then it is all that the network has.
    pub(super) fn stack(&self) -> Option<&Stack> {
        self.file.as_ref().map(|file| &file.stack)
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Whether the file gave the value of `flag`.
    pub(super) fn is_of_file(&self, flag: &str) -> bool {
        self.places.iter().any(|(name, _)| *name == flag)
    }

    /// Puts line and key before an error about the value of `flag`, if the file gave it.
    pub fn place(&self, flag: &str, error: Error) -> Error {
        self.place_item(flag, 0, error)
    }

    /// The same where `flag` is a list, about its `index`th value.
    pub(super) fn place_item(&self, flag: &str, index: usize, error: Error) -> Error {
        match self.places.iter().filter(|(name, _)| *name == flag).nth(index) {
            Some((_, line)) => self.wrong(*line, keys::of_flag(flag), error),
            None => error,
        }
    }

    /// An error about the value of `key` at `line` of the file.
    pub(super) fn wrong(&self, line: u64, key: &str, error: Error) -> Error {
        error.context(format!("{} line {line}: {key}", self.args.config.display()))
    }

    /// Merges.
    fn take(&mut self, file: &File) {
        let args = &mut self.args;
        let mut places = Vec::new();
        let mut text = |value: &mut OsString, theirs: &Text, flag: &'static str, first: bool| {
            let Some(Spanned { value: theirs, referenced, .. }) = theirs else { return };
            if !theirs.is_empty() && (first || value.is_empty()) {
                *value = theirs.into();
                places.push((flag, referenced.line()));
            }
        };
        let (stack, interfaces) = (&file.stack, &file.interfaces);
        for (value, theirs, flag) in [
            (&mut args.subnet, &stack.subnet, "subnet"),
            (&mut args.gateway_ip, &stack.gateway_ip, "gatewayIP"),
            (&mut args.device_ip, &stack.device_ip, "deviceIP"),
            (&mut args.host_ip, &stack.host_ip, "hostIP"),
        ] {
            text(value, theirs, flag, true);
        }
        for (value, theirs, flag) in [
            (&mut args.listen_bess, &interfaces.bess, "listen-bess"),
            (&mut args.listen_qemu, &interfaces.qemu, "listen-qemu"),
            (&mut args.listen_stdio, &interfaces.stdio, "listen-stdio"),
            (&mut args.listen_vfkit, &interfaces.vfkit, "listen-vfkit"),
            (&mut args.listen_vpnkit, &interfaces.vpnkit, "listen-vpnkit"),
            (&mut args.log_file, &file.log_file, "log-file"),
            (&mut args.notification, &file.notification, "notification"),
            // COMPAT(gvproxy): the original ignores -pcap beside a file.
            (&mut args.pcap, &stack.capture_file, "pcap"),
            (&mut args.pid_file, &file.pid_file, "pid-file"),
            (&mut args.services, &file.services, "services"),
        ] {
            text(value, theirs, flag, false);
        }
        // An empty one is no word for "none": it would leave the API open, or believe any agent.
        for (value, theirs, flag) in [
            (&mut args.agent_secret_file, &file.agent_secret_file, "agent-secret-file"),
            (&mut args.api_token_file, &file.api_token_file, "api-token-file"),
        ] {
            if value.is_none()
                && let Some(Spanned { value: theirs, referenced, .. }) = theirs
            {
                *value = Some(theirs.into());
                places.push((flag, referenced.line()));
            }
        }
        if args.listen.is_empty() {
            for Spanned { value, referenced, .. } in &file.listen {
                args.listen.push(value.into());
                places.push(("listen", referenced.line()));
            }
        }
        if args.qmp.is_empty() {
            for Spanned { value, referenced, .. } in &file.qmp {
                args.qmp.push(value.into());
                places.push(("qmp", referenced.line()));
            }
        }
        args.qmp_keep_device |= file.qmp_keep_device;
        args.exit_with_vm |= file.exit_with_vm;
        args.api_token_gateway |= file.api_token_gateway;
        args.gateway_expose_all_protocols |= file.gateway_expose_all_protocols;
        if args.mtu == 0
            && let Some(Spanned { value, referenced, .. }) = &stack.mtu
        {
            args.mtu = value.0;
            places.push(("mtu", referenced.line()));
        }
        // COMPAT(gvproxy): there the first of the two has no effect.
        args.ec2_metadata_access |= file.ec2_metadata_access || stack.ec2_metadata_access;
        self.log_level = file.log_level.as_ref().map(|level| level.value.clone());
        self.places = places;
    }

    /// What was asked for and has no effect.
    pub fn warn(&self, device: Ipv4Addr) {
        if self.file.is_some() && self.args.typed.contains(&"ssh-port") {
            tracing::warn!(
                "CLI argument \"-ssh-port\" is unavailable with config file. You need to add \"127.0.0.1:{}: \
                 {}:22\" entry into .stack.forwards in {} instead",
                self.args.ssh_port,
                device,
                quote(self.args.config.display().to_string()),
            );
        }
    }
}
