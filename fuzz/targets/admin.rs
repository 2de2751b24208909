//! The head of a request to the admin endpoint.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_cli::fuzz::admin(data));
