//! The codes that a tree gives, and reading one.

use crate::bits::Reader;
use crate::tree::Tree;

/// For each byte its code and the code's length in bits.
pub fn codes(tree: &Tree) -> [(u64, u32); 256] {
    let mut all = [(0, 0); 256];
    walk(tree, 0, 0, &mut all);
    all
}

fn walk(tree: &Tree, bits: u64, length: u32, all: &mut [(u64, u32); 256]) {
    match tree {
        Tree::Empty => {}
        Tree::Leaf(byte) => all[usize::from(*byte)] = (bits, length),
        Tree::Fork(left, right) => {
            walk(left, bits << 1, length + 1, all);
            walk(right, bits << 1 | 1, length + 1, all);
        }
    }
}

/// The next byte; None when the bits end first.
pub fn read(tree: &Tree, input: &mut Reader) -> Option<u8> {
    match tree {
        Tree::Empty => None,
        Tree::Leaf(byte) => Some(*byte),
        Tree::Fork(left, right) => {
            let next = if input.bit()? { right } else { left };
            read(next, input)
        }
    }
}
