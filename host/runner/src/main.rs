//! The binary `leasehold`.
mod config;
mod failure;
mod units;
mod yaml;
fn main() {}
