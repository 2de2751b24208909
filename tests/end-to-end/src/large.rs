//! A component with so much code in it that its compilation takes seconds.

use std::{fs, num::NonZero, thread};

use crate::paths;

/// Functions of the added code for each processor, and the branches in each function: about three seconds of each processor.
const FUNCTIONS: usize = 1500;
const BRANCHES: u32 = 64;

/// The component of that name with a core module in it that is compiled, and that nothing calls.
///
/// # Panics
/// When the component was not built.
pub fn large(component: &str) -> Vec<u8> {
    let mut bytes = fs::read(paths::component(component)).expect("it was built");
    section(&mut bytes, 1, &module());
    bytes
}

fn module() -> Vec<u8> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let count = u32::try_from(FUNCTIONS * processors).expect("a machine has few processors");
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type, of a function from i64 to i64, which all functions have.
    section(&mut module, 1, &[1, 0x60, 1, 0x7e, 1, 0x7e]);
    let mut functions = number(count);
    functions.resize(functions.len() + FUNCTIONS * processors, 0);
    section(&mut module, 3, &functions);
    let mut code = number(count);
    for function in 0..count {
        let body = body(function);
        code.extend(number(u32::try_from(body.len()).expect("a body is small")));
        code.extend(body);
    }
    section(&mut module, 10, &code);
    module
}

/// Branches on what the one local holds, one after the other.
fn body(function: u32) -> Vec<u8> {
    const LOCAL_GET: [u8; 2] = [0x20, 0];
    const LOCAL_SET: [u8; 2] = [0x21, 0];
    const LOCAL_TEE: [u8; 2] = [0x22, 0];
    // The last seven bits are zero, since the sign is among them.
    let constant = |value: u32| {
        let mut constant = [&[0x42], &number(value)[..]].concat();
        *constant.last_mut().expect("it has a first byte") |= 0x80;
        constant.push(0);
        constant
    };
    let mut body = vec![0];
    for branch in 0..BRANCHES {
        let seed = function.wrapping_mul(31).wrapping_add(branch) % 60 + 2;
        body.extend(LOCAL_GET);
        body.extend(constant(function + branch));
        body.extend([0x7e]); // i64.mul
        body.extend(LOCAL_TEE);
        body.extend(constant(seed));
        body.extend([0x82, 0x50, 0x04, 0x40]); // i64.rem_u, i64.eqz, if
        body.extend(LOCAL_GET);
        body.extend(constant(function));
        body.extend([0x85]); // i64.xor
        body.extend(LOCAL_SET);
        body.extend([0x05]); // else
        body.extend(LOCAL_GET);
        body.extend(constant(seed));
        body.extend([0x89]); // i64.rotl
        body.extend(LOCAL_SET);
        body.extend([0x0b]); // end
    }
    body.extend(LOCAL_GET);
    body.extend([0x0b]);
    body
}

fn section(bytes: &mut Vec<u8>, id: u8, content: &[u8]) {
    bytes.push(id);
    bytes.extend(number(u32::try_from(content.len()).expect("a section is small enough")));
    bytes.extend_from_slice(content);
}

/// A number as WebAssembly writes it, seven bits at a time.
fn number(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
