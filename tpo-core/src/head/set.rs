//! The heads of a model as a struct with a field for each.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Tensor};

use super::{AnyHead, HeadConfigs, HeadKeys, HeadSpec, ModelSizes};
use crate::error::Result;
use crate::weights;

/// Heads of a model. Made with [`heads!`](crate::heads), never implemented by hand.
pub trait HeadSet: Module + ModuleDisplay + Sync + 'static {
    /// Names and tokens, in order.
    fn specs() -> Vec<HeadSpec>;

    /// Names in checkpoints, in order.
    ///
    /// # Errors
    /// As [`TaskHead::keys`](super::TaskHead::keys).
    fn keys() -> weights::Result<Vec<HeadKeys>>;

    /// For each head, the features of frozen towers that it asks for, in order.
    fn features() -> Vec<&'static [&'static str]>;

    /// Creates all heads with random weights.
    ///
    /// # Errors
    /// As [`HeadConfigs::init`].
    fn init(configs: &HeadConfigs, sizes: &ModelSizes, device: &Device) -> Result<Self>;

    /// The configurations of all heads with every field, what nothing is written of included.
    ///
    /// # Errors
    /// As [`HeadConfigs::get`].
    fn resolve(configs: &HeadConfigs) -> Result<HeadConfigs>;

    /// The heads in order.
    fn heads(&self) -> Vec<&dyn AnyHead>;

    /// The head called `name`.
    fn head(&self, name: &str) -> Option<&dyn AnyHead> {
        self.heads().into_iter().find(|h| h.name() == name)
    }

    /// Embeds boxes `[n, 4]` of a question with the first head that can.
    fn encode_boxes(&self, boxes: Tensor<2>) -> Option<Tensor<2>> {
        self.heads()
            .into_iter()
            .find_map(|h| h.embed_boxes(boxes.clone()))
    }
}

/// A model without heads.
#[derive(Module, Debug, Default)]
pub struct NoHeads {
    #[module(skip)]
    none: (),
}

impl HeadSet for NoHeads {
    fn specs() -> Vec<HeadSpec> {
        Vec::new()
    }
    fn keys() -> weights::Result<Vec<HeadKeys>> {
        Ok(Vec::new())
    }
    fn features() -> Vec<&'static [&'static str]> {
        Vec::new()
    }
    fn init(_: &HeadConfigs, _: &ModelSizes, _: &Device) -> Result<Self> {
        Ok(Self::default())
    }
    fn resolve(configs: &HeadConfigs) -> Result<HeadConfigs> {
        Ok(configs.clone())
    }
    fn heads(&self) -> Vec<&dyn AnyHead> {
        Vec::new()
    }
}

/// Whether a field is called as its head's `NAME`; used by [`heads!`](crate::heads).
#[doc(hidden)]
pub const fn named_alike(name: &str, field: &str) -> bool {
    let (a, b) = (name.as_bytes(), field.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// Makes a struct of heads: a Burn module with a public field for each, and a
/// [`HeadSet`](crate::head::HeadSet). Each field is called as its head's
/// [`NAME`](crate::head::TaskHead::NAME), and its parameters are at `heads.NAME...` of a model.
///
/// ```text
/// heads! { pub struct MyHeads { region: RegionHead, point: PointHead } }
/// ```
#[macro_export]
macro_rules! heads {
    ($(#[$meta:meta])* $vis:vis struct $set:ident { $($name:ident : $head:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(burn::module::Module, Debug)]
        $vis struct $set {
            $(
                #[doc = concat!("The head `", stringify!($name), "`.")]
                pub $name: $head,
            )+
        }

        $(
            const _: () = assert!(
                $crate::head::named_alike(
                    <$head as $crate::head::TaskHead>::NAME,
                    stringify!($name),
                ),
                concat!(
                    "the field `", stringify!($name), "` of `heads!` must be called as the NAME of ",
                    stringify!($head),
                ),
            );
        )+

        impl $crate::head::HeadSet for $set {
            fn specs() -> ::std::vec::Vec<$crate::head::HeadSpec> {
                ::std::vec![$(<$head as $crate::head::TaskHead>::spec()),+]
            }
            fn keys() -> $crate::weights::Result<::std::vec::Vec<$crate::head::HeadKeys>> {
                ::std::result::Result::Ok(
                    ::std::vec![$(<$head as $crate::head::TaskHead>::keys()?),+],
                )
            }
            fn features() -> ::std::vec::Vec<&'static [&'static str]> {
                ::std::vec![$(<$head as $crate::head::TaskHead>::features()),+]
            }
            fn init(
                configs: &$crate::head::HeadConfigs,
                sizes: &$crate::head::ModelSizes,
                device: &::burn::tensor::Device,
            ) -> $crate::Result<Self> {
                ::std::result::Result::Ok(Self {
                    $($name: configs.init::<$head>(sizes, device)?),+
                })
            }
            fn resolve(
                configs: &$crate::head::HeadConfigs,
            ) -> $crate::Result<$crate::head::HeadConfigs> {
                let all = configs.clone();
                $(let all = all.with::<$head>(&configs.get::<$head>()?)?;)+
                ::std::result::Result::Ok(all)
            }
            fn heads(&self) -> ::std::vec::Vec<&dyn $crate::head::AnyHead> {
                ::std::vec![$(&self.$name as &dyn $crate::head::AnyHead),+]
            }
        }
    };
}
