//! From outside: bytes that a simple generator makes come back.

#[test]
fn pseudo_random_bytes_come_back() {
    let mut state = 12345u32;
    let text: Vec<u8> = (0..10_000)
        .map(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            ((state >> 16) % 23) as u8
        })
        .collect();
    assert_eq!(huffman::decode(&huffman::encode(&text)), Some(text));
}
