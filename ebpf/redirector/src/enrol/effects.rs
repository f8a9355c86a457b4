//! What enrolling does to the world: the kernel's entries of a pod, and what is said of it.

use std::{net::IpAddr, os::fd::AsFd as _, sync::Arc};

use serde_json::json;
use tropis_maps::PodEntry;
use tropis_source::Report;
use tropis_telemetry::chain;

use super::Enroller;
use crate::{
    kernel::CaptureError,
    namespaces::Place,
    pods::{PodFacts, REDIRECTION},
};

/// The node proxy's listener for captured connections, as under istio-cni.
const OUTBOUND_PORT: u16 = 15001;
/// The first of its DNS listeners.
const DNS_PORT: u16 = 15053;

impl Enroller {
    /// Captures a pod where it was found. False when the kernel refused; what half of it succeeded goes with the pod.
    pub(super) fn capture_in_kernel(&mut self, uid: &str) -> bool {
        let Some(member) = self.members.get_mut(uid) else { return false };
        let (Some(place), facts) = (member.place.clone(), Arc::clone(&member.facts)) else { return false };
        // Before the kernel hears of it, so that it is removed whatever happens.
        member.cookie = Some(place.cookie());
        let captured = self.enrol_in_kernel(&facts, &place);
        if let Err(error) = &captured {
            tracing::error!(pod = facts.name(), error = chain(error), "the pod cannot be captured");
        }
        if let Some(member) = self.members.get_mut(uid) {
            member.captured = captured.is_ok();
        }
        captured.is_ok()
    }

    /// What arrives first, then what it opens: the proxy listens already.
    pub(super) fn enrol_in_kernel(&self, facts: &PodFacts, place: &Place) -> Result<(), CaptureError> {
        if facts.bypass_inbound {
            self.capture.detach_inbound(place.cookie())?;
        } else {
            self.capture.attach_inbound(place.as_fd(), place.cookie())?;
        }
        self.capture.maps().enrol(place.cookie(), &self.entry(facts, true))?;
        Ok(())
    }

    pub(super) fn entry(&self, facts: &PodFacts, captures: bool) -> PodEntry {
        PodEntry {
            uid: facts.uid.clone(),
            ipv4: facts.addresses.iter().find_map(|ip| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            }),
            ipv6: facts.addresses.iter().find_map(|ip| match ip {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            }),
            outbound_port: OUTBOUND_PORT,
            dns_port: if self.captures_dns(facts) { DNS_PORT } else { 0 },
            captures,
            foreign_proxy: self.settings.foreign_proxy,
        }
    }

    /// A proxy of another mesh has one DNS listener, which does not know that each resolver has a port of its own.
    fn captures_dns(&self, facts: &PodFacts) -> bool {
        facts.dns_capture.unwrap_or(self.settings.dns_capture) && !self.settings.foreign_proxy
    }

    pub(super) async fn annotate(&self, facts: &PodFacts, value: &str) -> bool {
        let fields = json!({"metadata": {"uid": facts.uid, "annotations": {REDIRECTION: value}}});
        match self.source.report(Report::new(self.writer(), facts.reference.clone(), fields)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(pod = facts.name(), error = chain(&error), "the annotation could not be written");
                false
            }
        }
    }

    pub(super) async fn withdraw(&self, facts: &PodFacts) {
        if let Err(error) = self.source.withdraw(&self.writer(), &facts.reference).await {
            tracing::error!(pod = facts.name(), error = chain(&error), "the annotation could not be withdrawn");
        }
    }

    fn writer(&self) -> String {
        format!("redirector.{}", self.settings.node)
    }
}
