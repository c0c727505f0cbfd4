//! COCO's printable code of run lengths.

/// Packs run lengths: each run (from the fourth on, its difference to the run before last) in
/// groups of five bits, least significant first, offset by ASCII 48.
pub(super) fn pack(runs: &[u64]) -> String {
    let mut text = String::with_capacity(2 * runs.len());
    for (i, run) in runs.iter().enumerate() {
        let mut x = *run as i64;
        if i > 2 {
            x -= runs[i - 2] as i64;
        }
        loop {
            let group = (x & 0x1f) as u8;
            x >>= 5;
            let more = if group & 0x10 != 0 { x != -1 } else { x != 0 };
            text.push((group + if more { 0x20 } else { 0 } + 48) as char);
            if !more {
                break;
            }
        }
    }
    text
}

/// Unpacks what [`pack`] wrote; the error says which rule of the code is broken.
pub(super) fn unpack(text: &str) -> Result<Vec<u64>, String> {
    let mut runs: Vec<u64> = Vec::with_capacity(text.len() / 2 + 1);
    let mut bytes = text.bytes();
    while let Some(first) = bytes.next() {
        let (mut x, mut shift, mut byte) = (0i64, 0u32, first);
        loop {
            let group = byte
                .checked_sub(48)
                .filter(|g| *g < 64)
                .ok_or_else(|| format!("character {:?} is not part of the code", byte as char))?;
            if shift >= 60 {
                return Err("a run length has too many digits".into());
            }
            x |= ((group & 0x1f) as i64) << shift;
            shift += 5;
            if group & 0x20 == 0 {
                if group & 0x10 != 0 {
                    x |= -1i64 << shift;
                }
                break;
            }
            byte = bytes.next().ok_or("the code ends inside a number")?;
        }
        if runs.len() > 2 {
            x = x
                .checked_add(runs[runs.len() - 2] as i64)
                .ok_or("a run length overflows")?;
        }
        runs.push(u64::try_from(x).map_err(|_| format!("run {} is negative", runs.len()))?);
    }
    Ok(runs)
}
