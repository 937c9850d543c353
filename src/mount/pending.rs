//! Stands in until the vault answers as a volume itself; goes with that change.

use std::ffi::OsStr;

use crate::error::{Kind, Result};
use crate::vault::Vault;
use crate::volume::{Attr, Dirent, Handle, Ino, Statfs, Volume, Whence};

impl Volume for Vault {
    fn lookup(&self, _: Ino, _: &OsStr) -> Result<Attr> {
        Err(Kind::NotSupported.into())
    }
    fn forget(&self, _: Ino, _: u64) {}
    fn getattr(&self, _: Ino) -> Result<Attr> {
        Err(Kind::NotSupported.into())
    }
    fn readlink(&self, _: Ino) -> Result<Vec<u8>> {
        Err(Kind::NotSupported.into())
    }
    fn open(&self, _: Ino, _: i32) -> Result<Handle> {
        Err(Kind::NotSupported.into())
    }
    fn release(&self, _: Ino, _: Handle) {}
    fn read(&self, _: Ino, _: Handle, _: u64, _: &mut [u8]) -> Result<usize> {
        Err(Kind::NotSupported.into())
    }
    fn lseek(&self, _: Ino, _: u64, _: Whence) -> Result<u64> {
        Err(Kind::NotSupported.into())
    }
    fn readdir(
        &self,
        _: Ino,
        _: u64,
        _: bool,
        _: &mut dyn FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        Err(Kind::NotSupported.into())
    }
    fn statfs(&self) -> Result<Statfs> {
        Err(Kind::NotSupported.into())
    }
}
