use super::*;
use crate::bench_support::noise_page;
use ft_ram::{GuestRam, RamView};
use ft_vm::spec::{BusKind, CpuModel, EngineKind};
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::sync::OnceLock;

const RAM_BYTES: u64 = 16 << 20;
const STATE: &[u8] = b"as if it were a machine's state";

fn spec() -> MachineSpec {
    MachineSpec {
        engine: EngineKind::Soft,
        vcpus: 1,
        ram_bytes: RAM_BYTES,
        nets: Vec::new(),
        disks: Vec::new(),
        rng: true,
        bus: BusKind::Mmio,
        cpu: CpuModel::Host,
    }
}

fn label() -> ImageLabel {
    ImageLabel {
        vm: "web".into(),
        node: "beta".into(),
        cell: 0xfeed,
        generation: 7,
        pairing: 5,
        epoch: 99,
        spec: spec(),
        disks: vec![("disk 1".into(), b"4096 abcdef".to_vec())],
    }
}

fn fresh() -> RamView {
    GuestRam::new(RAM_BYTES).unwrap().view().unwrap()
}

/// A few pages among many that are zero; more than one piece of them.
fn pages() -> impl Iterator<Item = PageIndex> {
    (0..300).map(|n| n * 13)
}

fn memory() -> RamView {
    let ram = fresh();
    pages().for_each(|page| ram.write_page(page, &noise_page(page.into())));
    // The kernel holds memory for it, and it is zero.
    ram.write_page(77, &crate::page::ZERO_PAGE);
    ram
}

fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE
        .get_or_init(|| write(Vec::new(), &label(), STATE, &memory(), |_| ControlFlow::Continue(())).unwrap())
}

fn take(bytes: &[u8]) -> Result<(Vec<u8>, RamView), SavedError> {
    let ram = fresh();
    ImageReader::open(bytes)?.take(&spec(), &ram).map(|state| (state, ram))
}

/// With a digest that fits, so that what is before it is judged.
fn resigned(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - blake3::OUT_LEN;
    let digest = blake3::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(digest.as_bytes());
    bytes
}

/// Where the state's length stands.
fn state_at() -> usize {
    MAGIC.len() + 8 + postcard::to_stdvec(&label()).unwrap().len() + 4
}

#[test]
fn an_image_gives_back_what_was_sealed_and_says_whose_it_is() {
    let reader = ImageReader::open(sample()).unwrap();
    assert_eq!(*reader.label(), label());
    let (state, ram) = take(sample()).unwrap();
    assert_eq!(state, STATE);
    let (then, mut left, mut right) = (memory(), crate::page::ZERO_PAGE, crate::page::ZERO_PAGE);
    for page in 0..ram.pages() {
        ram.read_page(page, &mut left);
        then.read_page(page, &mut right);
        assert!(left == right, "page {page}");
    }
}

#[test]
fn zero_pages_take_no_room_and_what_it_takes_is_known_before() {
    let ram = memory();
    let (most, held) = bytes_max(STATE, &ram).unwrap();
    assert!(held >= pages().count() as u64 && held < u64::from(ram.pages()), "{held}");
    let bytes = sample().len() as u64;
    assert!(bytes <= most, "{bytes} of {most}");
    assert!(bytes < (pages().count() * RECORD_BYTES_MAX + 4096) as u64, "{bytes}");
}

#[test]
fn a_write_that_is_called_off_ends() {
    let mut looks = 0;
    let written = write(Vec::new(), &label(), STATE, &memory(), |_| {
        looks += 1;
        ControlFlow::Break(())
    });
    assert!(matches!(written, Err(Unwritten::CalledOff)));
    assert_eq!(looks, 1);
}

#[test]
fn an_image_cut_at_any_byte_is_refused() {
    let whole = sample();
    let lengths = (0..whole.len()).filter(|at| *at < 400 || *at + 100 > whole.len() || at % 4999 == 0);
    for length in lengths {
        let error = take(&whole[..length]).map(drop).unwrap_err();
        assert!(matches!(error, SavedError::Magic | SavedError::CutOff { .. }), "{length}: {error}");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let whole = sample();
    let bytes = (0..whole.len()).filter(|at| *at < 400 || *at + 100 > whole.len() || at % 9973 == 0);
    for (at, bit) in bytes.flat_map(|at| [0, 3, 7].map(|bit| (at, bit))) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << bit;
        assert!(take(&bytes).is_err(), "bit {bit} of byte {at}");
    }
}

#[test]
fn other_files_versions_and_machines_are_refused_by_name() {
    assert!(matches!(take(b"").map(drop), Err(SavedError::Magic)));
    assert!(matches!(take(b"FTDREC and so on").map(drop), Err(SavedError::Magic)));
    let mut newer = sample().to_vec();
    newer[MAGIC.len()] = 9;
    assert!(matches!(take(&newer).map(drop), Err(SavedError::Version { theirs: 9 })));
    let larger = MachineSpec { ram_bytes: 2 * RAM_BYTES, ..spec() };
    let ram = GuestRam::new(2 * RAM_BYTES).unwrap().view().unwrap();
    let error = ImageReader::open(sample()).unwrap().take(&larger, &ram).unwrap_err();
    assert!(matches!(error, SavedError::Machine { .. }), "{error}");
    assert!(!error.may_pass());
}

#[test]
fn lengths_pages_and_ends_that_cannot_be_are_refused_even_under_a_digest_that_fits() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sample().to_vec();
        change(&mut bytes);
        take(&resigned(bytes)).map(drop)
    };
    assert!(with(&|_| {}).is_ok());
    let at = state_at();
    let long = with(&|bytes| bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes()));
    assert!(matches!(long, Err(SavedError::TooLong { what: "state", .. })), "{long:?}");
    let piece = at + 4 + STATE.len();
    let long = with(&|bytes| bytes[piece..piece + 4].copy_from_slice(&(2_u32 << 20).to_le_bytes()));
    assert!(matches!(long, Err(SavedError::TooLong { what: "memory", .. })), "{long:?}");
    let page = with(&|bytes| bytes[piece + 4..piece + 8].copy_from_slice(&4096_u32.to_le_bytes()));
    assert!(matches!(page, Err(SavedError::Page { page: 4096, pages: 4096 })), "{page:?}");
    let end = sample().len() - END_BYTES;
    let length = with(&|bytes| bytes[end] ^= 1);
    assert!(matches!(length, Err(SavedError::Length { .. })), "{length:?}");
    let more = [sample(), b"x"].concat();
    assert!(matches!(take(&more).map(drop), Err(SavedError::BehindEnd)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0..400_usize,
    ) {
        let start = &sample()[..keep.min(state_at() + 100)];
        prop_assert!(take(&[start, &bytes].concat()).is_err());
    }

    #[test]
    fn arbitrary_pieces_are_read_or_refused_without_panic(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6),
    ) {
        let mut bytes = sample()[..state_at()].to_vec();
        for piece in &pieces {
            bytes.extend((piece.len() as u32).to_le_bytes());
            bytes.extend(piece);
        }
        bytes.extend((bytes.len() as u64 + END_BYTES as u64).to_le_bytes());
        bytes.extend([0; blake3::OUT_LEN]);
        let _ = take(&resigned(bytes));
    }

    #[test]
    fn what_is_written_is_read(
        generation in any::<u64>(), epoch in any::<u64>(),
        state in proptest::collection::vec(any::<u8>(), 0..5000),
        written in proptest::collection::btree_map(0..4096_u32, any::<u64>(), 0..20),
    ) {
        let (then, label) = (fresh(), ImageLabel { generation, epoch, ..label() });
        written.iter().for_each(|(page, seed)| then.write_page(*page, &noise_page(*seed)));
        let bytes = write(Vec::new(), &label, &state, &then, |_| ControlFlow::Continue(())).unwrap();
        let reader = ImageReader::open(&bytes[..]).unwrap();
        prop_assert_eq!(reader.label(), &label);
        let (again, ram) = take(&bytes).unwrap();
        prop_assert_eq!(again, state);
        let mut page = crate::page::ZERO_PAGE;
        for (index, seed) in written {
            ram.read_page(index, &mut page);
            prop_assert!(page == noise_page(seed), "page {index}");
        }
    }
}
