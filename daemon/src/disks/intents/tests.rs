//! A change is never allowed before its bit is durable, and a bit is cleared only where both images are durably the
//! same.

mod twins;

use super::*;
use ft_mirror::MemoryMedium;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, Sender, channel};

const EXTENT: u64 = 1 << 20;
const DISK: u64 = 1000 * EXTENT;
/// For what takes no time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Storage whose flushes begin and end when the test says so.
struct Gated {
    memory: MemoryMedium,
    begins: Sender<()>,
    /// Whether the next one goes well.
    ends: Mutex<Receiver<bool>>,
}

impl Medium for Gated {
    fn bytes(&self) -> io::Result<u64> {
        self.memory.bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.memory.write(offset, from)
    }

    fn sync(&self) -> io::Result<()> {
        self.begins.send(()).unwrap();
        match self.ends.lock().recv().unwrap_or(true) {
            true => Ok(()),
            false => Err(io::Error::other("the disk is gone")),
        }
    }
}

struct Bench {
    intents: Arc<Intents>,
    medium: &'static Gated,
    begun: Receiver<()>,
    ends: Sender<bool>,
    ready: Receiver<()>,
    flushed: Receiver<()>,
}

impl Bench {
    fn new() -> Self {
        let (begins, begun) = channel();
        let (ends, ended) = channel();
        let bytes = IntentMap::<MemoryMedium>::bytes_for(DISK, EXTENT).unwrap() as usize;
        // The thread has it as long as it likes.
        let medium: &'static Gated =
            Box::leak(Box::new(Gated { memory: MemoryMedium::new(bytes), begins, ends: Mutex::new(ended) }));
        // The blocks, then the head.
        (0..2).for_each(|_| ends.send(true).unwrap());
        let map = IntentMap::create(medium, DISK, EXTENT, 7).unwrap();
        (0..2).for_each(|_| begun.recv().unwrap());
        let (flushes, flushed) = channel();
        let flush = Box::new(move || flushes.send(()).map_err(io::Error::other));
        let intents = Arc::new(Intents::start(vec![Intent { disk: 0, map, flush }]).unwrap());
        let (tells, ready) = channel();
        let tells = Mutex::new(tells);
        intents.on_ready(Some(Arc::new(move || {
            let _ = tells.lock().send(());
        })));
        Self { intents, medium, begun, ends, ready, flushed }
    }

    fn may_change(&self, extent: u64, epoch: u64) -> Clearance {
        self.intents.may_change(0, &(extent * EXTENT..extent * EXTENT + 512), epoch)
    }

    /// Changes these extents, in this order.
    fn change(&self, extents: Range<u64>, epoch: u64) {
        let all = extents.start * EXTENT..extents.end * EXTENT;
        if self.intents.may_change(0, &all, epoch) == Clearance::Later {
            self.commit();
        }
        extents.for_each(|extent| assert_eq!(self.may_change(extent, epoch), Clearance::Given));
    }

    /// A flush of the map begins, and goes well.
    fn flush(&self) {
        self.begun.recv_timeout(PATIENCE).expect("the thread flushes the map");
        self.ends.send(true).unwrap();
    }

    /// The thread flushes the map.
    fn commit(&self) {
        self.flush();
        self.ready.recv().unwrap();
    }

    /// What the next process finds.
    fn durable(&self) -> Vec<u64> {
        IntentMap::open(&self.medium.memory, DISK).unwrap().0.set().collect()
    }
}

#[test]
fn a_change_waits_until_its_bit_is_durable_and_then_whoever_asked_is_told() {
    let bench = Bench::new();
    assert_eq!(bench.may_change(3, 1), Clearance::Later);
    bench.begun.recv().unwrap();
    assert_eq!(bench.may_change(3, 1), Clearance::Later, "the flush is under way");
    assert_eq!(bench.may_change(4, 1), Clearance::Later);
    assert!(bench.ready.try_recv().is_err());
    bench.ends.send(true).unwrap();
    bench.ready.recv().unwrap();
    assert_eq!(bench.may_change(3, 1), Clearance::Given);
    bench.commit();
    assert_eq!(bench.may_change(4, 1), Clearance::Given);
    assert_eq!(bench.durable(), [3, 4]);
    assert_eq!(bench.intents.set_bytes(), 2 * EXTENT);
    assert_eq!(bench.intents.may_change(0, &(7..7), 1), Clearance::Given, "nothing is changed");
}

#[test]
fn a_map_that_cannot_be_made_durable_is_said_and_tried_again() {
    let bench = Bench::new();
    assert_eq!(bench.may_change(3, 1), Clearance::Later);
    bench.begun.recv().unwrap();
    bench.ends.send(false).unwrap();
    // The second attempt has begun.
    bench.begun.recv().unwrap();
    assert_eq!(bench.intents.trouble().unwrap(), "disk 1: its intent map: the disk is gone");
    assert_eq!(bench.may_change(3, 1), Clearance::Later);
    bench.ends.send(true).unwrap();
    bench.ready.recv().unwrap();
    assert_eq!(bench.intents.trouble(), None);
    assert_eq!(bench.may_change(3, 1), Clearance::Given);
}

#[test]
fn what_is_settled_is_cleared_after_a_flush_but_for_what_was_changed_last() {
    let bench = Bench::new();
    bench.change(0..600, 5);
    bench.change(10..11, 6);
    bench.change(20..21, 7);
    assert_eq!(bench.intents.map(0).0, None);
    bench.intents.settled(3, 4);
    bench.commit();
    assert_eq!(
        bench.intents.map(0),
        (Some(3), (0..600).collect()),
        "the base comes first, and all were changed later"
    );
    assert_eq!(IntentMap::open(&bench.medium.memory, DISK).unwrap().0.base(), Some(3));
    bench.intents.settled(3, 6);
    bench.commit();
    bench.flushed.recv().unwrap();
    // Extents 10 and 20 are among the last.
    let kept: BTreeSet<u64> = (600 - (KEPT as u64 - 2)..600).chain([10, 20]).collect();
    assert_eq!(bench.intents.set(0), kept.into_iter().collect::<Vec<_>>());
    assert_eq!(bench.durable(), bench.intents.set(0));
    assert_eq!(bench.may_change(0, 8), Clearance::Later, "it is set again first");
    bench.commit();
}

#[test]
fn what_the_pairing_began_with_is_cleared_with_its_base_but_for_what_was_changed_since() {
    let bench = Bench::new();
    bench.change(0..40, u64::MAX);
    bench.intents.begin_pairing();
    bench.change(7..9, 1);
    bench.change(50..51, 1);
    bench.intents.differ(0, &(20 * EXTENT..21 * EXTENT));
    bench.intents.settled(3, 1);
    // The head, then the blocks.
    bench.flush();
    bench.commit();
    bench.flushed.recv().unwrap();
    assert_eq!(bench.intents.map(0), (Some(3), vec![7, 8, 20, 50]));
    assert_eq!(bench.durable(), [7, 8, 20, 50]);
    bench.intents.settled(3, 2);
    bench.change(60..61, 3);
    assert_eq!(bench.durable(), [7, 8, 20, 50, 60], "what was changed last stays");
}

#[test]
fn an_image_that_was_made_the_same_has_nothing_set_and_the_pairing_as_its_base() {
    let bench = Bench::new();
    bench.change(0..4, 1);
    bench.intents.same(8);
    // The head, then the blocks.
    bench.begun.recv().unwrap();
    bench.ends.send(true).unwrap();
    bench.commit();
    bench.flushed.recv().unwrap();
    assert_eq!(bench.durable(), [] as [u64; 0]);
    assert_eq!(bench.intents.map(0), (Some(8), Vec::new()));
    assert_eq!(IntentMap::open(&bench.medium.memory, DISK).unwrap().0.base(), Some(8));
}

/// What the images have of an extent: the number of its last change.
#[derive(Clone, Copy, Debug, Default)]
struct Images {
    given: u64,
    epoch: u64,
    here: u64,
    here_durable: u64,
    peer_durable: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Change(u64),
    /// The image has carried out what it was asked for, or some of it has failed.
    Carried {
        fails: bool,
    },
    NextEpoch,
    Settle,
    /// The thread takes what there is to do, and is done with it, or fails.
    Begin,
    End {
        fails: bool,
    },
    /// A pairing begins, and its copy compares what is set.
    NewPairing,
    PairingEnds,
    /// The image is made the peer's.
    Same,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..12_u64).prop_map(Step::Change),
        4 => (0..10_u8).prop_map(|luck| Step::Carried { fails: luck == 0 }),
        2 => Just(Step::NextEpoch),
        3 => Just(Step::Settle),
        6 => Just(Step::Begin),
        6 => (0..6_u8).prop_map(|luck| Step::End { fails: luck == 0 }),
        2 => Just(Step::NewPairing),
        1 => Just(Step::PairingEnds),
        1 => Just(Step::Same),
    ];
    prop::collection::vec(step, 1..200)
}

#[derive(Default)]
struct Model {
    desk: Desk,
    durable: BTreeSet<u64>,
    images: HashMap<u64, Images>,
    under_way: Vec<(u64, u64, u64)>,
    working: Option<Work>,
    pairing: u64,
    /// None: there is nobody to be told.
    epoch: Option<u64>,
    number: u64,
}

impl Model {
    fn change(&mut self, extent: u64) {
        let place = Place { disk: 0, extent };
        let epoch = self.epoch.unwrap_or(u64::MAX);
        if self.desk.may_change([place].into_iter(), epoch) == Clearance::Later {
            return;
        }
        let clearing = self.working.as_ref().is_some_and(|work| work.clear.contains(&place));
        assert!(
            self.durable.contains(&extent) && !clearing,
            "a change of {extent} before its bit is durable"
        );
        self.number += 1;
        let image = self.images.entry(extent).or_default();
        (image.given, image.epoch) = (self.number, epoch);
        self.desk.begun(Order { disk: 0, queue: 0, tag: self.number }, vec![place]);
        self.under_way.push((self.number, extent, self.number));
    }

    fn carried(&mut self, fails: bool) {
        for (tag, extent, number) in self.under_way.drain(..) {
            let outcome = if fails { Outcome::InDoubt } else { Outcome::Done };
            self.desk.ended(Order { disk: 0, queue: 0, tag }, outcome);
            if !fails && let Some(image) = self.images.get_mut(&extent) {
                image.here = number;
            }
        }
    }

    /// An epoch ends when its changes were issued; the peer then has them all.
    fn settle(&mut self) {
        let Some(through) = self.epoch.and_then(|epoch| epoch.checked_sub(1)).filter(|through| *through > 0)
        else {
            return;
        };
        for image in self.images.values_mut().filter(|image| image.epoch <= through) {
            image.peer_durable = image.given;
        }
        let _ = self.desk.settled(self.pairing, through);
    }

    /// What is set is compared when nothing is under way there, and this image's content is the one that counts.
    fn pair(&mut self) {
        self.carried(false);
        let set = self.desk.set(0);
        for (extent, image) in &mut self.images {
            let is_same = image.here == image.given && image.peer_durable == image.given;
            assert!(
                is_same || set.contains(extent),
                "{extent} differs, and would not be compared: {image:?}"
            );
            (image.given, image.peer_durable, image.epoch) = (image.here, image.here, 0);
        }
        self.pairing += 1;
        self.epoch = Some(1);
        self.desk.begin_pairing();
    }

    fn same(&mut self) {
        self.carried(false);
        for image in self.images.values_mut() {
            let given = image.given;
            *image = Images { given, epoch: 0, here: given, here_durable: given, peer_durable: given };
        }
        self.pairing += 1;
        self.epoch = None;
        self.desk.same(self.pairing);
    }

    fn end(&mut self, fails: bool) {
        let Some(work) = self.working.take() else { return };
        if fails {
            return self.desk.failed(work, "trouble".into());
        }
        for place in &work.set {
            self.durable.insert(place.extent);
        }
        for place in &work.clear {
            self.durable.remove(&place.extent);
            let image = self.images.get(&place.extent).copied().unwrap_or_default();
            let Images { given, here_durable, peer_durable, .. } = image;
            assert!(
                here_durable == given && peer_durable == given,
                "the images differ in {}, and its bit is cleared: {image:?}",
                place.extent
            );
        }
        self.desk.done(&work);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Change(extent) => self.change(*extent),
            Step::Carried { fails } => self.carried(*fails),
            Step::NextEpoch => self.epoch = self.epoch.map(|epoch| epoch + 1),
            Step::Settle => self.settle(),
            Step::Begin if self.working.is_none() => {
                self.working = self.desk.take();
                // It is flushed before anything is cleared.
                self.images.values_mut().for_each(|image| image.here_durable = image.here);
            }
            Step::Begin => {}
            Step::End { fails } => self.end(*fails),
            Step::NewPairing => self.pair(),
            Step::PairingEnds => self.epoch = None,
            Step::Same => self.same(),
        }
        let set = self.desk.set(0);
        assert!(self.durable.iter().all(|extent| set.contains(extent)), "a bit is set that is not told of");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_change_before_its_bit_and_no_bit_cleared_where_the_images_may_differ(steps in steps()) {
        let mut model = Model { desk: Desk::new(Default::default(), Default::default(), 2), ..Model::default() };
        for step in &steps {
            model.step(step);
        }
    }
}
