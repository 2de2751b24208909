//! A configuration file.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_cli::fuzz::config(data));
