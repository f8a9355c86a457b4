//! Whether a service's ports say what is spoken on them.

use tropis_crds::{Finding, Object, codes};
use tropis_model::service::AppProtocol;

use crate::service;

/// What a port's name or `appProtocol` may say.
const SAID: &str = "appProtocol, or a name that begins with http, http2, grpc, tcp or tls and goes on with \"-\"";

/// A note for each port whose protocol must be guessed from its first bytes.
pub(super) fn findings(object: &Object) -> Vec<Finding> {
    let ports = object.service().and_then(|service| service.spec.as_ref()?.ports.as_ref());
    let guessed = ports.into_iter().flatten().enumerate().filter(|(_, port)| {
        let number = u16::try_from(port.port).unwrap_or_default();
        service::is_tcp(port) && service::app_protocol(port, number) == AppProtocol::Unknown
    });
    guessed
        .map(|(index, port)| {
            let finding = Finding::info(codes::PORT_NAME, object.reference())
                .field(format!("spec.ports[{index}].name"))
                .accepted(SAID)
                .effect("the waypoint looks at the first bytes of each connection to tell HTTP from the rest");
            match &port.name {
                Some(name) => finding.found(format!("{name:?}")).problem("does not say what is spoken on the port"),
                None => finding.found(port.port.to_string()).problem("has no name that says what is spoken on the port"),
            }
        })
        .collect()
}
