//! Any bytes as a program of operations on a `Stack`: see `tests/chaos/driver.rs`.
#![no_main]

#[path = "../../tests/chaos/driver.rs"]
mod driver;

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    driver::run(program);
});
