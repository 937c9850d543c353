//! The one way into a library of ours: where it is ([`Location`]), its slots ([`Slots`]), which of them a secret
//! unlocks ([`Location::unlock`]), as which device this machine uses it ([`Recalled`]), and how it is opened
//! ([`open`]).
//!
//! Nothing here asks the user or prints.

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
