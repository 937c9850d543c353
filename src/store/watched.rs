//! A store that measures how long its calls take, and never waits for the amount of free space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Absent, Closer, Growing, Object, Objects, Space, Staging, Store};
use crate::error::{Error, Kind, Result};
use crate::object::{Area, DeviceId, ObjectId};
use crate::overdue;
use crate::volume::Silence;

/// How long to wait for the amount of free space before the last known one is used.
const SPACE_PATIENCE: Duration = Duration::from_millis(200);

/// The calls that the store has not answered yet.
#[derive(Default)]
pub struct Calls {
    /// For each call, when it began, and whether it writes.
    began: Mutex<Vec<Option<(Instant, bool)>>>,
    answers: AtomicU64,
}

struct Call<'a> {
    calls: &'a Calls,
    place: usize,
}

impl Calls {
    fn begin(&self) -> Call<'_> {
        self.begin_one(false)
    }

    /// The same for a call that writes: it is made under locks, so that other threads wait for it.
    fn begin_write(&self) -> Call<'_> {
        self.begin_one(true)
    }

    fn begin_one(&self, writes: bool) -> Call<'_> {
        let now = Some((Instant::now(), writes));
        let mut began = self.began.lock();
        let place = match began.iter().position(Option::is_none) {
            Some(place) => {
                began[place] = now;
                place
            }
            None => {
                began.push(now);
                began.len() - 1
            }
        };
        Call { calls: self, place }
    }

    /// How long the oldest call has waited.
    pub fn silence(&self) -> Silence {
        let mut oldest = Silence::default();
        for (began, writes) in self.began.lock().iter().flatten() {
            let age = began.elapsed();
            oldest.any = oldest.any.max(age);
            if *writes {
                oldest.writes = oldest.writes.max(age);
            }
        }
        oldest
    }

    /// How many calls were answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.began.lock()[self.place] = None;
        self.calls.answers.fetch_add(1, Ordering::Relaxed);
    }
}

/// Caches the last answer of a call that may hang.
pub struct LastKnown<T>(Arc<(Mutex<Known<T>>, Condvar)>);

struct Known<T> {
    /// The last answer, or the errno of the last failure if there never was one.
    answer: Option<Result<T, i32>>,
    /// When the current call began, if there is one.
    asked: Option<Instant>,
}

impl<T: Copy + Send + 'static> LastKnown<T> {
    /// An empty cache.
    pub fn new() -> Self {
        let known = Known {
            answer: None,
            asked: None,
        };
        Self(Arc::new((Mutex::new(known), Condvar::new())))
    }

    /// Calls `ask` in a thread of its own, and returns its answer. If that takes more than moments, returns the last known
    /// answer. `subject` is the subject of errors.
    pub fn get(
        &self,
        subject: &str,
        ask: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (known, answered) = &*self.0;
        let mut known = known.lock();
        let asked = match known.asked {
            Some(asked) => asked,
            None => {
                let shared = self.0.clone();
                let asking = move || {
                    let answer = ask().map_err(|e| e.errno());
                    let (known, answered) = &*shared;
                    let mut known = known.lock();
                    // A failure does not replace a known answer.
                    if answer.is_ok() || !matches!(known.answer, Some(Ok(_))) {
                        known.answer = Some(answer);
                    }
                    known.asked = None;
                    answered.notify_all();
                };
                let thread = std::thread::Builder::new().name("space".into());
                thread
                    .spawn(asking)
                    .map_err(|e| Error::new(Kind::Io(e), "a thread"))?;
                *known.asked.insert(Instant::now())
            }
        };
        let until = asked + SPACE_PATIENCE;
        while known.asked == Some(asked) {
            if answered.wait_until(&mut known, until).timed_out() {
                break;
            }
        }
        match known.answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                Err(Error::new(Kind::Io(error), subject))
            }
            None => Err(Error::new(Kind::TimedOut, subject)),
        }
    }
}

/// A store that measures how long its calls take.
pub struct Watched {
    store: Arc<dyn Store>,
    calls: Arc<Calls>,
    space: LastKnown<Space>,
}

impl Watched {
    /// Wraps a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            calls: Arc::default(),
            space: LastKnown::new(),
        }
    }

    fn file(&self, file: Arc<dyn Growing>) -> Arc<dyn Growing> {
        let calls = self.calls.clone();
        Arc::new(WatchedFile { file, calls })
    }
}

impl Objects for Watched {
    fn list(&self, area: Area) -> Result<Vec<(ObjectId, u64)>> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.store.list(area)
    }
    fn absent(&self, area: Area) -> Result<Vec<Absent>> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.store.absent(area)
    }
    fn open(&self, area: Area, id: ObjectId) -> Result<Arc<dyn Object>> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        let object = self.store.open(area, id)?;
        let calls = self.calls.clone();
        Ok(Arc::new(WatchedObject { object, calls }))
    }
    fn put(&self, area: Area, id: ObjectId, bytes: &[u8]) -> Result<()> {
        let _call = self.calls.begin_write();
        self.store.put(area, id, bytes)
    }
    fn remove(&self, area: Area, id: ObjectId) -> Result<()> {
        let _call = self.calls.begin_write();
        self.store.remove(area, id)
    }
    fn on_too_few_files(&self, closer: Closer) {
        self.store.on_too_few_files(closer);
    }
    fn calls(&self) -> Option<&Calls> {
        Some(&self.calls)
    }
}

impl Staging for Watched {
    fn create(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        let _call = self.calls.begin_write();
        self.store.create(id).map(|file| self.file(file))
    }
    fn publish(&self, id: ObjectId, area: Area) -> Result<()> {
        let _call = self.calls.begin_write();
        self.store.publish(id, area)
    }
    fn discard(&self, id: ObjectId) -> Result<()> {
        let _call = self.calls.begin_write();
        self.store.discard(id)
    }
    fn leftovers(&self) -> Result<Vec<ObjectId>> {
        let _call = self.calls.begin();
        self.store.leftovers()
    }
    fn open_leftover(&self, id: ObjectId) -> Result<Arc<dyn Growing>> {
        let _call = self.calls.begin();
        self.store.open_leftover(id).map(|file| self.file(file))
    }
    fn check_place(&self) -> Result<Vec<Area>> {
        let _call = self.calls.begin_write();
        self.store.check_place()
    }
    fn take_over(&self, device: DeviceId) -> Result<bool> {
        let _call = self.calls.begin_write();
        self.store.take_over(device)
    }
    fn has_neighbours(&self) -> Result<bool> {
        let _call = self.calls.begin();
        self.store.has_neighbours()
    }
    fn space(&self) -> Result<Space> {
        let (store, calls) = (self.store.clone(), self.calls.clone());
        self.space.get("the library's free space", move || {
            let _call = calls.begin();
            store.space()
        })
    }
    fn reserve(&self, bytes: u64) -> Result<()> {
        let _call = self.calls.begin_write();
        self.store.reserve(bytes)
    }
}

struct WatchedObject {
    object: Arc<dyn Object>,
    calls: Arc<Calls>,
}

impl Object for WatchedObject {
    fn name(&self) -> String {
        self.object.name()
    }
    fn cipher_len(&self) -> Result<u64> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.object.cipher_len()
    }
    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.object.read_at(out, cipher_offset)
    }
    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.object.read_stream(out, cipher_offset)
    }
    fn prefetch(&self, cipher_offset: u64, cipher_len: u64) {
        let _call = self.calls.begin();
        self.object.prefetch(cipher_offset, cipher_len);
    }
    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        let _call = self.calls.begin();
        self.object.uncache(cipher_offset, cipher_len);
    }
}

/// An unfinished file whose calls are measured. Writes are never refused, because a failed write makes the file unusable.
struct WatchedFile {
    file: Arc<dyn Growing>,
    calls: Arc<Calls>,
}

impl Object for WatchedFile {
    fn name(&self) -> String {
        self.file.name()
    }
    fn cipher_len(&self) -> Result<u64> {
        let _call = self.calls.begin();
        self.file.cipher_len()
    }
    fn read_at(&self, out: &mut [u8], cipher_offset: u64) -> Result<()> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.file.read_at(out, cipher_offset)
    }
    fn read_stream(&self, out: &mut [u8], cipher_offset: u64) -> Result<usize> {
        let _waiting = overdue::wait()?;
        let _call = self.calls.begin();
        self.file.read_stream(out, cipher_offset)
    }
    fn prefetch(&self, cipher_offset: u64, cipher_len: u64) {
        let _call = self.calls.begin();
        self.file.prefetch(cipher_offset, cipher_len);
    }
    fn uncache(&self, cipher_offset: u64, cipher_len: u64) {
        let _call = self.calls.begin();
        self.file.uncache(cipher_offset, cipher_len);
    }
}

impl Growing for WatchedFile {
    fn id(&self) -> ObjectId {
        self.file.id()
    }
    fn write_at(&self, data: &[u8], cipher_offset: u64) -> Result<()> {
        let _call = self.calls.begin_write();
        self.file.write_at(data, cipher_offset)
    }
    fn write_back(&self, cipher_offset: u64, cipher_len: u64) {
        let _call = self.calls.begin();
        self.file.write_back(cipher_offset, cipher_len);
    }
    fn sync(&self) -> Result<()> {
        let _call = self.calls.begin_write();
        self.file.sync()
    }
    fn give_up(&self) {
        self.file.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_hanging_call_is_not_waited_for() {
        let known = LastKnown::new();
        assert_eq!(known.get("x", || Ok(1)).unwrap(), 1);
        assert_eq!(known.get("x", || Ok(2)).unwrap(), 2);
        let (go_on, hangs) = mpsc::channel::<()>();
        let hang = move || {
            let _ = hangs.recv();
            Ok(3)
        };
        assert_eq!(known.get("x", hang).unwrap(), 2);
        let at_once = Instant::now();
        assert_eq!(
            known.get("x", || panic!("somebody asks already")).unwrap(),
            2
        );
        assert!(at_once.elapsed() < SPACE_PATIENCE);
        drop(go_on);
        while known.get("x", || Ok(3)).unwrap() != 3 {}
    }

    #[test]
    fn a_call_that_is_not_answered_has_an_age() {
        let calls = Calls::default();
        assert_eq!(calls.silence(), Silence::default());
        let first = calls.begin();
        std::thread::sleep(Duration::from_millis(1));
        let age = calls.silence().any;
        drop(calls.begin_write());
        let silence = calls.silence();
        assert!(silence.any >= age && age > Duration::ZERO && silence.writes.is_zero());
        drop(first);
        assert_eq!((calls.silence(), calls.answers()), (Silence::default(), 2));
    }
}
