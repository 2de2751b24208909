//! Decoder of HPACK's Huffman code (RFC 7541, appendix B).

/// Length of each symbol's code in bits, the end of a string last. The code is canonical: lengths alone define it.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: usize = 30;
/// End-of-string symbol, which must not occur in a string.
const END: u16 = 256;

/// Decoding table, indexed by the length of a code.
struct Code {
    /// First code of each length.
    first: [u32; LONGEST + 1],
    /// Number of codes of each length.
    count: [u32; LONGEST + 1],
    /// Index of each length's first symbol.
    offset: [usize; LONGEST + 1],
    /// Symbols in the order of their codes.
    symbols: [u16; LENGTHS.len()],
}

const CODE: Code = code();

const fn code() -> Code {
    let mut code = Code {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        symbols: [0; LENGTHS.len()],
    };
    let (mut next, mut placed, mut length) = (0, 0, 1);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.offset[length] = placed;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                code.count[length] += 1;
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Decodes a string. None for an invalid encoding.
pub(super) fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(encoded.len() * 2);
    let (mut bits, mut length) = (0_u32, 0);
    for byte in encoded {
        for position in (0..8).rev() {
            bits = bits << 1 | u32::from(byte >> position & 1);
            length += 1;
            let place = bits.wrapping_sub(CODE.first[length]);
            if place < CODE.count[length] {
                match CODE.symbols[CODE.offset[length] + place as usize] {
                    END => return None,
                    symbol => decoded.push(symbol as u8),
                }
                (bits, length) = (0, 0);
            } else if length == LONGEST {
                return None;
            }
        }
    }
    // The rest is padding: the beginning of `END`, which is all ones, and shorter than a byte.
    (length < 8 && bits == (1 << length) - 1).then_some(decoded)
}

/// Encodes a string, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let code_of = |symbol: u8| {
        let length = LENGTHS[symbol as usize] as usize;
        let place = CODE.symbols[CODE.offset[length]..].iter().position(|of| *of == u16::from(symbol)).unwrap();
        (CODE.first[length] + place as u32, length)
    };
    let mut bits: Vec<bool> = Vec::new();
    for symbol in text {
        let (code, length) = code_of(*symbol);
        bits.extend((0..length).rev().map(|position| code >> position & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), true);
    bits.chunks(8).map(|byte| byte.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{decode, encode};

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541, sections C.4.1 to C.4.3.
        let cases: [(&[u8], &str); 4] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf], "custom-value"),
        ];
        for (encoded, text) in cases {
            assert_eq!(decode(encoded).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn an_invalid_encoding_is_refused() {
        let bad: [&[u8]; 4] = [
            &[0xff],                   // Padding of a whole byte.
            &[0x1f, 0xff],             // The same after a symbol and its own padding.
            &[0x18],                   // Padding that is not ones.
            &[0xff, 0xff, 0xff, 0xff], // The end of a string.
        ];
        for encoded in bad {
            assert_eq!(decode(encoded), None, "{encoded:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_string_survives(text: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn another_decoder_agrees(encoded: Vec<u8>) {
            let theirs = loona_hpack::huffman::HuffmanDecoder::new().decode(&encoded);
            if let Some(ours) = decode(&encoded) {
                prop_assert_eq!(theirs.ok(), Some(ours));
            }
        }
    }
}
