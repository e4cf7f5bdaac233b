//! Bytes and varints (LEB128), read with bounds.

/// Appends a varint: seven bits a byte, the lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A place in bytes that are not trusted. Errors are what is wrong there.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What the offset of the first byte is called in messages.
    base: usize,
}

impl<'a> Reader<'a> {
    /// A reader at byte `at`, which is within `bytes` or at their end.
    pub(super) fn new(bytes: &'a [u8], at: usize, base: usize) -> Self {
        Self { bytes, at, base }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn offset(&self) -> usize {
        self.base + self.at
    }

    pub(super) fn at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let taken = self.rest().get(..length).ok_or("ends inside an event")?;
        self.at += length;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(super) fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for (i, &byte) in self.rest().iter().take(10).enumerate() {
            if i == 9 && byte > 1 {
                return Err("number of more than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                if byte == 0 && i > 0 {
                    return Err("number with a needless byte");
                }
                self.at += i + 1;
                return Ok(value);
            }
        }
        Err("ends inside a number")
    }

    /// A length of at most `max`.
    pub(super) fn length(&mut self, max: usize, too_long: &'static str) -> Result<usize, &'static str> {
        usize::try_from(self.varint()?).ok().filter(|length| *length <= max).ok_or(too_long)
    }
}
