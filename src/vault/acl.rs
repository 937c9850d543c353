//! ACL stub.
use crate::error::Result;
pub struct Acl;
impl Acl {
    pub fn parse(_v: &[u8]) -> Result<Self> { Ok(Self) }
    pub fn encode(&self) -> Vec<u8> { Vec::new() }
    pub fn inherit(&self, perm: u16) -> (u16, Option<Acl>) { (perm, None) }
    pub fn chmod(&mut self, _perm: u16) {}
    pub fn perm_of(&self) -> (u16, bool) { (0o644, true) }
}
