//! Input of a component to `register` and `resolve`, as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| leasehold_wasmtime::fuzz::policy(data));
