//! The model: a tree in memory that does what a filesystem does.

use std::collections::BTreeMap;

use hushfs::volume::*;

use crate::support::{Shown, Tree};

/// An inode of the model.
#[derive(Debug, Clone)]
pub struct Node {
    pub kind: FileKind,
    pub perm: u16,
    pub bytes: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Vec<u8>, usize>,
}

/// The model: inodes by number, 0 the root.
pub struct Model {
    pub nodes: BTreeMap<usize, Node>,
    pub next: usize,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            next: 0,
        };
        model.add(FileKind::Directory, 0o755, b"");
        model
    }

    pub fn add(&mut self, kind: FileKind, perm: u16, bytes: &[u8]) -> usize {
        let node = Node {
            kind,
            perm,
            bytes: bytes.to_vec(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
        };
        self.nodes.insert(self.next, node);
        self.next += 1;
        self.next - 1
    }

    /// Directories in the order of a walk, with their paths.
    pub fn dirs(&self) -> Vec<(usize, Vec<u8>)> {
        let mut dirs = vec![(0, Vec::new())];
        let mut at = 0;
        while at < dirs.len() {
            let (dir, path) = dirs[at].clone();
            for (name, child) in &self.nodes[&dir].entries {
                if self.nodes[child].kind == FileKind::Directory {
                    dirs.push((*child, [&path[..], b"/", name].concat()));
                }
            }
            at += 1;
        }
        dirs
    }

    pub fn files(&self) -> Vec<(usize, Vec<u8>)> {
        let mut files = Vec::new();
        for (dir, path) in self.dirs() {
            for (name, child) in &self.nodes[&dir].entries {
                if self.nodes[child].kind == FileKind::Regular {
                    files.push((*child, [&path[..], b"/", name].concat()));
                }
            }
        }
        files
    }

    pub fn links(&self, node: usize) -> u32 {
        self.nodes
            .values()
            .flat_map(|n| n.entries.values())
            .filter(|c| **c == node)
            .count() as u32
    }

    pub fn within(&self, dir: usize, ancestor: usize) -> bool {
        let mut below = vec![ancestor];
        while let Some(at) = below.pop() {
            if at == dir {
                return true;
            }
            below.extend(
                self.nodes[&at]
                    .entries
                    .values()
                    .filter(|c| self.nodes[c].kind == FileKind::Directory),
            );
        }
        false
    }

    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for (dir, path) in self.dirs() {
            for (name, child) in &self.nodes[&dir].entries {
                let node = &self.nodes[child];
                let dirs_in = node
                    .entries
                    .values()
                    .filter(|c| self.nodes[c].kind == FileKind::Directory)
                    .count();
                let nlink = match node.kind {
                    FileKind::Directory => 2 + dirs_in as u32,
                    _ => self.links(*child),
                };
                let shown = Shown {
                    kind: node.kind,
                    perm: node.perm,
                    nlink,
                    bytes: node.bytes.clone(),
                    xattrs: node.xattrs.clone(),
                };
                tree.insert([&path[..], b"/", name].concat(), shown);
            }
        }
        tree
    }
}
