//! Values of the metadata.

/// A value of the metadata. Numbers of all widths are widened; a list has elements of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// A whole number that is not negative.
    Unsigned(u64),
    /// A negative number.
    Negative(i64),
    /// A real number. One of 32 bits is the shortest decimal that stands for it (1e-5, not
    /// 9.99999974737875e-6).
    Real(f64),
    /// A truth value.
    Flag(bool),
    /// Text.
    Text(String),
    /// A list of whole numbers or truth values.
    Integers(Vec<i64>),
    /// A list of real numbers.
    Reals(Vec<f64>),
    /// A list of texts.
    Texts(Vec<String>),
}

impl GgufValue {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::Unsigned(n) => format!("the number {n}"),
            Self::Negative(n) => format!("the number {n}"),
            Self::Real(x) => format!("the number {x}"),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(_) => "text".into(),
            Self::Integers(list) => format!("a list of {} whole numbers", list.len()),
            Self::Reals(list) => format!("a list of {} numbers", list.len()),
            Self::Texts(list) => format!("a list of {} texts", list.len()),
        }
    }
}

/// Types that a value can be read as.
pub trait FromGguf<'a>: Sized {
    /// What is expected, for messages.
    const KIND: &'static str;

    /// The value, if it is of this type.
    fn from_gguf(value: &'a GgufValue) -> Option<Self>;
}

macro_rules! from_gguf {
    ($($type:ty, $kind:literal, $($pattern:pat => $value:expr),+;)+) => {$(
        impl<'a> FromGguf<'a> for $type {
            const KIND: &'static str = $kind;

            fn from_gguf(value: &'a GgufValue) -> Option<Self> {
                match value {
                    $($pattern => Some($value),)+
                    _ => None,
                }
            }
        }
    )+};
}

from_gguf! {
    u64, "a whole number", GgufValue::Unsigned(n) => *n;
    f64, "a number", GgufValue::Real(x) => *x, GgufValue::Unsigned(n) => *n as f64,
        GgufValue::Negative(n) => *n as f64;
    bool, "true or false", GgufValue::Flag(flag) => *flag;
    &'a str, "text", GgufValue::Text(text) => text;
    &'a [i64], "a list of whole numbers", GgufValue::Integers(list) => list;
    &'a [f64], "a list of numbers", GgufValue::Reals(list) => list;
    &'a [String], "a list of texts", GgufValue::Texts(list) => list;
}
