//! Walking the boxes of an ISO base media file inside a byte slice, with every length
//! checked against the bytes that are there.

use mp4_atom::{Atom, DecodeMaybe, FourCC, Header};

use super::Fault;

/// Iterates over the boxes directly inside `bytes`. A box whose length does not fit ends the
/// iteration with a fault; trailing bytes too short for a header are ignored, as players do.
#[derive(Clone, Copy)]
pub(super) struct Boxes<'a> {
    bytes: &'a [u8],
    parent: &'static str,
}

impl<'a> Boxes<'a> {
    pub(super) fn new(bytes: &'a [u8], parent: &'static str) -> Self {
        Self { bytes, parent }
    }

    /// Contents of the first box of type `name`, if there is one.
    pub(super) fn find(mut self, name: FourCC) -> Result<Option<&'a [u8]>, Fault> {
        self.find_map(|item| match item {
            Ok((found, body)) => (found == name).then_some(Ok(body)),
            Err(fault) => Some(Err(fault)),
        })
        .transpose()
    }

    /// The boxes inside the first box of type `name`, which must be there.
    pub(super) fn inside(self, name: &'static str) -> Result<Boxes<'a>, Fault> {
        Ok(Boxes::new(self.require(name)?, name))
    }

    /// Contents of the first box of type `name`, which must be there.
    pub(super) fn require(self, name: &str) -> Result<&'a [u8], Fault> {
        let mut letters = [0; 4];
        letters.copy_from_slice(name.as_bytes());
        let missing = || Fault::corrupt(self.parent, format!("box `{name}` is missing"));
        self.find(letters.into())?.ok_or_else(missing)
    }

    /// The first box of a kind, decoded, if there is one.
    pub(super) fn get<T: Atom>(self) -> Result<Option<T>, Fault> {
        let body = self.find(T::KIND)?;
        body.map(|body| decode(body, self.parent)).transpose()
    }

    /// The first box of a kind, decoded; its absence is a fault.
    pub(super) fn need<T: Atom>(self) -> Result<T, Fault> {
        let missing = || Fault::corrupt(self.parent, format!("box `{}` is missing", T::KIND));
        self.get()?.ok_or_else(missing)
    }
}

/// Decodes the contents of a box. Tables are read entry by entry, so that one which claims more
/// entries than it holds ends with a fault. Bytes after what the box is known to hold are ignored.
pub(super) fn decode<T: Atom>(mut body: &[u8], parent: &'static str) -> Result<T, Fault> {
    let size = body.len();
    T::decode_body(&mut body)
        .map_err(|e| Fault::corrupt(parent, format!("box `{}` of {size} bytes: {e}", T::KIND)))
}

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<(FourCC, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = std::mem::take(&mut self.bytes);
        let header = match Header::decode_maybe(&mut rest) {
            Ok(header) => header?,
            Err(e) => return Some(Err(Fault::corrupt(self.parent, format!("a box: {e}")))),
        };
        let size = header.size.unwrap_or(rest.len());
        let Some((body, tail)) = rest.split_at_checked(size) else {
            let reason = format!("box `{}` of {size} bytes, {} left", header.kind, rest.len());
            return Some(Err(Fault::corrupt(self.parent, reason)));
        };
        self.bytes = tail;
        Some(Ok((header.kind, body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let ok = [0, 0, 0, 9, b'a', b'b', b'c', b'd', 7, 0, 0];
        assert_eq!(Boxes::new(&ok, "test").require("abcd").unwrap(), &[7u8][..]);
        for size in [2u8, 7, 200] {
            let mut bad = ok;
            bad[3] = size;
            assert!(
                Boxes::new(&bad, "test").find(b"zzzz".into()).is_err(),
                "{size}"
            );
        }
        // Size 0 means "to the end".
        let mut open = ok;
        open[3] = 0;
        assert_eq!(Boxes::new(&open, "test").require("abcd").unwrap().len(), 3);
    }

    #[test]
    fn a_table_must_fit() {
        let mut body = vec![0; 4];
        body.extend([0xFF; 4]);
        body.extend([0; 16]);
        assert!(decode::<mp4_atom::Co64>(&body, "t").is_err());
        body[4..8].copy_from_slice(&2u32.to_be_bytes());
        let table: mp4_atom::Co64 = decode(&body, "t").unwrap();
        assert_eq!(table.entries, [0, 0]);
    }
}
