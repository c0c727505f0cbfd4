//! Frames of an MP4 file one after the other, in bounded memory.

use std::collections::BTreeMap;

use super::h264::{Picture, PictureDecoder};
use super::mp4_reader::Mp4Reader;
use super::source::ReadSeek;
use super::{NO_PICTURE, VideoReader};
use crate::{DataError, TimedFrame};

/// Most decoded pictures held for reordering. H.264 needs at most 16 (Annex A.3.1).
const MAX_HELD: usize = 24;

/// Decodes in decoding order, returns in presentation order.
pub(super) struct Mp4Stream<'a> {
    reader: &'a Mp4Reader,
    file: Box<dyn ReadSeek>,
    buffer: Vec<u8>,
    decoder: Option<PictureDecoder<'a>>,
    fast: bool,
    /// Next sample to decode.
    cursor: u32,
    /// Next frame to return.
    next: usize,
    /// First frame each sample is shown as; `u32::MAX` for none.
    place: Vec<u32>,
    /// Decoded pictures by sample.
    held: BTreeMap<u32, Picture>,
    /// Samples that may still be decoded. A file whose presentation order has nothing to do
    /// with its decoding order would have us start over for every frame.
    budget: usize,
}

impl<'a> Mp4Stream<'a> {
    pub(super) fn new(reader: &'a Mp4Reader, start: usize) -> Result<Self, DataError> {
        let samples = reader.movie.samples.len();
        let mut place = vec![u32::MAX; samples];
        for (i, shown) in reader.movie.shown.iter().enumerate().rev() {
            place[shown.sample as usize] = i as u32;
        }
        Ok(Self {
            file: reader.file()?,
            buffer: Vec::new(),
            decoder: None,
            fast: reader.config.fast(),
            cursor: 0,
            next: start,
            place,
            held: BTreeMap::new(),
            budget: samples.saturating_mul(8) + 1024,
            reader,
        })
    }

    /// Starts a decoder at `entry`, the entry point before `sample`.
    fn restart(&mut self, sample: u32, entry: u32) -> Result<(), DataError> {
        self.held.clear();
        self.cursor = entry;
        self.decoder = Some(
            PictureDecoder::new(&self.reader.config, self.fast)
                .map_err(|e| self.reader.decode_error(sample, e))?,
        );
        Ok(())
    }

    /// Decodes one more sample, or drains the decoder after the last one.
    fn advance(&mut self) -> Result<(), String> {
        let number = self.cursor;
        let Self {
            decoder: Some(decoder),
            held,
            place,
            buffer,
            next,
            fast,
            ..
        } = self
        else {
            return Err("no decoder".into());
        };
        let mut hold = |number: u32, picture: Picture| {
            let shown = place[number as usize];
            if shown == u32::MAX || (shown as usize) < *next {
                return;
            }
            held.insert(number, picture);
            if held.len() > MAX_HELD {
                let latest = held.keys().copied().max_by_key(|&n| place[n as usize]);
                latest.and_then(|n| held.remove(&n));
            }
        };
        self.cursor = number.saturating_add(1);
        if number as usize >= place.len() {
            return decoder.flush(hold);
        }
        let shown = place[number as usize];
        // The general decoder is fed everything: it returns a picture with the next one.
        let skippable = *fast && (shown == u32::MAX || (shown as usize) < *next);
        if skippable && !self.reader.config.inspect(buffer).reference {
            return Ok(());
        }
        decoder.decode(number, buffer, &mut hold)
    }

    fn produce(&mut self) -> Result<TimedFrame, DataError> {
        let shown = self.reader.movie.shown[self.next];
        let mut restarted = false;
        while !self.held.contains_key(&shown.sample) {
            let passed = self.cursor > shown.sample && !self.still_coming(shown.sample);
            let ahead = self.reader.announced_entry(shown.sample) > self.cursor;
            if self.decoder.is_none() || ((passed || ahead) && !restarted) {
                let entry = self.reader.entry_point(&mut *self.file, shown.sample)?;
                if self.decoder.is_none() || passed || entry > self.cursor {
                    self.restart(shown.sample, entry)?;
                }
                restarted = true;
            } else if passed {
                return Err(self.reader.decode_error(shown.sample, NO_PICTURE));
            }
            self.budget = self.budget.saturating_sub(1);
            if self.budget == 0 {
                let reason = "the presentation order is too far from the decoding order";
                return Err(DataError::corrupt(self.reader.path(), "ctts", reason));
            }
            if (self.cursor as usize) < self.place.len() {
                let (reader, cursor) = (self.reader, self.cursor);
                reader.read_sample(&mut *self.file, cursor, &mut self.buffer)?;
            }
            let number = self.cursor;
            if let Err(reason) = self.advance() {
                let error = self.reader.decode_error(number, reason);
                if !self.fast {
                    return Err(error);
                }
                tracing::warn!(%error, "decoding again with the general decoder");
                self.fast = false;
                self.decoder = None;
                restarted = false;
            }
        }
        // A picture shown twice in a row stays for the second time.
        let again = self
            .reader
            .movie
            .shown
            .get(self.next + 1)
            .is_some_and(|s| s.sample == shown.sample);
        let missing = || self.reader.decode_error(shown.sample, NO_PICTURE);
        let picture = self.held.get(&shown.sample).ok_or_else(missing)?;
        let frame = self.reader.finish(shown.sample, picture)?;
        if !again {
            self.held.remove(&shown.sample);
        }
        self.next += 1;
        Ok(self.reader.info().timed(self.next - 1, frame))
    }

    /// The general decoder returns a picture one sample late.
    fn still_coming(&self, sample: u32) -> bool {
        !self.fast
            && self.cursor <= sample.saturating_add(1)
            && self.cursor as usize <= self.place.len()
    }
}

impl Iterator for Mp4Stream<'_> {
    type Item = Result<TimedFrame, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.reader.movie.shown.len()).then(|| self.produce())
    }
}
