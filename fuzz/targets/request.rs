//! The head of a request.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_cli::fuzz::request(data));
