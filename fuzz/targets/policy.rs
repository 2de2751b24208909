//! What a component passes to `register` and `resolve`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_wasmtime::fuzz::policy(data));
