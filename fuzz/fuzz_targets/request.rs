#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| resource_allocator_fuzz::request(data));
