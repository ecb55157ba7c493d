//! The few requests of rtnetlink(7) that an interface needs: its link, addresses, default route; and taps.
//! Owns: one socket.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use tun_rs::{DeviceBuilder, Layer};

use crate::sys::interfaces::Link;

/// Room for the longest answer in bytes: a link with all that it has to tell.
const ANSWER: usize = 32 << 10;

/// A socket to the kernel.
#[derive(Debug)]
pub(crate) struct Interfaces(OwnedFd);

impl Interfaces {
    pub(crate) fn open() -> io::Result<Self> {
        let family = rustix::net::AddressFamily::NETLINK;
        // Protocol 0 is NETLINK_ROUTE.
        Ok(Self(socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// The interface `name`, if there is one.
    pub(crate) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let answer = match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                return Ok(None);
            }
            answer => answer?,
        };
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else { return Ok(None) };
        let mac = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        });
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let alias = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.clone()),
            _ => None,
        });
        let (index, flags) = (link.header.index, link.header.flags);
        let (is_up, has_carrier) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp));
        Ok(Some(Link { index, mac, mtu, alias, is_up, has_carrier }))
    }

    pub(crate) fn set_mac(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.set_link(index, LinkAttribute::Address(mac.to_vec()))
    }

    pub(crate) fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, LinkAttribute::Mtu(mtu))
    }

    pub(crate) fn set_alias(&self, index: u32, alias: String) -> io::Result<()> {
        self.set_link(index, LinkAttribute::IfAlias(alias))
    }

    fn set_link(&self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    pub(crate) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    /// Adds an address and the route to its subnet; one that is there stays.
    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address, prefix));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Removes an address, and with it the routes that need it.
    pub(crate) fn remove_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelAddress(address_message(index, address, prefix)), 0).map(drop)
    }

    /// Adds a default route in front of any other, which is used again when this one is gone with its
    /// interface.
    pub(crate) fn add_default_route(&self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::NewRoute(default_route(index, router)), NLM_F_CREATE) {
            // The very same is there.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes what [`Self::add_default_route`] has added.
    pub(crate) fn remove_default_route(&self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        self.request(RouteNetlinkMessage::DelRoute(default_route(index, router)), 0).map(drop)
    }

    /// Sends one request and gives its answer, or `None` for one that is only acknowledged.
    fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;

        let mut answer = None;
        let mut buffer = vec![0; ANSWER];
        loop {
            let (length, _) = recv(&self.0, &mut buffer, RecvFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let part =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                match part.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answer),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                    _ => {}
                }
                // Messages are aligned to four bytes; a length of nothing would not end.
                let taken = part.header.length.next_multiple_of(4).max(16) as usize;
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
    }
}

fn address_message(index: u32, address: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = prefix;
    let broadcast = u32::from(address) | u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Broadcast(broadcast.into()),
    ];
    message
}

fn default_route(index: u32, router: Ipv4Addr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Dhcp;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(router)), RouteAttribute::Oif(index)];
    message
}

pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let device = DeviceBuilder::new().name(name).layer(Layer::L2).inherit_enable_state().build_sync()?;
    device.set_nonblocking(true)?;
    Ok(File::from(device.as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_interfaces_by_name() {
        let interfaces = Interfaces::open().unwrap();
        let link = interfaces.link("lo").unwrap().unwrap();
        assert_eq!((link.index, link.mac), (1, Some([0; 6])));
        assert_eq!(interfaces.link("no-such-link").unwrap(), None);
        assert_eq!(interfaces.link("lo").unwrap(), Some(link));
    }

    #[test]
    fn a_refusal_is_an_error() {
        let interfaces = Interfaces::open().unwrap();
        let error = interfaces.remove_address(u32::MAX >> 1, Ipv4Addr::new(192, 0, 2, 1), 24).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
