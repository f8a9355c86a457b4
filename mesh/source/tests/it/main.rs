//! The source as its users see it: real folders, real inotify.

mod folder;
mod reports;
