//! Bits in bytes, the highest first.

#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    used: u32,
}

impl Writer {
    pub fn push(&mut self, bits: u64, length: u32) {
        for at in (0..length).rev() {
            if self.used % 8 == 0 {
                self.bytes.push(0);
            }
            let bit = u8::from(bits >> at & 1 == 1);
            *self.bytes.last_mut().expect("a byte was pushed") |= bit << (7 - self.used % 8);
            self.used += 1;
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }

    pub fn take(&mut self, length: u32) -> Option<u64> {
        (0..length).try_fold(0, |all, _| Some(all << 1 | u64::from(self.bit()?)))
    }
}
