//! tropisd as a process, over real TLS sockets, fed from a real folder of objects.

mod certificates;
mod configuration;
mod credentials;
mod endpoints;
mod harness;
