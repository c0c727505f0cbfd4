//! Walking the boxes of an ISO base media file inside a byte slice, with every length
//! checked against the bytes that are there.

use super::Fault;

/// Type of a box, for example `*b"moov"`.
pub(super) type FourCc = [u8; 4];

/// A cursor over bytes. Reading past the end is a [`Fault`], never a panic.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// Name used in faults.
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        if n > self.bytes.len() {
            return Err(self.short(n));
        }
        let (head, tail) = self.bytes.split_at(n);
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Fault> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_be_bytes)
    }

    /// A 32-bit field in version 0 boxes, a 64-bit one in later versions.
    pub(super) fn u32_or_64(&mut self, version: u8) -> Result<u64, Fault> {
        if version == 0 {
            self.u32().map(u64::from)
        } else {
            self.u64()
        }
    }

    pub(super) fn fourcc(&mut self) -> Result<FourCc, Fault> {
        self.array()
    }

    /// Version and flags of a full box.
    pub(super) fn version_flags(&mut self) -> Result<(u8, u32), Fault> {
        let word = self.u32()?;
        Ok(((word >> 24) as u8, word & 0x00FF_FFFF))
    }

    /// A table: its entry count, checked against the bytes that follow, and those bytes.
    pub(super) fn table(&mut self, entry_size: usize) -> Result<(usize, &'a [u8]), Fault> {
        let count = self.u32()? as usize;
        let bytes = count
            .checked_mul(entry_size)
            .filter(|&n| n <= self.bytes.len())
            .ok_or_else(|| {
                Fault::corrupt(
                    self.what,
                    format!(
                        "{count} entries of {entry_size} bytes do not fit in {} bytes",
                        self.bytes.len()
                    ),
                )
            })?;
        Ok((count, self.take(bytes)?))
    }

    fn short(&self, n: usize) -> Fault {
        Fault::corrupt(
            self.what,
            format!("{n} bytes expected, {} left", self.bytes.len()),
        )
    }
}

/// Big-endian `u32` number `i` of a table of them, `None` past the end.
pub(super) fn u32_at(table: &[u8], i: usize) -> Option<u32> {
    let at = i.checked_mul(4)?;
    let bytes = table.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Big-endian `u64` number `i` of a table of them, `None` past the end.
pub(super) fn u64_at(table: &[u8], i: usize) -> Option<u64> {
    let at = i.checked_mul(8)?;
    let bytes = table.get(at..at.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// Iterates over the boxes directly inside `bytes`. A box whose length does not fit ends the
/// iteration with a fault; trailing bytes too short for a header are ignored, as players do.
pub(super) struct Boxes<'a> {
    bytes: &'a [u8],
    parent: &'static str,
}

impl<'a> Boxes<'a> {
    pub(super) fn new(bytes: &'a [u8], parent: &'static str) -> Self {
        Self { bytes, parent }
    }

    /// Contents of the first box of type `name`, if there is one.
    pub(super) fn find(self, name: &FourCc) -> Result<Option<&'a [u8]>, Fault> {
        for item in self {
            let (found, body) = item?;
            if &found == name {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }

    /// As [`Boxes::find`]; the absence of the box is a fault.
    pub(super) fn require(self, name: &'static FourCc) -> Result<&'a [u8], Fault> {
        let parent = self.parent;
        self.find(name)?.ok_or_else(|| {
            Fault::corrupt(
                parent,
                format!("box `{}` is missing", String::from_utf8_lossy(name)),
            )
        })
    }
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<(FourCc, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.len() < 8 {
            return None;
        }
        let mut cursor = Cursor::new(self.bytes, self.parent);
        let result = (|| {
            let size = u64::from(cursor.u32()?);
            let name = cursor.fourcc()?;
            let body = match size {
                0 => cursor.len(),
                1 => body_length(cursor.u64()?, 16, self.parent)?,
                n => body_length(n, 8, self.parent)?,
            };
            Ok((name, cursor.take(body)?))
        })();
        self.bytes = match &result {
            Ok(_) => cursor.rest(),
            Err(_) => &[],
        };
        Some(result)
    }
}

fn body_length(size: u64, header: u64, parent: &'static str) -> Result<usize, Fault> {
    size.checked_sub(header)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| Fault::corrupt(parent, format!("a box of {size} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let ok = [0, 0, 0, 9, b'a', b'b', b'c', b'd', 7, 0, 0];
        assert_eq!(
            Boxes::new(&ok, "test").find(b"abcd").unwrap(),
            Some(&[7u8][..])
        );
        for size in [2u8, 7, 200] {
            let mut bad = ok;
            bad[3] = size;
            assert!(Boxes::new(&bad, "test").find(b"zzzz").is_err(), "{size}");
        }
        // Size 0 means "to the end".
        let mut open = ok;
        open[3] = 0;
        assert_eq!(Boxes::new(&open, "test").require(b"abcd").unwrap().len(), 3);
    }

    #[test]
    fn a_table_must_fit() {
        let mut bytes = vec![0xFF; 4];
        bytes.extend([0; 16]);
        assert!(Cursor::new(&bytes, "t").table(8).is_err());
        bytes[..4].copy_from_slice(&2u32.to_be_bytes());
        assert_eq!(Cursor::new(&bytes, "t").table(8).unwrap().0, 2);
    }
}
