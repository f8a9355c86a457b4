//! The kinds of object that the mesh knows by name, and how far each is obeyed.

use std::fmt;

/// How far the mesh obeys a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Read and obeyed.
    Honoured,
    /// Read where another object needs it (an owner's name, an account).
    Consulted,
    /// Known by name; nothing obeys it yet, and every object of it gets a finding that says so.
    NotHonoured,
    /// Kubernetes' business alone; accepted in silence.
    Foreign,
    /// Not known.
    Unknown,
}

macro_rules! kinds {
    ($($variant:ident $group:literal [$($version:literal),*] $scope:ident $support:ident $doc:literal;)*) => {
        /// A kind of object. `Other` is any kind that is not in the list, `File` stands for a document whose kind cannot be read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $doc] $variant,)*
            /// A kind that the mesh does not know.
            Other,
            /// A document that has no readable kind.
            File,
        }

        impl Kind {
            /// Every kind that is known by name.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name as written in `kind:`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => kinds!(@name $variant),)*
                    Self::Other => "Other",
                    Self::File => "File",
                }
            }

            /// The API group, empty for the core one.
            pub fn group(self) -> &'static str {
                match self {
                    $(Self::$variant => $group,)*
                    Self::Other | Self::File => "",
                }
            }

            /// The versions that are served, the preferred one first.
            pub fn versions(self) -> &'static [&'static str] {
                match self {
                    $(Self::$variant => &[$($version),*],)*
                    Self::Other | Self::File => &[],
                }
            }

            /// Whether objects of this kind live in a namespace.
            pub fn is_namespaced(self) -> bool {
                match self {
                    $(Self::$variant => kinds!(@scope $scope),)*
                    Self::Other => true,
                    Self::File => false,
                }
            }

            /// How far the mesh obeys it.
            pub fn support(self) -> Support {
                match self {
                    $(Self::$variant => Support::$support,)*
                    Self::Other | Self::File => Support::Unknown,
                }
            }
        }
    };
    (@scope Namespaced) => { true };
    (@scope Cluster) => { false };
    (@name IstioGateway) => { "Gateway" };
    (@name $variant:ident) => { stringify!($variant) };
}

kinds! {
    Namespace "" ["v1"] Cluster Honoured "A namespace; its labels enrol.";
    Node "" ["v1"] Cluster Honoured "A node; its labels give the locality.";
    Pod "" ["v1"] Namespaced Honoured "A pod.";
    Service "" ["v1"] Namespaced Honoured "A service.";
    ServiceAccount "" ["v1"] Namespaced Consulted "A service account.";
    ConfigMap "" ["v1"] Namespaced Consulted "A config map.";
    Secret "" ["v1"] Namespaced Consulted "A secret.";
    Deployment "apps" ["v1"] Namespaced Consulted "A deployment.";
    ReplicaSet "apps" ["v1"] Namespaced Consulted "A replica set.";
    StatefulSet "apps" ["v1"] Namespaced Consulted "A stateful set.";
    DaemonSet "apps" ["v1"] Namespaced Consulted "A daemon set.";
    Job "batch" ["v1"] Namespaced Consulted "A job.";
    CronJob "batch" ["v1"] Namespaced Consulted "A cron job.";
    EndpointSlice "discovery.k8s.io" ["v1"] Namespaced Honoured "Endpoints of a service.";
    Endpoints "" ["v1"] Namespaced Foreign "Endpoints in the old form; EndpointSlice is read instead.";
    Event "" ["v1"] Namespaced Foreign "An event.";
    LimitRange "" ["v1"] Namespaced Foreign "Limits of a namespace.";
    ResourceQuota "" ["v1"] Namespaced Foreign "A quota.";
    PersistentVolume "" ["v1"] Cluster Foreign "A volume.";
    PersistentVolumeClaim "" ["v1"] Namespaced Foreign "A claim of a volume.";
    Role "rbac.authorization.k8s.io" ["v1"] Namespaced Foreign "Rights in a namespace.";
    RoleBinding "rbac.authorization.k8s.io" ["v1"] Namespaced Foreign "Who has rights in a namespace.";
    ClusterRole "rbac.authorization.k8s.io" ["v1"] Cluster Foreign "Rights in the cluster.";
    ClusterRoleBinding "rbac.authorization.k8s.io" ["v1"] Cluster Foreign "Who has rights in the cluster.";
    NetworkPolicy "networking.k8s.io" ["v1"] Namespaced Foreign "Kubernetes' own L3 policy; the network plugin's business.";
    Ingress "networking.k8s.io" ["v1"] Namespaced NotHonoured "Kubernetes' ingress.";
    IngressClass "networking.k8s.io" ["v1"] Cluster Foreign "A class of ingress.";
    HorizontalPodAutoscaler "autoscaling" ["v2", "v1"] Namespaced Foreign "An autoscaler.";
    PodDisruptionBudget "policy" ["v1"] Namespaced Foreign "A disruption budget.";
    CustomResourceDefinition "apiextensions.k8s.io" ["v1"] Cluster Foreign "A definition of a kind.";
    AuthorizationPolicy "security.istio.io" ["v1", "v1beta1"] Namespaced Honoured "Who may call whom.";
    PeerAuthentication "security.istio.io" ["v1", "v1beta1"] Namespaced Honoured "Whether mutual TLS is demanded.";
    RequestAuthentication "security.istio.io" ["v1", "v1beta1"] Namespaced NotHonoured "Which JWTs are accepted.";
    VirtualService "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced Honoured "Istio's routes.";
    DestinationRule "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced Honoured "Istio's policies towards a destination.";
    IstioGateway "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced NotHonoured "Istio's Gateway (written `Gateway`).";
    ServiceEntry "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced NotHonoured "A service outside the cluster.";
    Sidecar "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced NotHonoured "Settings of sidecars; ambient has none.";
    WorkloadEntry "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced NotHonoured "A workload outside the cluster.";
    WorkloadGroup "networking.istio.io" ["v1", "v1beta1", "v1alpha3"] Namespaced NotHonoured "A template of workload entries.";
    EnvoyFilter "networking.istio.io" ["v1alpha3", "v1beta1", "v1"] Namespaced NotHonoured "A patch of Envoy's configuration.";
    ProxyConfig "networking.istio.io" ["v1beta1"] Namespaced NotHonoured "Settings of proxies.";
    Telemetry "telemetry.istio.io" ["v1", "v1alpha1"] Namespaced NotHonoured "What is observed.";
    WasmPlugin "extensions.istio.io" ["v1alpha1"] Namespaced NotHonoured "A WebAssembly filter.";
    TrafficExtension "extensions.istio.io" ["v1alpha1"] Namespaced NotHonoured "A filter of the user's own.";
    IstioOperator "install.istio.io" ["v1alpha1"] Namespaced NotHonoured "An installation of Istio.";
    GatewayClass "gateway.networking.k8s.io" ["v1", "v1beta1"] Cluster NotHonoured "Gateway API: a class of gateways.";
    Gateway "gateway.networking.k8s.io" ["v1", "v1beta1"] Namespaced Honoured "Gateway API: a gateway or waypoint.";
    HTTPRoute "gateway.networking.k8s.io" ["v1", "v1beta1"] Namespaced NotHonoured "Gateway API: HTTP routes.";
    GRPCRoute "gateway.networking.k8s.io" ["v1"] Namespaced NotHonoured "Gateway API: gRPC routes.";
    TCPRoute "gateway.networking.k8s.io" ["v1", "v1alpha2"] Namespaced NotHonoured "Gateway API: TCP routes.";
    TLSRoute "gateway.networking.k8s.io" ["v1", "v1alpha3", "v1alpha2"] Namespaced NotHonoured "Gateway API: TLS routes.";
    UDPRoute "gateway.networking.k8s.io" ["v1alpha2"] Namespaced NotHonoured "Gateway API: UDP routes.";
    ReferenceGrant "gateway.networking.k8s.io" ["v1", "v1beta1"] Namespaced NotHonoured "Gateway API: leave to refer across namespaces.";
    BackendTLSPolicy "gateway.networking.k8s.io" ["v1", "v1alpha3"] Namespaced NotHonoured "Gateway API: TLS towards a backend.";
}

/// `apiVersion` and `kind` read as a [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A kind that is known, in a version that is served.
    Known(Kind),
    /// A kind that is known, in a version that is not.
    Version(Kind),
    /// A kind that is not known.
    Other,
}

impl Kind {
    /// Reads `apiVersion` and `kind`.
    pub fn named(api_version: &str, kind: &str) -> Named {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match Self::ALL.iter().find(|known| known.as_str() == kind && known.group() == group) {
            Some(known) if known.versions().contains(&version) => Named::Known(*known),
            Some(known) => Named::Version(*known),
            None => Named::Other,
        }
    }

    /// The preferred `apiVersion`.
    pub fn api_version(self) -> String {
        let version = self.versions().first().copied().unwrap_or_default();
        if self.group().is_empty() { version.to_owned() } else { format!("{}/{version}", self.group()) }
    }

    /// The word that stands for the kind in folder names: unique and lower case (`pod`, `istiogateway`).
    pub fn folder(self) -> String {
        match self {
            Self::IstioGateway => "istiogateway".to_owned(),
            kind => kind.as_str().to_ascii_lowercase(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_with_group_and_version() {
        assert_eq!(Kind::named("v1", "Pod"), Named::Known(Kind::Pod));
        assert_eq!(Kind::named("networking.istio.io/v1beta1", "Gateway"), Named::Known(Kind::IstioGateway));
        assert_eq!(Kind::named("gateway.networking.k8s.io/v1", "Gateway"), Named::Known(Kind::Gateway));
        assert_eq!(Kind::named("security.istio.io/v2", "PeerAuthentication"), Named::Version(Kind::PeerAuthentication));
        assert_eq!(Kind::named("example.com/v1", "Pod"), Named::Other);
    }

    #[test]
    fn names_of_every_kind_lead_back_to_it_and_folders_differ() {
        let mut folders = std::collections::BTreeSet::new();
        for kind in Kind::ALL {
            assert_eq!(Kind::named(&kind.api_version(), kind.as_str()), Named::Known(*kind));
            assert!(folders.insert(kind.folder()), "{kind:?}");
        }
    }
}
