//! Reading, importing and writing weights.

mod files;
mod hostile;
mod keys;
mod load;
mod save;
