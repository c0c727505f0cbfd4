//! Elements of a large JSON file one by one: only one of them is in memory at a time.

use std::io::{BufRead, ErrorKind};
use std::path::{Path, PathBuf};

use crate::DataError;

/// Longest element in bytes. An SA-V file of one video, the largest element of any format read
/// here, stays well below.
const MAX_ITEM_BYTES: usize = 256 << 20;
/// Deepest nesting inside an element.
const MAX_DEPTH: usize = 128;

/// One element of an array, or one member of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonItem {
    /// Name of the member; `None` in an array.
    pub key: Option<String>,
    /// 0-based place in the container.
    pub index: u64,
    /// First byte of the value in the file.
    pub offset: u64,
    /// The value's bytes.
    pub bytes: Vec<u8>,
}

/// Iterates over the array or object at a path of keys, one element at a time.
///
/// Everything before it is skipped without being kept, what follows is not read. The text is
/// only split here; each value is parsed by serde_json.
#[derive(Debug)]
pub struct JsonItems<R> {
    input: Input<R>,
    object: bool,
    index: u64,
    done: bool,
}

impl<R: BufRead> JsonItems<R> {
    /// Goes to the container at `keys` (empty: the file itself).
    ///
    /// # Errors
    /// [`DataError::Json`] when there is none, or it is neither array nor object.
    pub fn new(reader: R, file: &Path, keys: &[&str]) -> Result<Self, DataError> {
        let mut input = Input {
            reader,
            file: file.into(),
            offset: 0,
            place: keys.join("."),
        };
        if input.peek()? == Some(0xEF) {
            for expected in [0xEF, 0xBB, 0xBF] {
                if input.next()? != Some(expected) {
                    return Err(input.error("not UTF-8"));
                }
            }
        }
        for key in keys {
            input.expect(b'{')?;
            loop {
                if input.skip_space()? == Some(b'}') {
                    return Err(input.error(format!("there is no member `{key}`")));
                }
                let name = input.string()?;
                input.expect(b':')?;
                if name == *key {
                    break;
                }
                input.value(None)?;
                if input.skip_space()? == Some(b',') {
                    input.next()?;
                }
            }
        }
        let object = match input.skip_space()? {
            Some(b'{') => true,
            Some(b'[') => false,
            Some(_) => return Err(input.error("expected an array or an object")),
            None => return Err(input.ended("where an array or an object is expected")),
        };
        input.next()?;
        Ok(Self {
            input,
            object,
            index: 0,
            done: false,
        })
    }

    fn read(&mut self) -> Result<Option<JsonItem>, DataError> {
        let close = if self.object { b'}' } else { b']' };
        match self.input.skip_space()? {
            Some(b) if b == close => return Ok(None),
            Some(b',') if self.index > 0 => {
                self.input.next()?;
            }
            Some(_) if self.index == 0 => {}
            Some(_) => return Err(self.input.error("expected `,` or the end of the container")),
            None => return Err(self.input.ended("inside the container")),
        }
        let key = if self.object {
            self.input.skip_space()?;
            let key = self.input.string()?;
            self.input.expect(b':')?;
            Some(key)
        } else {
            None
        };
        self.input.skip_space()?;
        let offset = self.input.offset;
        let mut bytes = Vec::new();
        self.input.value(Some(&mut bytes))?;
        let index = self.index;
        self.index += 1;
        Ok(Some(JsonItem {
            key,
            index,
            offset,
            bytes,
        }))
    }
}

impl<R: BufRead> Iterator for JsonItems<R> {
    type Item = Result<JsonItem, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

#[derive(Debug)]
struct Input<R> {
    reader: R,
    file: PathBuf,
    offset: u64,
    place: String,
}

impl<R: BufRead> Input<R> {
    fn error(&self, reason: impl Into<String>) -> DataError {
        let within = if self.place.is_empty() {
            String::new()
        } else {
            format!(" of `{}`", self.place)
        };
        DataError::Json {
            path: self.file.clone(),
            place: format!("byte {}{within}", self.offset),
            reason: reason.into(),
        }
    }

    fn ended(&self, place: &str) -> DataError {
        self.error(format!("the file ends {place}; fetch it again"))
    }

    fn peek(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            match self.reader.fill_buf() {
                Ok(buffer) => return Ok(buffer.first().copied()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(DataError::io(&self.file)(e)),
            }
        }
    }

    fn next(&mut self) -> Result<Option<u8>, DataError> {
        let byte = self.peek()?;
        if byte.is_some() {
            self.reader.consume(1);
            self.offset += 1;
        }
        Ok(byte)
    }

    fn skip_space(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\n' | b'\r') => {
                    self.next()?;
                }
                other => return Ok(other),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), DataError> {
        if self.skip_space()? == Some(byte) {
            self.next()?;
            return Ok(());
        }
        Err(self.error(format!("expected `{}`", byte as char)))
    }

    fn string(&mut self) -> Result<String, DataError> {
        if self.skip_space()? != Some(b'"') {
            return Err(self.error("expected a string"));
        }
        let mut bytes = Vec::new();
        self.value(Some(&mut bytes))?;
        serde_json::from_slice(&bytes).map_err(|e| self.error(e.to_string()))
    }

    /// Copies one value to `out`, or skips it. Whole buffers are taken at a time.
    fn value(&mut self, mut out: Option<&mut Vec<u8>>) -> Result<(), DataError> {
        self.skip_space()?;
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        let (mut started, mut kept) = (false, 0usize);
        loop {
            if self.peek()?.is_none() {
                // A bare number may end with the file.
                if started && depth == 0 && !quoted {
                    return Ok(());
                }
                return Err(self.ended("inside a value"));
            }
            let buffer = self.reader.fill_buf().unwrap_or_default();
            let (mut used, mut end) = (buffer.len(), false);
            for (i, byte) in buffer.iter().enumerate() {
                if quoted {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => {
                            quoted = false;
                            if depth == 0 {
                                (used, end) = (i + 1, true);
                                break;
                            }
                        }
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' if depth == 0 && started => {
                        (used, end) = (i, true);
                        break;
                    }
                    b'"' => quoted = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' | b',' | b':' | b' ' | b'\n' | b'\t' | b'\r' if depth == 0 => {
                        (used, end) = (i, true);
                        break;
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            (used, end) = (i + 1, true);
                            break;
                        }
                    }
                    _ => {}
                }
                started = true;
                if depth > MAX_DEPTH {
                    break;
                }
            }
            kept += used;
            if let Some(out) = out.as_deref_mut() {
                out.extend_from_slice(&buffer[..used]);
            }
            self.reader.consume(used);
            self.offset += used as u64;
            if depth > MAX_DEPTH {
                return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
            }
            if out.is_some() && kept > MAX_ITEM_BYTES {
                return Err(self.error(format!("an element above {MAX_ITEM_BYTES} bytes")));
            }
            if end {
                if kept == 0 {
                    return Err(self.error("expected a value"));
                }
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Cursor};

    fn items(
        text: &str,
        keys: &[&str],
        capacity: usize,
    ) -> Result<Vec<(String, String)>, DataError> {
        let reader = BufReader::with_capacity(capacity, Cursor::new(text.as_bytes().to_vec()));
        JsonItems::new(reader, Path::new("x.json"), keys)?
            .map(|item| {
                let item = item?;
                assert_eq!(
                    &text.as_bytes()[item.offset as usize..][..item.bytes.len()],
                    item.bytes
                );
                let name = item.key.unwrap_or_else(|| item.index.to_string());
                Ok((name, String::from_utf8_lossy(&item.bytes).into_owned()))
            })
            .collect()
    }

    #[test]
    fn arrays_and_objects_at_any_buffer_size() {
        let text = r#" {"info": {"a": [1, "]}\"", {}]}, "videos" : {"x\n": [1, 2] , "y":{"z":"}"},
            "n":-1.5e3 ,"s":"q"}, "tail": ["#;
        for capacity in [1, 2, 7, 4096] {
            let found = items(text, &["videos"], capacity).unwrap();
            let expected = [
                ("x\n", "[1, 2]"),
                ("y", r#"{"z":"}"}"#),
                ("n", "-1.5e3"),
                ("s", r#""q""#),
            ];
            assert_eq!(
                found,
                expected.map(|(a, b)| (a.to_string(), b.to_string())),
                "{capacity}"
            );
            let array = items("[1,{\"a\":2} ,\"b\"]", &[], capacity).unwrap();
            assert_eq!(array.len(), 3);
        }
        assert!(items("[]", &[], 8).unwrap().is_empty());
        assert!(items(" { } ", &[], 8).unwrap().is_empty());
    }

    #[test]
    fn broken_files_are_errors() {
        for (text, keys) in [
            ("", &[][..]),
            ("[1, 2", &[]),
            ("[1 2]", &[]),
            ("[,1]", &[]),
            ("[1,,2]", &[]),
            ("{\"a\" 1}", &[]),
            ("{\"a\": }", &[]),
            ("{1: 2}", &[]),
            ("\"text\"", &[]),
            ("{\"a\": 1}", &["b"]),
            ("{\"a\": 1}", &["a"]),
            ("[\"open]", &[]),
        ] {
            let error = items(text, keys, 3).unwrap_err();
            assert!(error.ends_dataset(), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(items(&deep, &[], 4096).is_err());
    }
}
