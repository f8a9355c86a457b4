//! Bodies on their way through: a request's, which may be kept for another try, and a response's, whose end is the request's end.
//!
//! Nothing is read that is not asked for, so a reader that stalls makes the writer wait.

mod budget;
pub mod download;
mod upload;

use std::io;

use thiserror::Error;

pub use self::{
    budget::Budget,
    download::{Payload, ResponseBody},
    upload::{RequestBody, Upload},
};

/// A body broke. What is on the other side of it is reset.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The side that sends it broke off, or sent what is no body.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// It had broken off before.
    #[error("the body had broken off before")]
    Gone,
    /// The request's time ran out while it was sent.
    #[error("the time for the request ran out")]
    Timeout,
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::other(error)
    }
}
