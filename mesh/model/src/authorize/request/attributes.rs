//! What a rule may ask about, for requests and for connections alike.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
};

use crate::{request::RequestFacts, route::Caller};

use super::StreamFacts;

/// What is asked about. Without `request` it is a connection, and what only HTTP has is not there to be asked.
pub(super) struct Asked<'a> {
    pub(super) request: Option<&'a RequestFacts<'a>>,
    pub(super) caller: &'a Caller,
    pub(super) port: u16,
    pub(super) destination: Option<IpAddr>,
    pub(super) server_name: Option<&'a str>,
    /// Made for the first rule that asks.
    principal: OnceCell<Option<String>>,
}

impl<'a> Asked<'a> {
    pub(super) fn request(facts: &'a RequestFacts<'a>) -> Self {
        Self {
            request: Some(facts),
            caller: facts.caller,
            port: facts.port,
            destination: facts.destination,
            server_name: facts.server_name,
            principal: OnceCell::new(),
        }
    }

    pub(super) fn stream(facts: &StreamFacts<'a>) -> Self {
        Self {
            request: None,
            caller: facts.caller,
            port: facts.port,
            destination: facts.destination,
            server_name: facts.server_name,
            principal: OnceCell::new(),
        }
    }

    /// The same, at the endpoint that was chosen.
    pub(super) fn at(self, address: SocketAddr) -> Self {
        Self { port: address.port(), destination: Some(address.ip()), ..self }
    }

    pub(super) fn principal(&self) -> Option<&str> {
        self.principal.get_or_init(|| self.caller.identity.as_ref().map(|identity| identity.principal())).as_deref()
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.caller.identity.as_ref().map(|identity| &*identity.namespace)
    }

    pub(super) fn source(&self) -> Option<IpAddr> {
        self.caller.address.map(|address| address.to_canonical())
    }
}
