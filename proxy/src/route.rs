//! A route for the Service range, where the node has none.
//!
//! The kernel looks a packet's route up before it is translated. A node with a default route
//! needs nothing here; one without (an isolated network) refuses packets to cluster IPs with
//! "network unreachable" before any rule sees them. Then a route by any device does: it only
//! has to exist.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Config;

/// What to do about the Service range's route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServiceRoute {
    /// Nothing.
    #[default]
    Leave,
    /// Add one by this device (the pods' bridge, say) where none covers the range.
    Device(String),
}

/// A route of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
}

/// The Service ranges that no route covers.
pub fn uncovered(service_cidrs: &[IpNet], routes: &[Route]) -> Vec<IpNet> {
    let covers = |cidr: &IpNet, route: &Route| {
        route.destination.addr().is_ipv6() == cidr.addr().is_ipv6()
            && route.destination.contains(cidr)
    };
    service_cidrs
        .iter()
        .filter(|cidr| !routes.iter().any(|route| covers(cidr, route)))
        .copied()
        .collect()
}

/// Adds the missing routes, in the calling thread's namespace. A failure is told, not returned:
/// pods reach Services without.
pub(crate) fn ensure(config: &Config) {
    let ServiceRoute::Device(device) = &config.service_route else { return };
    if let Err(error) = try_ensure(&config.service_cidrs, device) {
        tracing::warn!(%error, device, "cannot add a route for the Service range");
    }
}

fn try_ensure(service_cidrs: &[IpNet], device: &str) -> Result<(), RouteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = add_missing(&handle, service_cidrs, device).await;
        connection.abort();
        result
    })
}

/// Why a route could not be added.
#[derive(Debug, thiserror::Error)]
enum RouteError {
    #[error("cannot open a netlink socket")]
    Open(#[from] std::io::Error),
    #[error("cannot talk to rtnetlink: {0}")]
    Netlink(#[from] rtnetlink::Error),
    #[error("no such device")]
    NoDevice,
}

async fn add_missing(
    handle: &rtnetlink::Handle,
    service_cidrs: &[IpNet],
    device: &str,
) -> Result<(), RouteError> {
    use futures::TryStreamExt;
    let mut links = handle.link().get().match_name(device.to_owned()).execute();
    let index = links.try_next().await?.ok_or(RouteError::NoDevice)?.header.index;
    for cidr in uncovered(service_cidrs, &routes(handle).await?) {
        let route = rtnetlink::RouteMessageBuilder::<IpAddr>::new()
            .output_interface(index)
            .destination_prefix(cidr.network(), cidr.prefix_len());
        let Ok(route) = route else { continue };
        handle.route().add(route.build()).execute().await?;
        tracing::info!(%cidr, device, "added a route for the Service range");
    }
    Ok(())
}

async fn routes(handle: &rtnetlink::Handle) -> Result<Vec<Route>, RouteError> {
    use futures::TryStreamExt;
    use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
    let mut out = Vec::new();
    for v6 in [false, true] {
        let query = if v6 {
            rtnetlink::RouteMessageBuilder::<std::net::Ipv6Addr>::new().build()
        } else {
            rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new().build()
        };
        let mut found = handle.route().get(query).execute();
        while let Some(message) = found.try_next().await? {
            let destination = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
                RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
                _ => None,
            });
            let any = if v6 { IpAddr::from([0u8; 16]) } else { IpAddr::from([0u8; 4]) };
            let length = message.header.destination_prefix_length;
            if let Ok(destination) = IpNet::new(destination.unwrap_or(any), length) {
                out.push(Route { destination });
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> Route {
        Route { destination: text.parse().unwrap() }
    }

    #[test]
    fn a_default_route_of_the_same_family_covers_the_service_range() {
        let services = ["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        assert_eq!(uncovered(&services, &[route("0.0.0.0/0"), route("::/0")]), []);
        assert_eq!(uncovered(&services, &[route("0.0.0.0/0")]), services[1..]);
        assert_eq!(uncovered(&services, &[route("10.96.0.0/16")]), services);
    }
}
