//! Entries of `allow.outbound` and the authorities of requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_cli::fuzz::destination(data));
