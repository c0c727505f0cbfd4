//! Decoded pictures of an MP4 file in the order they are asked for, in bounded memory.

use std::collections::{BTreeMap, HashMap};

use super::h264::{Picture, PictureDecoder};
use super::mp4_reader::Mp4Reader;
use super::source::ReadSeek;
use super::{NO_PICTURE, VideoReader};
use crate::DataError;

/// Most decoded pictures held for reordering. H.264 needs at most 16 (Annex A.3.1).
const MAX_HELD: usize = 24;

/// Decodes in decoding order, returns in the order of the samples asked for.
///
/// Decoding begins at the entry point before a sample that is asked for and leaves out pictures
/// nothing depends on. If the fast decoder fails, the general one delivers the rest.
pub(super) struct Pictures<'a> {
    reader: &'a Mp4Reader,
    file: Box<dyn ReadSeek>,
    buffer: Vec<u8>,
    decoder: Option<PictureDecoder<'a>>,
    fast: bool,
    /// Next sample to decode, and one past the last that is.
    cursor: u32,
    end: u32,
    /// Samples asked for, and the next of them to return.
    wanted: Vec<u32>,
    next: usize,
    /// Last place of each sample in `wanted`.
    place: HashMap<u32, usize>,
    /// Decoded pictures by sample.
    held: BTreeMap<u32, Picture>,
    /// Samples that may still be decoded. An order that has nothing to do with the decoding order
    /// would have us start over for every picture.
    budget: usize,
}

impl<'a> Pictures<'a> {
    /// Pictures of the samples `wanted`, in that order.
    pub(super) fn new(reader: &'a Mp4Reader, wanted: Vec<u32>) -> Result<Self, DataError> {
        Ok(Self {
            file: reader.source.open()?,
            buffer: Vec::new(),
            decoder: None,
            fast: reader.config.fast(),
            cursor: 0,
            end: wanted.iter().max().map_or(0, |last| last + 1),
            place: wanted.iter().copied().zip(0..).collect(),
            wanted,
            next: 0,
            held: BTreeMap::new(),
            budget: reader.movie.samples.len().saturating_mul(8) + 1024,
            reader,
        })
    }

    /// Starts a decoder at `entry`, the entry point before `sample`.
    fn restart(&mut self, sample: u32, entry: u32) -> Result<(), DataError> {
        self.held.clear();
        self.cursor = entry;
        let decoder = PictureDecoder::new(&self.reader.config, self.fast);
        self.decoder = Some(decoder.map_err(|e| self.reader.decode_error(sample, e))?);
        Ok(())
    }

    /// Decodes one more sample, or drains the decoder after the last one.
    fn advance(&mut self) -> Result<(), DataError> {
        let number = self.cursor;
        self.cursor += 1;
        let Some(decoder) = &mut self.decoder else {
            return Ok(());
        };
        let (place, next, held) = (&self.place, self.next, &mut self.held);
        let needed = |number: u32| place.get(&number).is_some_and(|at| *at >= next);
        let hold = |number: u32, picture: Picture| {
            if needed(number) {
                held.insert(number, picture);
            }
            if held.len() > MAX_HELD {
                let latest = held.keys().copied().max_by_key(|n| place[n]);
                latest.and_then(|n| held.remove(&n));
            }
        };
        let decoded = if number < self.end {
            let (reader, buffer) = (self.reader, &mut self.buffer);
            reader.read_sample(&mut *self.file, number, buffer)?;
            if !needed(number) && !reader.config.inspect(buffer).reference {
                return Ok(());
            }
            decoder.decode(number, buffer, hold)
        } else {
            decoder.flush(hold)
        };
        decoded.map_err(|e| self.reader.decode_error(number, e))
    }

    /// The next picture; none after the last, and when `stopped`.
    pub(super) fn next(
        &mut self,
        stopped: impl Fn() -> bool,
    ) -> Result<Option<Picture>, DataError> {
        let Some(&sample) = self.wanted.get(self.next) else {
            return Ok(None);
        };
        let mut restarted = false;
        while !self.held.contains_key(&sample) {
            if stopped() {
                return Ok(None);
            }
            let owed =
                self.cursor <= self.end && self.decoder.as_ref().is_some_and(|d| d.owes(sample));
            let passed = self.cursor > sample && !owed;
            let ahead = self.reader.announced_entry(sample) > self.cursor;
            let mut started = Ok(());
            if self.decoder.is_none() || ((passed || ahead) && !restarted) {
                let entry = self.reader.entry_point(&mut *self.file, sample)?;
                if self.decoder.is_none() || passed || entry > self.cursor {
                    started = self.restart(sample, entry);
                }
                restarted = true;
            } else if passed {
                return Err(self.reader.decode_error(sample, NO_PICTURE));
            }
            self.budget = self.budget.saturating_sub(1);
            if self.budget == 0 {
                let reason = "the presentation order is too far from the decoding order";
                return Err(DataError::corrupt(self.reader.path(), "ctts", reason));
            }
            match started.and_then(|()| self.advance()) {
                Err(error @ DataError::Decode { .. }) if self.fast => {
                    tracing::warn!(%error, "decoding again with the general decoder");
                    self.fast = false;
                    self.decoder = None;
                    restarted = false;
                }
                result => result?,
            }
        }
        self.next += 1;
        // A picture shown twice in a row stays for the second time.
        Ok(match self.wanted.get(self.next) {
            Some(again) if *again == sample => self.held.get(&sample).cloned(),
            _ => self.held.remove(&sample),
        })
    }
}
