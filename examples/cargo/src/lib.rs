//! Huffman coding of bytes: `encode` and `decode` are inverse to each other.

mod bits;
mod code;
mod tree;

use bits::{Reader, Writer};

/// The text's length, its byte counts, then the codes: everything that `decode` needs.
pub fn encode(text: &[u8]) -> Vec<u8> {
    let counts = tree::count(text);
    let codes = code::codes(&tree::build(&counts));
    let mut out = Writer::default();
    for count in counts {
        out.push(u64::from(count), 32);
    }
    for byte in text {
        let (bits, length) = codes[usize::from(*byte)];
        out.push(bits, length);
    }
    out.finish()
}

/// None when `data` was not made by `encode`.
pub fn decode(data: &[u8]) -> Option<Vec<u8>> {
    let mut input = Reader::new(data);
    let mut counts = [0u32; 256];
    for count in &mut counts {
        *count = u32::try_from(input.take(32)?).ok()?;
    }
    let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let tree = tree::build(&counts);
    (0..total).map(|_| code::read(&tree, &mut input)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        for text in [&b""[..], b"a", b"aaaa", b"abracadabra", &[0, 255, 0, 7]] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
    }

    #[test]
    fn is_shorter_for_uneven_text() {
        let text = [vec![b'e'; 5000], b"xyz".to_vec()].concat();
        assert!(encode(&text).len() < 1024 + 5000 / 4);
    }

    #[test]
    fn refuses_what_is_cut_off() {
        let data = encode(b"abracadabra");
        assert_eq!(decode(&data[..data.len() - 1]), None);
    }
}
