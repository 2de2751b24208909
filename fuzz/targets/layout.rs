//! Keys and values under the built-in layouts.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold::fuzz::layout(data));
