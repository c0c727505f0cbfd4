//! Choosing a device at run time.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::error::{Error, Result};

/// What `--device` accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first CUDA device if this build has CUDA and the machine one, else the first wgpu
    /// adapter if this build has wgpu, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by index. Needs the feature `cuda`.
    Cuda(usize),
    /// The default wgpu adapter. Needs the feature `wgpu`.
    Wgpu,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Device {
            asked: text.into(),
            why: "it is none of auto, cpu, cuda, cuda:<index>, wgpu".into(),
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "wgpu" => Ok(Self::Wgpu),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Wgpu => f.write_str("wgpu"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::Device`] when this build or this machine does not have it.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => cuda(index),
            Self::Wgpu => wgpu(),
            Self::Auto => Ok(cuda(0)
                .or_else(|_| wgpu())
                .unwrap_or_else(|_| Device::flex())),
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    use burn::tensor::DeviceType;

    let missing = |why: String| Error::Device {
        asked: format!("cuda:{index}"),
        why,
    };
    // Without a driver the CUDA runtime panics while it lists devices.
    let devices = std::panic::catch_unwind(|| Device::enumerate(DeviceType::Cuda).into_vec())
        .map_err(|_| missing("the CUDA driver could not be opened on this machine".into()))?;
    let count = devices.len();
    devices
        .into_iter()
        .nth(index)
        .ok_or_else(|| missing(format!("this machine has {count} CUDA device(s)")))
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device> {
    Err(Error::Device {
        asked: format!("cuda:{index}"),
        why: "this build has no CUDA; build with `--features cuda`".into(),
    })
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device> {
    use burn::tensor::DeviceType;

    std::panic::catch_unwind(|| Device::enumerate(DeviceType::Wgpu).into_vec())
        .ok()
        .and_then(|devices| devices.into_iter().next())
        .ok_or_else(|| Error::Device {
            asked: "wgpu".into(),
            why: "no graphics adapter was found on this machine".into(),
        })
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Device> {
    Err(Error::Device {
        asked: "wgpu".into(),
        why: "this build has no wgpu; build with `--features wgpu`".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "wgpu"] {
            let choice: DeviceChoice = name.parse().unwrap();
            assert_eq!(choice.to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(name.parse::<DeviceChoice>().is_err(), "{name}");
        }
        assert!(DeviceChoice::Cpu.open().is_ok());
        assert!(DeviceChoice::Auto.open().is_ok());
    }
}
