//! huffman [-d]: codes standard input, or decodes it.

use std::io::{Error, ErrorKind, Read, Write};

fn main() -> std::io::Result<()> {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input)?;
    let output = match std::env::args().nth(1).as_deref() {
        Some("-d") => huffman::decode(&input).ok_or_else(|| Error::new(ErrorKind::InvalidData, "this is not Huffman-coded"))?,
        Some("--version") => format!("huffman {}\n", env!("CARGO_PKG_VERSION")).into_bytes(),
        _ => huffman::encode(&input),
    };
    std::io::stdout().write_all(&output)
}
