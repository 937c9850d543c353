//! The published part of the index: heads, snapshot, key slots, and the segments that a replay needs.
//!
//! Built from a replay; read by the journal; extended by the outbox. Does not own the files themselves, or the decision
//! when a snapshot is due.

use std::collections::{BTreeMap, HashSet};

use crate::index::SegmentInfo;
use crate::index::record::{BaseRef, Head};
use crate::object::{DeviceId, ObjectId, SegmentId, SlotId};

/// The published index as this mount knows it.
#[derive(Default)]
pub struct PublishedIndex {
    heads: BTreeMap<DeviceId, Head>,
    snapshot: Option<BaseRef>,
    /// The snapshots that the tree was loaded from, or the one that replaced them.
    snapshots_in_use: Vec<SegmentInfo>,
    /// The length of the newest snapshot, in bytes.
    snapshot_cipher_len: u64,
    /// Segments that the newest snapshot does not cover, in the order of their publication.
    uncovered: Vec<SegmentInfo>,
    slots: Vec<SlotId>,
    removed_slots: Vec<SlotId>,
    /// Segments were removed while mounted, and no snapshot has replaced them yet.
    has_lost_segments: bool,
}

impl PublishedIndex {
    /// Creates it from the results of a replay.
    pub fn new(
        heads: BTreeMap<DeviceId, Head>,
        snapshot: Option<BaseRef>,
        snapshots_in_use: (Vec<SegmentInfo>, u64),
        uncovered: Vec<SegmentInfo>,
        (slots, removed_slots): (Vec<SlotId>, Vec<SlotId>),
    ) -> Self {
        let (snapshots_in_use, snapshot_cipher_len) = snapshots_in_use;
        Self {
            heads,
            snapshot,
            snapshots_in_use,
            snapshot_cipher_len,
            uncovered,
            slots,
            removed_slots,
            has_lost_segments: false,
        }
    }

    /// The newest published or closed segment of each device whose segments are in the tree.
    pub fn heads(&self) -> Vec<Head> {
        self.heads.values().copied().collect()
    }

    /// The newest segment of one device.
    pub fn head_of(&self, device: DeviceId) -> Option<Head> {
        self.heads.get(&device).copied()
    }

    /// The number of the next segment of a device.
    pub fn next_number(&self, device: DeviceId) -> u64 {
        self.heads.get(&device).map_or(1, |head| head.number + 1)
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<BaseRef> {
        self.snapshot
    }

    /// The length of the newest snapshot, in bytes; 0 if there is none.
    pub fn snapshot_cipher_len(&self) -> u64 {
        self.snapshot_cipher_len
    }

    /// Present and removed key slots.
    pub fn slots(&self) -> (&[SlotId], &[SlotId]) {
        (&self.slots, &self.removed_slots)
    }

    /// Segments that the newest snapshot does not cover.
    pub fn uncovered(&self) -> &[SegmentInfo] {
        &self.uncovered
    }

    /// Records that a segment is closed and durable: later segments build on it.
    pub fn set_head(&mut self, head: Head) {
        self.heads.insert(head.device, head);
    }

    /// Records that a segment is published.
    pub fn add(&mut self, segment: SegmentInfo) {
        self.uncovered.push(segment);
    }

    /// Records that a snapshot is published that covers the segments `covered`. Returns the snapshots that it
    /// supersedes.
    pub fn replace_snapshot(
        &mut self,
        reference: BaseRef,
        snapshot: SegmentInfo,
        covered: &[SegmentInfo],
    ) -> Vec<SegmentInfo> {
        self.snapshot = Some(reference);
        self.snapshot_cipher_len = snapshot.cipher_len;
        self.uncovered
            .retain(|segment| !covered.iter().any(|c| c.id == segment.id));
        if std::mem::take(&mut self.has_lost_segments) {
            log::warn!(
                "index: files were removed while the library is mounted; the index was written again"
            );
        }
        std::mem::replace(&mut self.snapshots_in_use, vec![snapshot])
    }

    /// Returns the newest `count` segments, and the snapshot.
    pub fn newest(&self, count: usize) -> Vec<SegmentId> {
        let segments = self.uncovered.iter().rev().take(count).map(|s| s.id);
        segments
            .chain(self.snapshot.map(|snapshot| snapshot.segment))
            .collect()
    }

    /// Returns how many of the segments and snapshots that a replay needs are not in `present`. If there are any, a new
    /// snapshot is due to replace them.
    pub fn find_lost(&mut self, present: &HashSet<ObjectId>) -> usize {
        let needed = self.uncovered.iter().chain(&self.snapshots_in_use);
        let lost = needed.filter(|s| !present.contains(&s.id.object())).count();
        self.has_lost_segments |= lost > 0;
        lost
    }

    /// Whether segments were removed while mounted and no snapshot has replaced them yet.
    pub fn has_lost_segments(&self) -> bool {
        self.has_lost_segments
    }
}
