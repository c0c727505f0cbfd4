//! Walking the boxes of an ISO base media file inside a byte slice, with every length
//! checked against the bytes that are there.

use std::path::Path;

use mp4_atom::{Atom, DecodeMaybe, FourCC, Header};

use crate::DataError;

/// Iterates over the boxes directly inside `bytes`. A box whose length does not fit ends the
/// iteration with an error; trailing bytes too short for a header are ignored, as players do.
#[derive(Clone, Copy)]
pub(super) struct Boxes<'a> {
    bytes: &'a [u8],
    /// The box around them, and the file: names for errors.
    parent: &'static str,
    pub(super) path: &'a Path,
}

impl<'a> Boxes<'a> {
    pub(super) fn new(bytes: &'a [u8], parent: &'static str, path: &'a Path) -> Self {
        Self {
            bytes,
            parent,
            path,
        }
    }

    pub(super) fn corrupt(self, reason: impl Into<String>) -> DataError {
        DataError::corrupt(self.path, self.parent, reason)
    }

    /// Contents of the first box of type `name`, if there is one.
    pub(super) fn find(mut self, name: FourCC) -> Result<Option<&'a [u8]>, DataError> {
        self.find_map(|item| match item {
            Ok((found, body)) => (found == name).then_some(Ok(body)),
            Err(error) => Some(Err(error)),
        })
        .transpose()
    }

    /// Contents of the first box of type `name`, which must be there.
    pub(super) fn require(self, name: FourCC) -> Result<&'a [u8], DataError> {
        let missing = || self.corrupt(format!("box `{name}` is missing"));
        self.find(name)?.ok_or_else(missing)
    }

    /// The boxes inside the first box of a type, none if there is no such box.
    pub(super) fn inside(self, name: &'static str) -> Result<Boxes<'a>, DataError> {
        let mut letters = [0; 4];
        letters.copy_from_slice(name.as_bytes());
        let bytes = self.find(letters.into())?.unwrap_or_default();
        Ok(Boxes::new(bytes, name, self.path))
    }

    /// The first box of a kind, decoded, if there is one.
    pub(super) fn get<T: Atom>(self) -> Result<Option<T>, DataError> {
        let body = self.find(T::KIND)?;
        body.map(|body| self.decode(body)).transpose()
    }

    /// The first box of a kind, decoded; its absence is an error.
    pub(super) fn need<T: Atom>(self) -> Result<T, DataError> {
        self.decode(self.require(T::KIND)?)
    }

    /// Decodes the contents of a box. Tables are read entry by entry, so that one which claims more
    /// entries than it holds ends with an error. Bytes after what a box is known to hold are
    /// ignored.
    pub(super) fn decode<T: Atom>(self, mut body: &[u8]) -> Result<T, DataError> {
        let what = format!("box `{}` of {} bytes", T::KIND, body.len());
        T::decode_body(&mut body).map_err(|e| self.corrupt(format!("{what}: {e}")))
    }
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<(FourCC, &'a [u8]), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = std::mem::take(&mut self.bytes);
        let header = match Header::decode_maybe(&mut rest) {
            Ok(header) => header?,
            Err(e) => return Some(Err(self.corrupt(format!("a box: {e}")))),
        };
        let size = header.size.unwrap_or(rest.len());
        let Some((body, tail)) = rest.split_at_checked(size) else {
            let reason = format!("box `{}` of {size} bytes, {} left", header.kind, rest.len());
            return Some(Err(self.corrupt(reason)));
        };
        self.bytes = tail;
        Some(Ok((header.kind, body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(bytes: &[u8]) -> Boxes<'_> {
        Boxes::new(bytes, "test", Path::new("x.mp4"))
    }

    #[test]
    fn lengths_are_checked() {
        let ok = [0, 0, 0, 9, b'a', b'b', b'c', b'd', 7, 0, 0];
        assert_eq!(boxes(&ok).require(b"abcd".into()).unwrap(), &[7u8][..]);
        assert!(boxes(&ok).require(b"zzzz".into()).is_err());
        for size in [2u8, 7, 200] {
            let mut bad = ok;
            bad[3] = size;
            assert!(boxes(&bad).find(b"zzzz".into()).is_err(), "{size}");
        }
        // Size 0 means "to the end".
        let mut open = ok;
        open[3] = 0;
        assert_eq!(boxes(&open).require(b"abcd".into()).unwrap().len(), 3);
    }

    #[test]
    fn a_table_must_fit() {
        let mut body = vec![0; 4];
        body.extend([0xFF; 4]);
        body.extend([0; 16]);
        assert!(boxes(&[]).decode::<mp4_atom::Co64>(&body).is_err());
        body[4..8].copy_from_slice(&2u32.to_be_bytes());
        let table: mp4_atom::Co64 = boxes(&[]).decode(&body).unwrap();
        assert_eq!(table.entries, [0, 0]);
    }
}
