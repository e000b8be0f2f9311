//! The tree: the two rarest are joined until one is left. Equal counts are told apart by age, so that both sides build the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

pub enum Tree {
    Empty,
    Leaf(u8),
    Fork(Box<Tree>, Box<Tree>),
}

pub fn count(text: &[u8]) -> [u32; 256] {
    let mut counts = [0; 256];
    for byte in text {
        counts[usize::from(*byte)] += 1;
    }
    counts
}

pub fn build(counts: &[u32; 256]) -> Tree {
    let mut trees: Vec<Option<Tree>> = Vec::new();
    let mut heap = BinaryHeap::new();
    for byte in 0..=255u8 {
        let count = u64::from(counts[usize::from(byte)]);
        if count > 0 {
            heap.push(Reverse((count, trees.len())));
            trees.push(Some(Tree::Leaf(byte)));
        }
    }
    while heap.len() > 1 {
        let (Reverse((rare, left)), Reverse((other, right))) = (heap.pop().expect("two"), heap.pop().expect("two"));
        let fork = Tree::Fork(Box::new(trees[left].take().expect("unused")), Box::new(trees[right].take().expect("unused")));
        heap.push(Reverse((rare + other, trees.len())));
        trees.push(Some(fork));
    }
    trees.pop().flatten().unwrap_or(Tree::Empty)
}
