//! The one way into a library of ours: where it lies ([`Location`]), its slots ([`Slots`]), which of them a secret opens
//! ([`Location::unlock`]), as which device this machine uses it ([`Recalled`]), and how it is opened ([`open`]).
//!
//! Nobody is asked anything here, and nothing is printed.

mod device;
mod location;
mod open;
mod slots;
mod unlock;

pub use device::{Recalled, recall, recall_to_read};
pub use location::Location;
pub use open::{How, Opening, Others, open, prepare};
pub use slots::Slots;
pub use unlock::{MayCost, Opener, Unlocked, opened_by};
