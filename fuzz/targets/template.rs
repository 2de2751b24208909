//! Layouts of users, and keys and values under these.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold::fuzz::template(data));
