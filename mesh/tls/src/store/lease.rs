//! Who a certificate is kept for. Without a lease it is dropped [`LINGER`] later, whoever asked for it; so nothing that is late can
//! make the store ask for the certificate of a workload that is gone, again and again.

use std::time::Duration;

use tokio::sync::watch;

/// How long a certificate that nobody leases is kept: for what was accepted before its workload left, and no renewal longer.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// The wish that a certificate be kept and renewed; dropping it ends the wish.
#[derive(Debug)]
pub struct Lease {
    count: watch::Sender<usize>,
}

impl Lease {
    /// One more that is counted by `count`.
    pub(super) fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|leases| *leases += 1);
        Self { count: count.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.count.send_modify(|leases| *leases -= 1);
    }
}

/// Waits until there was no lease for [`LINGER`].
pub(super) async fn unleased(mut count: watch::Receiver<usize>) {
    loop {
        // The sender is the entry's, which ends whoever waits here when it goes.
        if count.wait_for(|leases| *leases == 0).await.is_err() {
            return;
        }
        if tokio::time::timeout(LINGER, count.wait_for(|leases| *leases > 0)).await.is_err() {
            return;
        }
    }
}
