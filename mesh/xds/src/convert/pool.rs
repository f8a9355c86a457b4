//! `tropis.waypoint.v1.Pool`.

use tropis_model::{
    bounds,
    pool::{
        Balancer, Distribution, HashAlgorithm, HashKey, Http2Keepalive, Limits, LocalityMatch, LocalityPreference, OutlierDetection, Pool,
        RetryBudget, TcpKeepalive, UpstreamTls, UpstreamVersion, Warmup,
    },
};
use tropis_proto::waypoint::{self as wire, balancer, consistent_hash, limits, locality, upstream_tls};

use super::{Interner, InvalidResource, parts};

pub(super) fn from_wire(wire: wire::Pool, strings: &mut Interner) -> Result<Pool, InvalidResource> {
    let key = parts::pool_key("pools.key", wire.key, strings)?;
    let part = format!("pool {key}");
    let rest = || -> Result<Pool, InvalidResource> {
        Ok(Pool {
            key,
            labels: parts::labels("labels", wire.labels, strings)?,
            balancer: wire.balancer.map(|found| balancer(found, strings)).transpose()?.unwrap_or_default(),
            locality: wire.locality.map(|found| locality(found, strings)).transpose()?.unwrap_or_default(),
            warmup: wire.warmup.map(warmup).transpose()?,
            limits: limits(parts::required("limits", wire.limits)?)?,
            outlier: wire.outlier.map(outlier).transpose()?,
            panic_threshold_percent: parts::percent("panic_threshold_percent", wire.panic_threshold_percent)?,
            upstream_version: match wire::UpstreamVersion::try_from(wire.upstream_version) {
                Ok(wire::UpstreamVersion::FromPort) => UpstreamVersion::FromPort,
                Ok(wire::UpstreamVersion::FromCaller) => UpstreamVersion::FromCaller,
                Ok(wire::UpstreamVersion::ForceHttp2) => UpstreamVersion::Http2,
                Err(_) => return Err(InvalidResource::UnknownValue { field: "upstream_version", found: wire.upstream_version }),
            },
            tls: wire.tls.map(|found| tls(found, strings)).transpose()?.unwrap_or_default(),
        })
    };
    rest().map_err(|cause| cause.within(part))
}

fn balancer(wire: wire::Balancer, strings: &mut Interner) -> Result<Balancer, InvalidResource> {
    Ok(match parts::required("balancer", wire.kind)? {
        balancer::Kind::LeastRequest(()) => Balancer::LeastRequest,
        balancer::Kind::RoundRobin(()) => Balancer::RoundRobin,
        balancer::Kind::Random(()) => Balancer::Random,
        balancer::Kind::Passthrough(()) => Balancer::Passthrough,
        balancer::Kind::ConsistentHash(found) => Balancer::ConsistentHash {
            key: hash_key(parts::required("consistent_hash.key", found.key)?, strings)?,
            algorithm: match parts::required("consistent_hash.algorithm", found.algorithm)? {
                consistent_hash::Algorithm::RingMinimumSize(size) => {
                    HashAlgorithm::Ring { minimum_size: parts::number("ring_minimum_size", size, 0..=bounds::RING_POINTS, "0 to 8388608")? }
                }
                consistent_hash::Algorithm::MaglevTableSize(size) => {
                    HashAlgorithm::Maglev { table_size: parts::number("maglev_table_size", size, bounds::TABLE_ENTRIES, "2 to 5000011")? }
                }
            },
        },
    })
}

fn hash_key(wire: consistent_hash::Key, strings: &mut Interner) -> Result<HashKey, InvalidResource> {
    Ok(match wire {
        consistent_hash::Key::Header(name) => HashKey::Header(parts::name("consistent_hash.header", &name, strings)?),
        consistent_hash::Key::Cookie(found) => HashKey::Cookie {
            name: parts::name("consistent_hash.cookie.name", &found.name, strings)?,
            path: parts::text(found.path, strings),
            ttl: parts::duration("consistent_hash.cookie.ttl", found.ttl)?,
            attributes: parts::list("consistent_hash.cookie.attributes", bounds::ATTRIBUTES, found.attributes, |attribute| {
                Ok((strings.get(&attribute.name), strings.get(&attribute.value)))
            })?,
        },
        consistent_hash::Key::SourceAddress(()) => HashKey::SourceAddress,
        consistent_hash::Key::QueryParameter(name) => {
            HashKey::QueryParameter(parts::name("consistent_hash.query_parameter", &name, strings)?)
        }
    })
}

fn locality(wire: wire::Locality, strings: &mut Interner) -> Result<LocalityPreference, InvalidResource> {
    Ok(match parts::required("locality", wire.preference)? {
        locality::Preference::Failover(found) => LocalityPreference::Failover {
            regions: parts::list("failover.regions", bounds::LOCALITIES, found.regions, |region| {
                Ok((strings.get(&region.from), strings.get(&region.to)))
            })?,
            labels: parts::list("failover.labels", bounds::LOCALITIES, found.labels, |label| {
                Ok((strings.get(&label.key), parts::text(label.value, strings)))
            })?,
        },
        locality::Preference::Distribute(found) => {
            LocalityPreference::Distribute(parts::list("distribute.rules", bounds::LOCALITIES, found.rules, |rule| {
                Ok(Distribution {
                    from: locality_match(parts::required("distribute.from", rule.from)?, strings),
                    to: parts::list("distribute.to", bounds::LOCALITIES, rule.to, |share| {
                        let to = locality_match(parts::required("distribute.to", share.to)?, strings);
                        Ok((to, parts::percent("distribute.percent", share.percent)?.into()))
                    })?,
                })
            })?)
        }
    })
}

fn locality_match(wire: locality::Match, strings: &mut Interner) -> LocalityMatch {
    LocalityMatch {
        region: parts::text(wire.region, strings),
        zone: parts::text(wire.zone, strings),
        subzone: parts::text(wire.subzone, strings),
    }
}

fn warmup(wire: wire::Warmup) -> Result<Warmup, InvalidResource> {
    Ok(Warmup {
        duration: parts::required_duration("warmup.duration", wire.duration)?,
        minimum_percent: parts::real("warmup.minimum_percent", wire.minimum_percent)?,
        aggression: parts::real("warmup.aggression", wire.aggression)?,
    })
}

fn limits(wire: wire::Limits) -> Result<Limits, InvalidResource> {
    let budget = |found: limits::RetryBudget| -> Result<RetryBudget, InvalidResource> {
        Ok(RetryBudget { percent: parts::real("retry_budget.percent", found.percent)?, minimum_concurrency: found.minimum_concurrency })
    };
    let tcp = |found: limits::TcpKeepalive| -> Result<TcpKeepalive, InvalidResource> {
        Ok(TcpKeepalive {
            probes: found.probes,
            time: parts::duration("tcp_keepalive.time", found.time)?,
            interval: parts::duration("tcp_keepalive.interval", found.interval)?,
        })
    };
    let http2 = |found: limits::Http2Keepalive| -> Result<Http2Keepalive, InvalidResource> {
        Ok(Http2Keepalive {
            interval: parts::required_duration("http2_keepalive.interval", found.interval)?,
            timeout: parts::required_duration("http2_keepalive.timeout", found.timeout)?,
        })
    };
    Ok(Limits {
        max_connections: wire.max_connections,
        max_pending_requests: wire.max_pending_requests,
        max_requests: wire.max_requests,
        max_retries: wire.max_retries,
        retry_budget: wire.retry_budget.map(budget).transpose()?,
        max_requests_per_connection: wire.max_requests_per_connection,
        max_concurrent_streams: wire.max_concurrent_streams,
        connect_timeout: parts::required_duration("connect_timeout", wire.connect_timeout)?,
        idle_timeout: parts::duration("idle_timeout", wire.idle_timeout)?,
        max_connection_duration: parts::duration("max_connection_duration", wire.max_connection_duration)?,
        tcp_keepalive: wire.tcp_keepalive.map(tcp).transpose()?,
        http2_keepalive: wire.http2_keepalive.map(http2).transpose()?,
    })
}

fn outlier(wire: wire::Outlier) -> Result<OutlierDetection, InvalidResource> {
    Ok(OutlierDetection {
        consecutive_5xx: wire.consecutive_5xx,
        consecutive_gateway_errors: wire.consecutive_gateway_errors,
        consecutive_local_origin_failures: wire.consecutive_local_origin_failures,
        split_local_origin: wire.split_local_origin,
        error_statuses: parts::list("outlier.error_statuses", bounds::TOLD_VALUES, wire.error_statuses, |found| {
            parts::status("outlier.error_statuses", found)
        })?,
        interval: parts::required_duration("outlier.interval", wire.interval)?,
        base_ejection_time: parts::required_duration("outlier.base_ejection_time", wire.base_ejection_time)?,
        max_ejection_percent: parts::percent("outlier.max_ejection_percent", wire.max_ejection_percent)?,
    })
}

/// A mode that is not known is refused: without TLS the bytes would go out in a form that nobody asked for.
fn tls(wire: wire::UpstreamTls, strings: &mut Interner) -> Result<UpstreamTls, InvalidResource> {
    let upstream_tls::Mode::Simple(found) = parts::required("tls", wire.mode)?;
    Ok(UpstreamTls::Simple {
        server_name: parts::text(found.server_name, strings),
        subject_alt_names: parts::texts("tls.subject_alt_names", &found.subject_alt_names, strings)?,
        insecure_skip_verify: found.insecure_skip_verify,
    })
}

pub(super) fn to_wire(pool: &Pool) -> wire::Pool {
    let warmup = |warmup: &Warmup| wire::Warmup {
        duration: Some(parts::duration_to_wire(warmup.duration)),
        minimum_percent: warmup.minimum_percent,
        aggression: warmup.aggression,
    };
    wire::Pool {
        key: Some(parts::pool_key_to_wire(&pool.key)),
        labels: parts::labels_to_wire(&pool.labels),
        balancer: Some(balancer_to_wire(&pool.balancer)),
        locality: locality_to_wire(&pool.locality),
        warmup: pool.warmup.as_ref().map(warmup),
        limits: Some(limits_to_wire(&pool.limits)),
        outlier: pool.outlier.as_ref().map(outlier_to_wire),
        panic_threshold_percent: pool.panic_threshold_percent.into(),
        upstream_version: match pool.upstream_version {
            UpstreamVersion::FromPort => wire::UpstreamVersion::FromPort,
            UpstreamVersion::FromCaller => wire::UpstreamVersion::FromCaller,
            UpstreamVersion::Http2 => wire::UpstreamVersion::ForceHttp2,
        }
        .into(),
        tls: match &pool.tls {
            UpstreamTls::None => None,
            UpstreamTls::Simple { server_name, subject_alt_names, insecure_skip_verify } => Some(wire::UpstreamTls {
                mode: Some(upstream_tls::Mode::Simple(upstream_tls::Simple {
                    server_name: parts::text_to_wire(server_name),
                    subject_alt_names: parts::texts_to_wire(subject_alt_names),
                    insecure_skip_verify: *insecure_skip_verify,
                })),
            }),
        },
    }
}

fn balancer_to_wire(balancer: &Balancer) -> wire::Balancer {
    let kind = match balancer {
        Balancer::LeastRequest => balancer::Kind::LeastRequest(()),
        Balancer::RoundRobin => balancer::Kind::RoundRobin(()),
        Balancer::Random => balancer::Kind::Random(()),
        Balancer::Passthrough => balancer::Kind::Passthrough(()),
        Balancer::ConsistentHash { key, algorithm } => balancer::Kind::ConsistentHash(wire::ConsistentHash {
            key: Some(hash_key_to_wire(key)),
            algorithm: Some(match algorithm {
                HashAlgorithm::Ring { minimum_size } => consistent_hash::Algorithm::RingMinimumSize(*minimum_size),
                HashAlgorithm::Maglev { table_size } => consistent_hash::Algorithm::MaglevTableSize(*table_size),
            }),
        }),
    };
    wire::Balancer { kind: Some(kind) }
}

fn hash_key_to_wire(key: &HashKey) -> consistent_hash::Key {
    match key {
        HashKey::Header(name) => consistent_hash::Key::Header(name.to_string()),
        HashKey::Cookie { name, path, ttl, attributes } => consistent_hash::Key::Cookie(consistent_hash::Cookie {
            name: name.to_string(),
            path: parts::text_to_wire(path),
            ttl: ttl.map(parts::duration_to_wire),
            attributes: (attributes.iter())
                .map(|(name, value)| consistent_hash::Attribute { name: name.to_string(), value: value.to_string() })
                .collect(),
        }),
        HashKey::SourceAddress => consistent_hash::Key::SourceAddress(()),
        HashKey::QueryParameter(name) => consistent_hash::Key::QueryParameter(name.to_string()),
    }
}

fn locality_to_wire(preference: &LocalityPreference) -> Option<wire::Locality> {
    let found = |found: &LocalityMatch| locality::Match {
        region: parts::text_to_wire(&found.region),
        zone: parts::text_to_wire(&found.zone),
        subzone: parts::text_to_wire(&found.subzone),
    };
    let rule = |rule: &Distribution| locality::Rule {
        from: Some(found(&rule.from)),
        to: rule.to.iter().map(|(to, percent)| locality::Share { to: Some(found(to)), percent: *percent }).collect(),
    };
    let preference = match preference {
        LocalityPreference::None => return None,
        LocalityPreference::Failover { regions, labels } => locality::Preference::Failover(locality::Failover {
            regions: regions.iter().map(|(from, to)| locality::Region { from: from.to_string(), to: to.to_string() }).collect(),
            labels: (labels.iter())
                .map(|(key, value)| locality::Label { key: key.to_string(), value: parts::text_to_wire(value) })
                .collect(),
        }),
        LocalityPreference::Distribute(rules) => {
            locality::Preference::Distribute(locality::Distribute { rules: rules.iter().map(rule).collect() })
        }
    };
    Some(wire::Locality { preference: Some(preference) })
}

fn limits_to_wire(limits: &Limits) -> wire::Limits {
    wire::Limits {
        max_connections: limits.max_connections,
        max_pending_requests: limits.max_pending_requests,
        max_requests: limits.max_requests,
        max_retries: limits.max_retries,
        retry_budget: limits
            .retry_budget
            .map(|budget| limits::RetryBudget { percent: budget.percent, minimum_concurrency: budget.minimum_concurrency }),
        max_requests_per_connection: limits.max_requests_per_connection,
        max_concurrent_streams: limits.max_concurrent_streams,
        connect_timeout: Some(parts::duration_to_wire(limits.connect_timeout)),
        idle_timeout: limits.idle_timeout.map(parts::duration_to_wire),
        max_connection_duration: limits.max_connection_duration.map(parts::duration_to_wire),
        tcp_keepalive: limits.tcp_keepalive.map(|keepalive| limits::TcpKeepalive {
            probes: keepalive.probes,
            time: keepalive.time.map(parts::duration_to_wire),
            interval: keepalive.interval.map(parts::duration_to_wire),
        }),
        http2_keepalive: limits.http2_keepalive.map(|keepalive| limits::Http2Keepalive {
            interval: Some(parts::duration_to_wire(keepalive.interval)),
            timeout: Some(parts::duration_to_wire(keepalive.timeout)),
        }),
    }
}

fn outlier_to_wire(outlier: &OutlierDetection) -> wire::Outlier {
    wire::Outlier {
        consecutive_5xx: outlier.consecutive_5xx,
        consecutive_gateway_errors: outlier.consecutive_gateway_errors,
        consecutive_local_origin_failures: outlier.consecutive_local_origin_failures,
        split_local_origin: outlier.split_local_origin,
        error_statuses: outlier.error_statuses.iter().copied().map(u32::from).collect(),
        interval: Some(parts::duration_to_wire(outlier.interval)),
        base_ejection_time: Some(parts::duration_to_wire(outlier.base_ejection_time)),
        max_ejection_percent: outlier.max_ejection_percent.into(),
    }
}
